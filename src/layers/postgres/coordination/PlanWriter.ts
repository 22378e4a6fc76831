/** Writes a plan, in the transaction of the decision. The rows that it changes are locked already. */
import * as Effect from "effect/Effect"
import type * as SqlClient from "effect/sql/SqlClient"
import * as Checkpoint from "../../../schema/Checkpoint.ts"
import type * as Generation from "../../../schema/Generation.ts"
import * as Plan from "../../../schema/Plan.ts"
import type { Registration } from "../../../schema/Worker.ts"
import type { Database } from "../Database.ts"
import * as Rows from "./Rows.ts"

/** How many generations, and for how long stopped workers, are kept for people to read. */
const keptGenerations = 100n
const keptWorkers = "7 days"

type Table = Database["Service"]["table"]

/** Writes the plan. Returns the keys of the written rows whose ranges have no parked events. */
export const write = Effect.fnUntraced(function*(
  table: Table,
  sql: SqlClient.SqlClient,
  { leaving, registration }: Plan.Request,
  plan: Plan.Plan
) {
  const { carry, create, evict, form } = plan
  const { replicaSet, workerId } = registration
  if (evict.length > 0) yield* stopWorkers(table, sql, { replicaSet, workers: evict, evictedBy: workerId })
  if (leaving) yield* stopWorkers(table, sql, { replicaSet, workers: [registration], evictedBy: undefined })
  if (carry !== undefined) yield* writeProjections(table, sql, registration, carry)
  if (form !== undefined) yield* insertGeneration(table, sql, form, workerId)
  if (create.length > 0) yield* createRows(table, sql, create)
  const withoutParked = yield* replaceRows(table, sql, plan)
  return withoutParked ?? (yield* Effect.fail(new Outdated()))
})

const stopWorkers = (
  table: Table,
  sql: SqlClient.SqlClient,
  { evictedBy, replicaSet, workers }: {
    readonly replicaSet: string
    readonly workers: ReadonlyArray<{ readonly incarnation: bigint }>
    readonly evictedBy: string | undefined
  }
) =>
  sql`
    UPDATE ${table("workers")}
    SET state = 'stopped', stopped_at = clock_timestamp(), partition_key = -1, evicted_by = ${evictedBy ?? null}::text
    WHERE replica_set = ${replicaSet} AND state <> 'stopped'
      AND incarnation = ANY (${workers.map(({ incarnation }) => String(incarnation))}::text[]::bigint[])`

const writeProjections = (
  table: Table,
  sql: SqlClient.SqlClient,
  { incarnation, replicaSet, workerId }: Registration,
  projections: ReadonlyArray<string>
) =>
  sql`
    UPDATE ${table("workers")} SET projections = ${JSON.stringify(projections)}::jsonb
    WHERE replica_set = ${replicaSet} AND worker_id = ${workerId} AND incarnation = ${incarnation}`

/**
 * Inserts the generation. Everything else in the statement is informational, so a row that another session has locked is
 * left to the next generation.
 */
const insertGeneration = (
  table: Table,
  sql: SqlClient.SqlClient,
  generation: Generation.Generation,
  leaderId: string
) => {
  const { generationId, members, replicaSet } = generation
  const [generations, workers] = [table("generations"), table("workers")]
  return sql`
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
      DELETE FROM ${table("heartbeats")} h USING forgotten f
      WHERE h.replica_set = ${replicaSet} AND h.worker_id = f.worker_id AND h.incarnation = f.incarnation
    )
    INSERT INTO ${generations} (replica_set, generation_id, members, total_partitions, leader_id)
    VALUES (${replicaSet}, ${generationId}, ${Rows.memberRecords(generation)}::jsonb, ${members.length}, ${leaderId})`
}

/** Inserts the first rows of projections. Fails with `Outdated` if another replica set has inserted some meanwhile. */
const createRows = Effect.fnUntraced(function*(
  table: Table,
  sql: SqlClient.SqlClient,
  rows: ReadonlyArray<Checkpoint.Checkpoint>
) {
  const created = yield* sql`
    INSERT INTO ${table("checkpoints")} (projection_name, range_start, range_end, position, replica_set, filter)
    SELECT r.projection_name, r.range_start, r.range_end, r.position, r.replica_set, r.filter
    FROM json_to_recordset(${Rows.checkpointRecords(rows)}::json) AS r ${sql.literal(Rows.checkpointRecord)}
    ORDER BY r.projection_name COLLATE "C"
    ON CONFLICT DO NOTHING
    RETURNING 1`
  if (created.length < rows.length) return yield* Effect.fail(new Outdated())
})

/**
 * SQL: whether a row `c` is as the record `r`. An operator may add a request to a halt at any time. The other columns of
 * a halt are not compared: they may be null in older rows, which a checkpoint does not represent.
 */
export const isUnchanged = `c.range_end = r.range_end AND c.position = r.position AND c.replica_set = r.replica_set
        AND c.filter = r.filter AND (c.halted_since IS NULL) = (r.halted_since IS NULL)
        AND c.halted_request IS NOT DISTINCT FROM r.halted_request
        AND c.worker_id IS NOT DISTINCT FROM r.worker_id AND c.incarnation IS NOT DISTINCT FROM r.incarnation
        AND c.generation_id IS NOT DISTINCT FROM r.generation_id`

/**
 * Replaces the rows `plan.replaced` by `Plan.written`, if each of them is unchanged and not locked; otherwise changes
 * nothing and returns undefined. Returns the keys of the written rows whose ranges have no parked events. A released row
 * has no fence; a part that was cut off is a new row.
 */
export const replaceRows = Effect.fnUntraced(function*(table: Table, sql: SqlClient.SqlClient, plan: Plan.Plan) {
  const { replaced } = plan
  if (replaced.length === 0) return new Set<string>()
  const checkpoints = table("checkpoints")
  const rows = yield* sql<{ readonly row: WrittenRow }>`
    WITH old AS (
      SELECT c.projection_name, c.range_start
      FROM ${checkpoints} c
      JOIN json_to_recordset(${Rows.checkpointRecords(replaced)}::json) AS r ${sql.literal(Rows.checkpointRecord)}
        ON c.projection_name = r.projection_name AND c.range_start = r.range_start
      WHERE ${sql.literal(isUnchanged)}
      ${sql.literal(Rows.lockInKeyOrder)}
    ), new AS (
      SELECT r.* FROM json_to_recordset(${Rows.checkpointRecords(Plan.written(plan))}::json)
        AS r ${sql.literal(Rows.checkpointRecord)}
      WHERE (SELECT count(*) FROM old) = ${replaced.length}
    ), removed AS (
      DELETE FROM ${checkpoints} c USING old
      WHERE c.projection_name = old.projection_name AND c.range_start = old.range_start AND EXISTS (SELECT FROM new)
        AND NOT EXISTS (
          SELECT FROM new r WHERE r.projection_name = old.projection_name AND r.range_start = old.range_start)
    ), changed AS (
      UPDATE ${checkpoints} c
      SET range_end = r.range_end, position = r.position, replica_set = r.replica_set, worker_id = r.worker_id,
        incarnation = r.incarnation, generation_id = r.generation_id, filter = r.filter,
        halted_since = r.halted_since, halted_error = r.halted_error, halted_position = r.halted_position,
        halted_event_id = r.halted_event_id, halted_hash = r.halted_hash, halted_incarnation = r.halted_incarnation,
        halted_request = r.halted_request, updated_at = clock_timestamp()
      FROM new r JOIN old ON old.projection_name = r.projection_name AND old.range_start = r.range_start
      WHERE c.projection_name = r.projection_name AND c.range_start = r.range_start
    ), cut_off AS (
      INSERT INTO ${checkpoints} (projection_name, range_start, range_end, position, replica_set, worker_id,
        incarnation, generation_id, filter, halted_since, halted_error, halted_position, halted_event_id, halted_hash,
        halted_incarnation, halted_request)
      SELECT r.* FROM new r
      WHERE NOT EXISTS (
        SELECT FROM old WHERE old.projection_name = r.projection_name AND old.range_start = r.range_start)
    )
    SELECT json_build_object('projection', c.projection_name, 'range', json_build_object('start', c.range_start,
      'end', c.range_end), 'isParked', ${hasParked(table, sql)}) AS row
    FROM new c`
  if (rows.length === 0) return undefined
  return new Set(rows.flatMap(({ row }) => row.isParked ? [] : [Checkpoint.key(row)]))
})

/** A row that was written, and whether its range has parked events. */
interface WrittenRow extends Pick<Checkpoint.Checkpoint, "projection" | "range"> {
  readonly isParked: boolean
}

/** SQL: whether the range of a checkpoint `c` has parked events. */
export const hasParked = (table: Table, sql: SqlClient.SqlClient) =>
  sql`EXISTS (
      SELECT FROM ${table("parkedEvents")} AS p
      WHERE p.projection_name = c.projection_name AND p.key_hash >= c.range_start AND p.key_hash < c.range_end
    )`

/** Rows of the view have changed since it was read. The decision is retried from scratch. */
export class Outdated {
  readonly _tag = "Outdated"
}
