/** The state of the orchestrator's tables at one moment. The tables are public; users query them. */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { HashRange } from "pupsourcing-orchestrator"
import { applicationName } from "./Database.ts"
import { names, replicaSet } from "./projections.ts"

export interface Worker {
  readonly id: string
  readonly incarnation: number
  readonly generation: number | null
  readonly partition: number
  readonly state: string
}

/** One row of `orchestrator_checkpoints`. */
export interface Range extends HashRange.HashRange {
  readonly projection: string
  readonly position: number
  readonly worker: string | null
  readonly halted: string | null
}

export interface Snapshot {
  /** Milliseconds by the database's clock. */
  readonly at: number
  readonly generation: { readonly id: number; readonly partitions: number; readonly formedAt: number } | null
  readonly workers: ReadonlyArray<Worker>
  readonly ranges: ReadonlyArray<Range>
}

export const take = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [snapshot] = yield* sql<Snapshot>`
    SELECT
      (extract(epoch FROM clock_timestamp()) * 1000)::float8 AS at,
      (
        SELECT json_build_object(
          'id', generation_id, 'partitions', total_partitions,
          'formedAt', (extract(epoch FROM created_at) * 1000)::float8
        )
        FROM orchestrator_generations WHERE replica_set = ${replicaSet} ORDER BY generation_id DESC LIMIT 1
      ) AS generation,
      (
        SELECT coalesce(json_agg(json_build_object(
          'id', worker_id, 'incarnation', incarnation, 'generation', generation_id,
          'partition', partition_key, 'state', state
        ) ORDER BY worker_id), '[]')
        FROM orchestrator_workers WHERE replica_set = ${replicaSet}
      ) AS workers,
      (
        SELECT coalesce(json_agg(json_build_object(
          'projection', projection_name, 'start', range_start, 'end', range_end, 'position', position,
          'worker', worker_id, 'halted', halted_error
        ) ORDER BY projection_name, range_start), '[]')
        FROM orchestrator_checkpoints WHERE replica_set = ${replicaSet}
      ) AS ranges`
  return snapshot ?? (yield* Effect.die(new Error("A statement that always gives a row gave none")))
})

export const rangesOf = (snapshot: Snapshot, worker: string, projection?: string): ReadonlyArray<Range> =>
  snapshot.ranges.filter((range) =>
    range.worker === worker && (projection === undefined || range.projection === projection)
  )

/** Whether the newest generation consists of these workers, and each of them holds exactly its share. */
export const isSettled = (snapshot: Snapshot, workers: ReadonlyArray<string>): boolean => {
  const { generation, ranges } = snapshot
  if (generation === null || generation.partitions !== workers.length) return false
  return workers.every((id) => {
    const worker = snapshot.workers.find((worker) => worker.id === id)
    if (worker === undefined || worker.partition < 0 || worker.generation !== generation.id) return false
    const share = HashRange.partition(worker.partition, generation.partitions)
    return names.every((name) =>
      HashRange.tiles(rangesOf(snapshot, id, name), share) && ranges.some(({ projection }) => projection === name)
    )
  })
}

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
