/** Compares the tables with what this library needs. */
import * as Effect from "effect/Effect"
import { SchemaVersionMismatch } from "../../../schema/Errors.ts"
import * as TableNames from "../../../schema/TableNames.ts"
import * as EventStoreTables from "./EventStoreTables.ts"
import { EventStoreDiffers, EventStoreElsewhere, type Refusal, TablesNotOurs } from "./MigrationErrors.ts"
import * as OrchestratorTables from "./OrchestratorTables.ts"
import * as Privileges from "./Privileges.ts"
import { literal } from "./Sql.ts"
import { exists, requirePrivileges, type Transaction } from "./Transaction.ts"

/**
 * The state of the tables in the database.
 *
 * @category models
 * @since 0.1.0
 */
export interface Status {
  /** The version of the orchestrator's tables; absent if they have not been created completely. */
  readonly version: number | undefined
  /** The version that this library creates. */
  readonly expected: number
  readonly tables: ReadonlyArray<{
    readonly key: TableNames.TableKey
    /** Qualified and quoted. */
    readonly name: string
    readonly exists: boolean
    /** Whether it exists but was not created by this library; see `TablesNotOurs`. */
    readonly isForeign: boolean
  }>
  /** The differences between the tables and what this library relies on. */
  readonly differences: ReadonlyArray<EventStoreTables.Difference>
  /** The error with which `up` would fail; absent if it may run. */
  readonly refusal: Refusal | undefined
}

/** Returns the status of the tables. */
export const inspect = Effect.fnUntraced(function*(transaction: Transaction, options: EventStoreTables.UpOptions) {
  const { names, query } = transaction
  yield* requireReading(transaction)
  const differences = yield* query<EventStoreTables.Difference>(EventStoreTables.differences(names))
  const refusal = (yield* findOrchestratorRefusal(transaction)) ??
    (yield* findEventStoreRefusal(transaction, differences, options))
  const foreign = refusal instanceof TablesNotOurs ? refusal.keys : []
  const status: Status = {
    version: yield* findVersion(transaction),
    expected: OrchestratorTables.schemaVersion,
    tables: yield* Effect.forEach(TableNames.keys, (key) =>
      Effect.map(exists(transaction, key), (exists) => ({
        key,
        name: TableNames.qualified(names, key),
        exists,
        isForeign: foreign.includes(key)
      }))),
    differences,
    refusal
  }
  return status
})

/** Fails if the role may not resolve the names or read the meta table. */
export const requireReading = (transaction: Transaction) =>
  Effect.andThen(
    requirePrivileges(transaction, Privileges.toUseSchemas(transaction.names)),
    requirePrivileges(transaction, Privileges.toRead(transaction.names, "meta"))
  )

/** The status, and which of the two migrations has something to do. Fails if the tables may not be changed. */
export const plan = Effect.fnUntraced(function*(transaction: Transaction, options: EventStoreTables.UpOptions) {
  const status = yield* inspect(transaction, options)
  if (status.refusal !== undefined) return yield* status.refusal
  const isMissing = (keys: ReadonlyArray<TableNames.TableKey>) =>
    status.tables.some((table) => !table.exists && keys.includes(table.key))
  return {
    status,
    orchestrator: isMissing(OrchestratorTables.owned) || status.version !== status.expected ||
      (yield* lacksEventsTable(transaction)),
    eventStore: isMissing(EventStoreTables.owned)
  }
})

const findVersion = Effect.fnUntraced(function*(transaction: Transaction) {
  if (!(yield* exists(transaction, "meta"))) return undefined
  const rows = yield* transaction.query<{ schema_version: number }>(
    `SELECT schema_version FROM ${TableNames.qualified(transaction.names, "meta")}`
  )
  return rows[0]?.schema_version
})

/** The reason why the orchestrator's tables may not be changed; undefined if they may. */
export const findOrchestratorRefusal = Effect.fnUntraced(function*(transaction: Transaction) {
  const { names, query } = transaction
  if (yield* exists(transaction, "meta")) {
    const [row] = yield* query<{ version: number; events: string | null }>(
      `SELECT schema_version AS version, ${OrchestratorTables.otherEventsTable(names)} AS events
       FROM ${TableNames.qualified(names, "meta")} AS m`
    )
    const expected = OrchestratorTables.schemaVersion
    if (row !== undefined && row.version > expected) return new SchemaVersionMismatch({ found: row.version, expected })
    const otherEvents = OrchestratorTables.otherEvents(names, row?.events ?? null)
    if (otherEvents !== undefined) return otherEvents
  }
  const strangers = yield* query<{ key: string; name: string }>(OrchestratorTables.strangers(names))
  return strangers.length > 0
    ? new TablesNotOurs({ tables: strangers.map(({ name }) => name), keys: strangers.map(({ key }) => key) })
    : undefined
})

/** The reason why no event store may be created, or this one not be used; undefined if it may. */
const findEventStoreRefusal = (
  transaction: Transaction,
  differences: ReadonlyArray<EventStoreTables.Difference>,
  { newEventStore }: EventStoreTables.UpOptions
) => {
  const blocking = differences.filter((difference) => difference.blocking)
  if (blocking.length > 0) {
    return Effect.succeed(new EventStoreDiffers({ differences: blocking.map(EventStoreTables.describe) }))
  }
  return newEventStore === true ? Effect.undefined : findElsewhere(transaction)
}

/** Finds an event store with events on the search path when the expected one does not exist. */
const findElsewhere = Effect.fnUntraced(function*(transaction: Transaction) {
  const { names, query } = transaction
  for (const { name, schema } of yield* query<{ name: string; schema: string }>(EventStoreTables.elsewhere(names))) {
    const [readable] = yield* query<{ is: boolean }>(`SELECT has_table_privilege(${literal(name)}, 'SELECT') AS is`)
    // Tables that the role may not read are assumed to hold events.
    const holdsEvents = readable?.is !== true ||
      (yield* query<object>(`SELECT FROM ${name} LIMIT 1`)).length > 0
    if (holdsEvents) {
      return new EventStoreElsewhere({ missing: TableNames.qualified(names, "events"), found: name, schema })
    }
  }
  return undefined
})

/** Whether the meta table does not name the events table. Its first version lacked the column. */
const lacksEventsTable = Effect.fnUntraced(function*(transaction: Transaction) {
  const [row] = yield* transaction.query<{ lacks: boolean }>(
    `SELECT ${OrchestratorTables.eventsTable} IS NULL AS lacks FROM ${
      TableNames.qualified(transaction.names, "meta")
    } AS m`
  )
  return row?.lacks === true
})
