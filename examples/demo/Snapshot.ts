/** What the demo shows of the status at one moment. */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { HashRange, Projections, type Status } from "pupsourcing-orchestrator"
import { applicationName } from "./Database.ts"
import { replicaSet } from "./projections.ts"

/** A range of a projection. */
export interface Range extends HashRange.HashRange {
  readonly projection: string
  readonly position: number
  readonly worker: string | undefined
}

export interface Snapshot {
  readonly status: Status.Status
  /** Milliseconds by the database's clock. */
  readonly at: number
  /** When the newest generation was formed. */
  readonly formedAt: number
  readonly generation: Status.Generation | undefined
  readonly workers: ReadonlyArray<Status.Worker>
  readonly ranges: ReadonlyArray<Range>
}

export const take = Effect.gen(function*() {
  const status = yield* (yield* Projections.Projections).status
  const { generation, projections, workers } = status.replicaSets.find((one) => one.replicaSet === replicaSet) ??
    { generation: undefined, projections: [], workers: [] }
  const snapshot: Snapshot = {
    status,
    at: status.at.getTime(),
    formedAt: (generation?.formedAt ?? status.at).getTime(),
    generation,
    workers,
    ranges: projections.flatMap(({ projection, ranges }) =>
      ranges.map(({ end, owner, position, start }) => ({
        start,
        end,
        projection,
        position: Number(position),
        worker: owner
      }))
    )
  }
  return snapshot
})

export const rangesOf = (snapshot: Snapshot, worker: string, projection?: string): ReadonlyArray<Range> =>
  snapshot.ranges.filter((range) =>
    range.worker === worker && (projection === undefined || range.projection === projection)
  )

/** Whether the newest generation consists of these workers, and each of them owns exactly its partition. */
export const isSettled = (snapshot: Snapshot, ids: ReadonlyArray<string>): boolean =>
  snapshot.generation?.partitions === ids.length && snapshot.workers.length === ids.length &&
  ids.every((id) => {
    const worker = snapshot.workers.find(({ workerId }) => workerId === id)
    return worker?.state === "running" && worker.generationId === snapshot.generation?.generationId &&
      worker.partition !== undefined &&
      worker.projections.every((projection) =>
        HashRange.tiles(rangesOf(snapshot, id, projection), HashRange.partition(worker.partition!, ids.length))
      )
  })

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
