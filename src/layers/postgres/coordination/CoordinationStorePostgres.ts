/**
 * The coordination store on PostgreSQL. A decision is one short transaction under the decision lock: it reads the view,
 * locks the rows that it may change, makes the plan from them, and writes it.
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as SqlError from "effect/sql/SqlError"
import * as Checkpoint from "../../../schema/Checkpoint.ts"
import { StatementFailed, StoreError } from "../../../schema/Errors.ts"
import * as Plan from "../../../schema/Plan.ts"
import * as Abandonable from "../../../services/Abandonable.ts"
import { CoordinationStore } from "../../../services/CoordinationStore.ts"
import { Database } from "../Database.ts"
import { CoordinationSession, type OpenedSession } from "./CoordinationSession.ts"
import type * as Observations from "./Observations.ts"
import * as PlanWriter from "./PlanWriter.ts"
import * as Rows from "./Rows.ts"

interface Self {
  readonly database: Database["Service"]
  readonly coordination: CoordinationSession["Service"]
  /** The reads that wait for their turn on the session, by what they read. */
  readonly waiting: Map<string, Deferred.Deferred<Plan.View, StoreError>>
}

/** Attempts on a view that changes: another replica set takes over the same projections once, not repeatedly. */
const outdatedAttempts = 20

export const make: Effect.Effect<CoordinationStore, never, CoordinationSession | Database> = Effect.gen(
  function*() {
    const self: Self = { database: yield* Database, coordination: yield* CoordinationSession, waiting: new Map() }
    return CoordinationStore.of({
      preview: (request) => preview(self, request),
      apply: (request, previewed) => apply(self, request, previewed)
    })
  }
)

const preview = (self: Self, request: Plan.Request) =>
  Effect.flatMap(readShared(self, request), (view) => Effect.fromResult(Plan.make(view, request)))

/**
 * Reads the view, together with the other workers of this process that want the same one: a new generation wakes all of
 * them at once. Only a read that has not begun is shared, so that no view is older than the request for it.
 */
const readShared = (self: Self, request: Plan.Request): Effect.Effect<Plan.View, StoreError> =>
  // Uninterruptible, because a read that is recorded as waiting must also be started.
  Effect.flatMap(Effect.uninterruptible(joinRead(self, request)), Deferred.await)

/** Returns the result of the read that waits, which is started if there is none. */
const joinRead = Effect.fnUntraced(function*(self: Self, request: Plan.Request) {
  const { coordination, waiting } = self
  const key = JSON.stringify([request.registration.replicaSet, request.projections.map(({ name }) => name)])
  const shared = waiting.get(key)
  if (shared !== undefined) return shared
  const result = Deferred.makeUnsafe<Plan.View, StoreError>()
  const begin = () => {
    if (waiting.get(key) === result) waiting.delete(key)
  }
  waiting.set(key, result)
  // Not interrupted with the worker that began it, because others wait for its result.
  yield* Abandonable.startWith(
    coordination.use(
      "read the state of the replica set",
      (opened) => Effect.andThen(Effect.sync(begin), read(self, opened, request))
    ),
    (exit) => Effect.andThen(Effect.sync(begin), Deferred.done(result, exit))
  )
  return result
})

const apply = Effect.fnUntraced(function*(self: Self, request: Plan.Request, previewed: Plan.Plan | undefined) {
  const isOwn = previewed !== undefined && Plan.changesOwnRowsOnly(previewed, request)
  const written = isOwn ? yield* writeOwn(self, request, previewed) : undefined
  return written ?? (yield* applyExclusively(self, request))
})

/**
 * Writes a plan that changes only rows of this worker, in one statement and without the decision lock, so that the
 * hand-overs of several workers do not wait for each other. Returns undefined if it changed nothing.
 */
const writeOwn = (self: Self, request: Plan.Request, plan: Plan.Plan) =>
  self.coordination.use(
    "hand over ranges",
    Effect.fnUntraced(function*(opened) {
      const written = yield* PlanWriter.replaceRows(self.database.table, opened.sql, plan)
      if (written === undefined) return undefined
      yield* wake(self, opened, request, plan)
      return withParked(plan, written)
    })
  )

/** Awaited, because the process of a leaving worker may end right afterwards. */
const wake = ({ coordination }: Self, opened: OpenedSession, request: Plan.Request, plan: Plan.Plan) =>
  coordination.wake(opened, request.registration.replicaSet, Plan.concerned(plan, request))

const applyExclusively = (self: Self, request: Plan.Request) => {
  const { replicaSet } = request.registration
  return self.coordination.exclusively(
    "apply a plan",
    replicaSet,
    (opened) => decide(self, opened, request),
    (opened, { isChanged, plan }) => isChanged ? wake(self, opened, request, plan) : Effect.void
  ).pipe(
    Effect.map(({ plan }) => plan),
    Effect.retry({
      while: (error) => error._tag === "Outdated",
      times: outdatedAttempts - 1,
      schedule: Schedule.jittered(Schedule.spaced("10 millis"))
    }),
    Effect.catchTag("Outdated", (cause) =>
      Effect.fail(
        new StoreError({
          reason: new StatementFailed({
            operation: "apply a plan",
            detail: "the checkpoints of its projections keep changing under the decision",
            cause
          })
        })
      ))
  )
}

/** The plan after its rows were written: those of them that are without parked events are known as well. */
const withParked = (plan: Plan.Plan, written: ReadonlySet<string>): Plan.Plan => ({
  ...plan,
  withoutParked: new Set([...plan.withoutParked, ...written])
})

/** One decision, in a transaction that holds the decision lock. */
const decide = Effect.fnUntraced(function*(self: Self, opened: OpenedSession, request: Plan.Request) {
  const view = yield* lockCandidates(self, opened, request, yield* read(self, opened, request))
  const plan = yield* Effect.fromResult(Plan.make(view, request))
  const isChanged = request.leaving || !Plan.isEmpty(plan)
  if (!isChanged) return { plan, isChanged }
  const written = yield* PlanWriter.write(self.database.table, opened.sql, request, plan)
  return { plan: withParked(plan, written), isChanged }
})

interface ViewRow {
  readonly reading: Observations.Reading
  readonly generation: Rows.GenerationRow | null
  readonly checkpoints: ReadonlyArray<{
    readonly row: Rows.CheckpointRow
    readonly unchangedFor: number
    readonly ownerSilentFor: number | null
    /** Null for a row of another process. */
    readonly isParked: boolean | null
  }>
}

/** Reads the view in one statement, so that its parts belong together. */
const read = Effect.fnUntraced(function*(
  { coordination, database: { table } }: Self,
  opened: OpenedSession,
  { projections, registration: { replicaSet } }: Plan.Request
): Effect.fn.Return<Plan.View, SqlError.SqlError> {
  const { sql } = opened
  const names = projections.map(({ name }) => name)
  const askedAt = yield* Clock.monotonicTimeNanos
  const [row] = yield* sql<ViewRow>`
    SELECT
      ${
    coordination.reading(sql`w.state <> 'stopped'
        AND (w.replica_set = ${replicaSet} OR jsonb_exists_any(w.projections, ${names}::text[])
          OR (w.worker_id, w.incarnation) IN (
            SELECT c.worker_id, c.incarnation FROM ${
      table("checkpoints")
    } c WHERE c.projection_name = ANY (${names}::text[])
          ))`)
  } AS reading,
      (SELECT json_build_object('generation_id', g.generation_id::text, 'members', g.members)
        FROM ${table("generations")} g WHERE g.replica_set = ${replicaSet}
        ORDER BY g.generation_id DESC LIMIT 1) AS generation,
      (SELECT coalesce(json_agg(json_build_object('row', ${sql.literal(Rows.checkpointJson)},
          'unchangedFor', extract(epoch FROM clock_timestamp() - c.updated_at) * 1000,
          'ownerSilentFor', extract(epoch FROM clock_timestamp() - h.heartbeat_at) * 1000,
          'isParked', CASE WHEN c.incarnation = ANY (${[...coordination.members].map(String)}::text[]::bigint[]) THEN ${
    PlanWriter.hasParked(table, sql)
  } END)
          ORDER BY c.projection_name, c.range_start), '[]')
        FROM ${table("checkpoints")} c
        LEFT JOIN ${table("heartbeats")} h ON h.replica_set = c.replica_set AND h.worker_id = c.worker_id
          AND h.incarnation = c.incarnation
        WHERE c.projection_name = ANY (${names}::text[])) AS checkpoints`
  const { checkpoints, generation, reading } = row!
  const rows = checkpoints.map(({ row }) => Rows.toCheckpoint(row))
  const observed = yield* coordination.observe(opened, reading, askedAt)
  return {
    replicaSet,
    workers: observed.filter((worker) => worker.replicaSet === replicaSet),
    foreignWorkers: observed.filter((worker) => worker.replicaSet !== replicaSet),
    generation: generation === null ? undefined : Rows.toGeneration(replicaSet, generation),
    rows,
    rowAges: new Map(checkpoints.map(({ ownerSilentFor, unchangedFor }, index) => [
      Checkpoint.key(rows[index]!),
      { unchangedForMillis: unchangedFor, ownerSilentForMillis: ownerSilentFor ?? undefined }
    ])),
    withoutParked: new Set(
      checkpoints.flatMap(({ isParked }, index) => isParked === false ? [Checkpoint.key(rows[index]!)] : [])
    ),
    lockedKeys: new Set(),
    observerAgeMillis: Number(askedAt - opened.openedAt) / 1e6
  }
})

/** Locks the rows that the plan may change, except those that a batch has locked, and reads them again. */
const lockCandidates = Effect.fnUntraced(function*(
  { database: { table } }: Self,
  { sql }: OpenedSession,
  request: Plan.Request,
  view: Plan.View
): Effect.fn.Return<Plan.View, PlanWriter.Outdated | SqlError.SqlError> {
  const candidates = Plan.candidates(view, request)
  const rows = candidates.length === 0 ? [] : yield* sql<{ readonly row: Rows.CheckpointRow }>`
    SELECT ${sql.literal(Rows.checkpointJson)} AS row
    FROM ${table("checkpoints")} c
    JOIN json_to_recordset(${Rows.checkpointRecords(candidates)}::json) AS k (projection_name text, range_start bigint)
      ON c.projection_name = k.projection_name AND c.range_start = k.range_start
    ${sql.literal(Rows.lockInKeyOrder)}`
  const locked = new Map(
    rows.map(({ row }) => Rows.toCheckpoint(row)).map((row) => [Checkpoint.key(row), row] as const)
  )
  const lockedKeys = new Set(candidates.map(Checkpoint.key).filter((key) => !locked.has(key)))
  const current = view.rows.map((row) => locked.get(Checkpoint.key(row)) ?? row)
  if (!current.every((row, index) => isHeldAsBefore(row, view.rows[index]!))) {
    return yield* Effect.fail(new PlanWriter.Outdated())
  }
  return { ...view, rows: current, lockedKeys }
})

/**
 * Whether a row's range, replica set and fence are unchanged. If not, another replica set has claimed it, or its owner
 * has handed it over.
 */
const isHeldAsBefore = (row: Checkpoint.Checkpoint, before: Checkpoint.Checkpoint): boolean =>
  row.range.end === before.range.end && row.replicaSet === before.replicaSet &&
  Checkpoint.isSameFence(row.fence, before.fence)
