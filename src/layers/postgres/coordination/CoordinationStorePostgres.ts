/**
 * Decisions on PostgreSQL: one short transaction under an advisory lock reads the current state, locks the rows that
 * it may change, decides, and applies the decision.
 *
 * The lock is an advisory lock, because locking the newest generation's row would not exclude other decisions: the next
 * generation is a new row, which no transaction has locked.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Checkpoint from "../../../schema/Checkpoint.ts"
import { StoreFailure } from "../../../schema/Errors.ts"
import type * as Generation from "../../../schema/Generation.ts"
import * as Plan from "../../../schema/Plan.ts"
import { CoordinationStore } from "../../../services/CoordinationStore.ts"
import type { Opened } from "../connection/Session.ts"
import { Database } from "../Database.ts"
import * as CoordinationSession from "./CoordinationSession.ts"
import * as Rows from "./Rows.ts"

/** How many generations, and for how long stopped workers, are kept for people to read. */
const keptGenerations = 100n
const keptWorkers = "7 days"

/** Attempts on a view that changes: another replica set takes over the same projections once, not repeatedly. */
const outdatedAttempts = 20

interface ViewRow {
  readonly workers: ReadonlyArray<Rows.WorkerRow>
  readonly generation: Rows.GenerationRow | null
  readonly checkpoints: ReadonlyArray<Rows.CheckpointRow>
  readonly own_present: boolean
}

/**
 * The rows of the view have changed since it was read: another replica set claimed or inserted rows. The decision is
 * retried from scratch.
 */
class Outdated {
  readonly _tag = "Outdated"
}

/**
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<
  CoordinationStore["Service"],
  never,
  CoordinationSession.CoordinationSession | Database
> = Effect.gen(function*() {
  const database = yield* Database
  const coordination = yield* CoordinationSession.CoordinationSession
  const generations = database.table("generations")
  const workers = database.table("workers")
  const heartbeats = database.table("heartbeats")
  const checkpoints = database.table("checkpoints")

  const read = Effect.fnUntraced(function*(opened: Opened<CoordinationSession.Observations>, request: Plan.Request) {
    const { sql } = opened
    const { replicaSet } = request.registration
    const names = request.projections.map((projection) => projection.name)
    const askedAt = yield* Clock.monotonicTimeNanos
    const rows = yield* sql<ViewRow>`
      SELECT
        (SELECT coalesce(json_agg(${sql.literal(coordination.workerJson)} ORDER BY w.incarnation), '[]')
          FROM ${sql.literal(coordination.workersFrom)}
          WHERE w.state <> 'stopped'
            AND (w.replica_set = ${replicaSet} OR jsonb_exists_any(w.projections, ${names}::text[]))) AS workers,
        (SELECT json_build_object('generation_id', g.generation_id::text, 'members', g.members)
          FROM ${generations} g WHERE g.replica_set = ${replicaSet}
          ORDER BY g.generation_id DESC LIMIT 1) AS generation,
        (SELECT coalesce(json_agg(${sql.literal(Rows.checkpointJson)} ORDER BY c.projection_name, c.range_start), '[]')
          FROM ${checkpoints} c WHERE c.projection_name = ANY (${names}::text[])) AS checkpoints,
        ${sql.literal(coordination.ownPresent())} AS own_present`
    const row = rows[0]!
    const observed = yield* coordination.observe(opened, {
      askedAt,
      workers: row.workers,
      ownPresent: row.own_present
    })
    const observerAgeMillis = Number(askedAt - opened.openedAt) / 1e6
    const view: Plan.View = {
      replicaSet,
      workers: observed.filter((worker) => worker.replicaSet === replicaSet),
      generation: row.generation === null ? undefined : Rows.toGeneration(replicaSet, row.generation),
      rows: row.checkpoints.map(Rows.toCheckpoint),
      lockedKeys: new Set(),
      observerAgeMillis,
      foreignCarriers: observed.filter((worker) => worker.replicaSet !== replicaSet)
    }
    return view
  })

  /** Locks the rows, except those that a batch has locked, and returns their current values by key. */
  const lock = Effect.fnUntraced(function*(
    { sql }: Opened<CoordinationSession.Observations>,
    rows: ReadonlyArray<Checkpoint.Checkpoint>
  ) {
    if (rows.length === 0) return new Map<string, Checkpoint.Checkpoint>()
    const locked = yield* sql<{ readonly row: Rows.CheckpointRow }>`
      SELECT ${sql.literal(Rows.checkpointJson)} AS row
      FROM ${checkpoints} c
      JOIN json_to_recordset(${Rows.checkpointRecords(rows)}::json) AS k (projection_name text, range_start bigint)
        ON c.projection_name = k.projection_name AND c.range_start = k.range_start
      ORDER BY c.projection_name COLLATE "C", c.range_start
      FOR UPDATE OF c SKIP LOCKED`
    return new Map(locked.map(({ row }) => {
      const checkpoint = Rows.toCheckpoint(row)
      return [Checkpoint.key(checkpoint), checkpoint] as const
    }))
  })

  const form = Effect.fnUntraced(function*(
    { sql }: Opened<CoordinationSession.Observations>,
    generation: Generation.Generation,
    leaderId: string
  ) {
    const { generationId, members, replicaSet } = generation
    // Everything but the insert is informational, so a row that another session has locked is left to the next
    // generation.
    yield* sql`
      WITH superseded AS (
        UPDATE ${generations} g SET state = 'superseded', superseded_at = clock_timestamp()
        FROM (
          SELECT generation_id FROM ${generations}
          WHERE replica_set = ${replicaSet} AND state <> 'superseded'
          FOR NO KEY UPDATE SKIP LOCKED
        ) older
        WHERE g.replica_set = ${replicaSet} AND g.generation_id = older.generation_id
      ), pruned AS (
        DELETE FROM ${generations} g
        USING (
          SELECT generation_id FROM ${generations}
          WHERE replica_set = ${replicaSet} AND state = 'superseded' AND generation_id <= ${
      generationId - keptGenerations
    }
          FOR UPDATE SKIP LOCKED
        ) oldest
        WHERE g.replica_set = ${replicaSet} AND g.generation_id = oldest.generation_id
      ), forgotten AS (
        DELETE FROM ${workers} w
        USING (
          SELECT worker_id FROM ${workers}
          WHERE replica_set = ${replicaSet} AND state = 'stopped'
            AND stopped_at < clock_timestamp() - ${keptWorkers}::text::interval
          FOR UPDATE SKIP LOCKED
        ) gone
        WHERE w.replica_set = ${replicaSet} AND w.worker_id = gone.worker_id
        RETURNING w.worker_id, w.incarnation
      ), silent AS (
        DELETE FROM ${heartbeats} h USING forgotten f
        WHERE h.replica_set = ${replicaSet} AND h.worker_id = f.worker_id AND h.incarnation = f.incarnation
      )
      INSERT INTO ${generations} (replica_set, generation_id, members, total_partitions, leader_id)
      VALUES (${replicaSet}, ${generationId}, ${Rows.memberRecords(generation)}::jsonb, ${members.length}, ${leaderId})`
  })

  const stop = (
    { sql }: Opened<CoordinationSession.Observations>,
    replicaSet: string,
    stopped: ReadonlyArray<{ readonly incarnation: bigint }>,
    evictedBy: string | undefined
  ) =>
    sql`
      UPDATE ${workers}
      SET state = 'stopped', stopped_at = clock_timestamp(), partition_key = -1, evicted_by = ${evictedBy ?? null}::text
      WHERE replica_set = ${replicaSet} AND state <> 'stopped'
        AND incarnation = ANY (${stopped.map((worker) => String(worker.incarnation))}::text[]::bigint[])`

  const carry = (
    { sql }: Opened<CoordinationSession.Observations>,
    { incarnation, replicaSet, workerId }: Plan.Request["registration"],
    projections: ReadonlyArray<string>
  ) =>
    sql`
      UPDATE ${workers} SET projections = ${JSON.stringify(projections)}::jsonb
      WHERE replica_set = ${replicaSet} AND worker_id = ${workerId} AND incarnation = ${incarnation}`

  const create = Effect.fnUntraced(function*(
    { sql }: Opened<CoordinationSession.Observations>,
    rows: ReadonlyArray<Checkpoint.Checkpoint>
  ) {
    const created = yield* sql`
      INSERT INTO ${checkpoints} (projection_name, range_start, range_end, position, replica_set, filter)
      SELECT r.projection_name, r.range_start, r.range_end, r.position, r.replica_set, r.filter
      FROM json_to_recordset(${Rows.checkpointRecords(rows)}::json) AS r ${sql.literal(Rows.checkpointRecord)}
      ORDER BY r.projection_name COLLATE "C"
      ON CONFLICT DO NOTHING
      RETURNING 1`
    if (created.length < rows.length) return yield* Effect.fail(new Outdated())
  })

  const remove = ({ sql }: Opened<CoordinationSession.Observations>, rows: ReadonlyArray<Checkpoint.Checkpoint>) =>
    sql`
      DELETE FROM ${checkpoints} c
      USING json_to_recordset(${Rows.checkpointRecords(rows)}::json) AS r (projection_name text, range_start bigint)
      WHERE c.projection_name = r.projection_name AND c.range_start = r.range_start`

  const change = ({ sql }: Opened<CoordinationSession.Observations>, rows: ReadonlyArray<Checkpoint.Checkpoint>) =>
    sql`
      UPDATE ${checkpoints} c
      SET range_end = r.range_end, position = r.position, replica_set = r.replica_set, worker_id = r.worker_id,
        incarnation = r.incarnation, generation_id = r.generation_id, filter = r.filter,
        halted_since = r.halted_since, halted_error = r.halted_error, halted_position = r.halted_position,
        halted_event_id = r.halted_event_id, halted_hash = r.halted_hash, halted_incarnation = r.halted_incarnation,
        updated_at = clock_timestamp()
      FROM json_to_recordset(${Rows.checkpointRecords(rows)}::json) AS r ${sql.literal(Rows.checkpointRecord)}
      WHERE c.projection_name = r.projection_name AND c.range_start = r.range_start`

  const cutOff = ({ sql }: Opened<CoordinationSession.Observations>, rows: ReadonlyArray<Checkpoint.Checkpoint>) =>
    sql`
      INSERT INTO ${checkpoints} (projection_name, range_start, range_end, position, replica_set, worker_id,
        incarnation, generation_id, filter, halted_since, halted_error, halted_position, halted_event_id, halted_hash,
        halted_incarnation)
      SELECT r.* FROM json_to_recordset(${Rows.checkpointRecords(rows)}::json)
        AS r ${sql.literal(Rows.checkpointRecord)}`

  const write = Effect.fnUntraced(function*(
    opened: Opened<CoordinationSession.Observations>,
    request: Plan.Request,
    plan: Plan.Plan,
    locked: ReadonlyMap<string, Checkpoint.Checkpoint>
  ) {
    const { replicaSet, workerId } = request.registration
    if (Plan.isEmpty(plan) && !request.leaving) return false
    if (plan.evict.length > 0) yield* stop(opened, replicaSet, plan.evict, workerId)
    if (request.leaving) yield* stop(opened, replicaSet, [request.registration], undefined)
    if (plan.carry !== undefined) yield* carry(opened, request.registration, plan.carry)
    if (plan.form !== undefined) yield* form(opened, plan.form, workerId)
    if (plan.create.length > 0) yield* create(opened, plan.create)
    if (plan.remove.length > 0) yield* remove(opened, plan.remove)
    const created = new Set(plan.create.map(Checkpoint.key))
    const exists = (row: Checkpoint.Checkpoint) => locked.has(Checkpoint.key(row)) || created.has(Checkpoint.key(row))
    const changed = Plan.written(plan).filter(exists)
    const cut = Plan.written(plan).filter((row) => !exists(row))
    if (changed.length > 0) yield* change(opened, changed)
    if (cut.length > 0) yield* cutOff(opened, cut)
    return true
  })

  const apply: CoordinationStore["Service"]["apply"] = (request) =>
    coordination.exclusively(
      "apply a plan",
      request.registration.replicaSet,
      Effect.fnUntraced(function*(opened) {
        const before = yield* read(opened, request)
        const candidates = Plan.candidates(before, request)
        const locked = yield* lock(opened, candidates)
        const view: Plan.View = {
          ...before,
          rows: before.rows.map((row) => locked.get(Checkpoint.key(row)) ?? row),
          lockedKeys: new Set(candidates.map(Checkpoint.key).filter((key) => !locked.has(key)))
        }
        if (!before.rows.every((row, index) => sameHolding(row, view.rows[index]!))) {
          return yield* Effect.fail(new Outdated())
        }
        const plan = yield* Effect.fromResult(Plan.make(view, request))
        return { plan, changed: yield* write(opened, request, plan, locked) }
      })
    ).pipe(
      Effect.retry({
        while: (error) => error._tag === "Outdated",
        times: outdatedAttempts - 1,
        schedule: Schedule.jittered(Schedule.spaced("10 millis"))
      }),
      Effect.catchTag("Outdated", (error) =>
        Effect.fail(
          new StoreFailure({
            operation: "apply a plan",
            detail: "the checkpoints of its projections keep changing under the decision",
            cause: error
          })
        )),
      // Sent after the commit and awaited, because the process of a leaving worker may end right afterwards.
      Effect.tap(({ changed }) => changed ? coordination.wake(request.registration.replicaSet) : Effect.void),
      Effect.map(({ plan }) => plan)
    )

  const preview: CoordinationStore["Service"]["preview"] = (request) =>
    coordination.use(
      "read the state of the replica set",
      (opened) => Effect.flatMap(read(opened, request), (view) => Effect.fromResult(Plan.make(view, request)))
    )

  return CoordinationStore.of({ preview, apply })
})

/**
 * Whether a row's range, replica set and fence are unchanged. Within a replica set only decisions change them, so a
 * difference was made by another replica set.
 */
const sameHolding = (a: Checkpoint.Checkpoint, b: Checkpoint.Checkpoint): boolean =>
  a.range.end === b.range.end && a.replicaSet === b.replicaSet && Checkpoint.isSameFence(a.fence, b.fence)
