/** The state of the orchestrator's tables at one moment. The tables are public; users query them. */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import type { Generation, HashRange } from "pupsourcing-orchestrator"
import * as Invariants from "../../src/testing/Invariants.ts"
import { applicationName } from "./Database.ts"
import { replicaSet } from "./projections.ts"

/** One row of `orchestrator_checkpoints`. */
export interface Range extends HashRange.HashRange {
  readonly projection: string
  readonly position: number
  readonly worker: string | null
}

export interface Snapshot {
  /** Milliseconds by the database's clock. */
  readonly at: number
  /** When the newest generation was formed. */
  readonly formedAt: number
  readonly generation: Generation.Generation | undefined
  readonly rows: Invariants.Rows
  readonly ranges: ReadonlyArray<Range>
}

interface Found extends Invariants.Json {
  readonly at: number
  readonly formedAt: number | null
}

const millis = (time: string): string => `(extract(epoch FROM ${time}) * 1000)::float8`

export const take = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql.unsafe<{ readonly found: Found }>(
    `SELECT json_build_object(${Invariants.parts}, 'at', ${millis("clock_timestamp()")},
       'formedAt', (SELECT ${millis("max(created_at)")} FROM orchestrator_generations)) AS found`
  )
  const { at, formedAt } = row!.found
  const rows = Invariants.fromJson(row!.found)
  const snapshot: Snapshot = {
    at,
    formedAt: formedAt ?? at,
    generation: Invariants.newest(rows, replicaSet),
    rows,
    ranges: rows.checkpoints.map(({ position, projection, range, workerId }) => ({
      ...range,
      projection,
      position: Number(position),
      worker: workerId
    }))
  }
  return snapshot
})

export const rangesOf = (snapshot: Snapshot, worker: string, projection?: string): ReadonlyArray<Range> =>
  snapshot.ranges.filter((range) =>
    range.worker === worker && (projection === undefined || range.projection === projection)
  )

/** Whether the newest generation consists of these workers, and each of them holds exactly its share. */
export const isSettled = ({ rows }: Snapshot, workers: ReadonlyArray<string>): boolean =>
  Invariants.isSharedBy(rows, workers, replicaSet)

/** A transaction that a worker has open. */
export interface Batch {
  readonly state: string
  /** Milliseconds since its last statement ended, or began. */
  readonly stateAge: number
  /** Milliseconds since it began. */
  readonly age: number
}

/** The transactions in which a worker has written something that is not committed. */
export const batches = Effect.fnUntraced(function*(worker: string) {
  const sql = yield* SqlClient.SqlClient
  return yield* sql<Batch>`
    SELECT
      state,
      (extract(epoch FROM clock_timestamp() - state_change) * 1000)::float8 AS "stateAge",
      (extract(epoch FROM clock_timestamp() - xact_start) * 1000)::float8 AS age
    FROM pg_stat_activity
    WHERE application_name = ${applicationName(worker)} AND datname = current_database()
      AND xact_start IS NOT NULL AND backend_xid IS NOT NULL`
})
