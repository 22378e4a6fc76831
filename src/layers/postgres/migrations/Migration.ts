/** The migrations in order, each with its up and down statements. */
import type { TableNames } from "../../../schema/TableNames.ts"
import * as EventStoreTables from "./EventStoreTables.ts"
import * as OrchestratorTables from "./OrchestratorTables.ts"

export interface Migration {
  readonly number: number
  /** Part of the file's name. */
  readonly name: string
  readonly title: string
  /** One statement per element, to be run in one transaction. All statements may be run again. */
  readonly up: ReadonlyArray<string>
  readonly down: ReadonlyArray<string>
}

/** All migrations for tables of these names. */
export const all = (
  names: TableNames,
  options: EventStoreTables.UpOptions = {}
): ReadonlyArray<Migration> => [
  {
    number: 1,
    name: "create_orchestrator_tables",
    title: "The orchestrator's tables: generations, workers, heartbeats, checkpoints.",
    up: OrchestratorTables.up(names),
    down: OrchestratorTables.down(names)
  },
  {
    number: 2,
    name: "create_event_store",
    title: "The event store, as pupsourcing creates it: events and aggregate heads.",
    up: EventStoreTables.up(names, options),
    down: EventStoreTables.down(names)
  }
]
