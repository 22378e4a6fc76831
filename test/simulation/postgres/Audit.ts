/**
 * Records what is committed on PostgreSQL for the checkers. Triggers, which only the test database has, write every
 * change to an audit table in the transaction that makes it.
 *
 * The audit is read by snapshots. What one snapshot contains beyond the previous one is complete: it includes every
 * change on which these changes depend. Within it, transactions are ordered by their last entries. Of two that touch
 * the same row, the first has written its last entry before the second acquires the row lock.
 */
import * as Effect from "effect/Effect"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import * as Rows from "../../../src/layers/postgres/coordination/Rows.ts"
import type { Request } from "../../../src/schema/ParkedEvent.ts"
import type { WorkerState } from "../../../src/schema/Worker.ts"

/** The session parameter with the worker's name, by which the audit attributes changes to workers. */
export const workerParameter = "simulation.worker"

const trigger = (table: string, what: string, value: string) => [
  `CREATE FUNCTION audit_${table}() RETURNS trigger LANGUAGE plpgsql AS $$
   DECLARE c record;
   BEGIN
     IF TG_OP = 'DELETE' THEN c := OLD; ELSE c := NEW; END IF;
     INSERT INTO audit (what, deleted, value) SELECT '${what}', TG_OP = 'DELETE', ${value};
     RETURN NULL;
   END $$`,
  `CREATE TRIGGER audit AFTER INSERT OR UPDATE OR DELETE ON ${table} FOR EACH ROW EXECUTE FUNCTION audit_${table}()`
]

const statements: ReadonlyArray<string> = [
  `CREATE TABLE audit (
     id bigserial PRIMARY KEY,
     xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
     begun timestamptz NOT NULL DEFAULT now(),
     at timestamptz NOT NULL DEFAULT clock_timestamp(),
     worker text DEFAULT current_setting('${workerParameter}', true),
     what text NOT NULL,
     deleted boolean NOT NULL,
     value json NOT NULL
   )`,
  "CREATE INDEX ON audit (xid)",
  // The read models: the effects of the events of each key, and a row that all keys share.
  `CREATE TABLE models (
     projection text, key text, count int NOT NULL, position bigint NOT NULL, ordered boolean NOT NULL,
     PRIMARY KEY (projection, key)
   )`,
  "CREATE TABLE totals (projection text PRIMARY KEY, count int NOT NULL)",
  ...trigger("orchestrator_checkpoints", "row", Rows.checkpointJson),
  ...trigger(
    "orchestrator_workers",
    "worker",
    `json_build_object('replicaSet', c.replica_set, 'workerId', c.worker_id, 'incarnation', c.incarnation::text,
       'projections', c.projections, 'state', c.state, 'generationId', c.generation_id::text)`
  ),
  ...trigger(
    "orchestrator_heartbeats",
    "heartbeat",
    `json_build_object('replicaSet', c.replica_set, 'workerId', c.worker_id, 'incarnation', c.incarnation::text,
       'at', extract(epoch FROM c.heartbeat_at) * 1000)`
  ),
  ...trigger(
    "orchestrator_generations",
    "generation",
    `json_build_object('replicaSet', c.replica_set, 'generation_id', c.generation_id::text, 'members', c.members,
       'state', c.state)`
  ),
  ...trigger(
    "orchestrator_parked_events",
    "parked",
    `json_build_object('projection', c.projection_name, 'position', c.position, 'key', c.key, 'keyHash', c.key_hash,
       'eventId', c.event_id, 'attempts', c.attempts, 'request', c.request)`
  ),
  ...trigger(
    "events",
    "event",
    `json_build_object('position', c.global_position, 'aggregateId', c.aggregate_id, 'aggregateType', c.aggregate_type,
       'eventType', c.event_type, 'version', c.aggregate_version,
       'correlationId', c.correlation_id, 'metadataText', c.metadata::text,
       'hashes', (SELECT json_object_agg(key, hashtext(key COLLATE "C")::int8 & 4294967295) FROM (VALUES
         (c.aggregate_id), (c.correlation_id), (c.bounded_context), (c.metadata->>'key')) AS keys (key)
         WHERE key IS NOT NULL))`
  ),
  ...trigger(
    "models",
    "model",
    `json_build_object('projection', c.projection, 'key', c.key, 'count', c.count,
       'position', c.position, 'ordered', c.ordered)`
  ),
  ...trigger("totals", "total", `json_build_object('projection', c.projection, 'count', c.count)`)
]

/** Creates the triggers and the read models in a migrated database. */
export const install = (sql: SqlClient.SqlClient): Effect.Effect<void, SqlError.SqlError> =>
  Effect.forEach(statements, (statement) => sql.unsafe(statement), { discard: true })

interface WorkerKey {
  readonly replicaSet: string
  readonly workerId: string
  readonly incarnation: string
}

/** One change; 64-bit numbers are text where they may not fit. */
export type Entry =
  & { readonly id: number; readonly xid: string; readonly worker: string | null }
  /** When its transaction began, and when the change happened; milliseconds since 1970. */
  & { readonly begun: number; readonly at: number }
  & { readonly deleted: boolean }
  & (
    | { readonly what: "row"; readonly value: Rows.CheckpointRow }
    | {
      readonly what: "worker"
      readonly value: WorkerKey & {
        readonly projections: ReadonlyArray<string>
        readonly state: WorkerState
        readonly generationId: string | null
      }
    }
    | { readonly what: "heartbeat"; readonly value: WorkerKey & { readonly at: number } }
    | {
      readonly what: "generation"
      readonly value: Rows.GenerationRow & { readonly replicaSet: string; readonly state: string }
    }
    | {
      readonly what: "parked"
      readonly value: {
        readonly projection: string
        readonly position: number
        readonly key: string
        readonly keyHash: number
        readonly eventId: string
        readonly attempts: number
        readonly request: Request | null
      }
    }
    | {
      readonly what: "event"
      readonly value: {
        readonly position: number
        readonly aggregateId: string
        readonly aggregateType: string
        readonly eventType: string
        readonly version: number
        readonly correlationId: string | null
        readonly metadataText: string | null
        /** The hashes of everything that may be its key. */
        readonly hashes: Readonly<Record<string, number>>
      }
    }
    | {
      readonly what: "model"
      readonly value: {
        readonly projection: string
        readonly key: string
        readonly count: number
        readonly position: number
        readonly ordered: boolean
      }
    }
    | { readonly what: "total"; readonly value: { readonly projection: string; readonly count: number } }
  )

/** The snapshot that precedes every transaction. */
export const nothing = "1:1:"

const byTransaction = (entries: ReadonlyArray<Entry>): ReadonlyArray<ReadonlyArray<Entry>> => {
  const transactions = new Map<string, Array<Entry>>()
  for (const entry of entries) {
    const transaction = transactions.get(entry.xid) ?? []
    transaction.push(entry)
    // Deleting first moves the transaction to the end, so that the order is that of the last entries.
    transactions.delete(entry.xid)
    transactions.set(entry.xid, transaction)
  }
  return [...transactions.values()]
}

/** The transactions that a new snapshot contains and an earlier one did not. */
export const read = Effect.fnUntraced(function*(sql: SqlClient.SqlClient, since: string) {
  const [row] = yield* sql<{ readonly snapshot: string; readonly entries: ReadonlyArray<Entry> | null }>`
    SELECT pg_current_snapshot()::text AS snapshot, (
      SELECT json_agg(json_build_object('id', a.id, 'xid', a.xid::text, 'begun', extract(epoch FROM a.begun) * 1000,
        'at', extract(epoch FROM a.at) * 1000, 'worker', a.worker, 'what', a.what, 'deleted', a.deleted, 'value', a.value) ORDER BY a.id)
      FROM audit AS a
      WHERE a.xid >= pg_snapshot_xmin(${since}::text::pg_snapshot)
        AND NOT pg_visible_in_snapshot(a.xid, ${since}::text::pg_snapshot)
    ) AS entries`
  return { snapshot: row!.snapshot, transactions: byTransaction(row!.entries ?? []) }
})
