/** What the tests of the migrations share: the tables of pupsourcing, and what a database contains. */
import { PgClient } from "@effect/sql-pg"
import { assert } from "@effect/vitest"
import { Effect, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import * as Roles from "./Roles.ts"

export const rows = Effect.fnUntraced(function*<A extends object>(text: string) {
  const sql = yield* SqlClient.SqlClient
  return yield* sql.unsafe<A>(text)
})

/** Everything that the catalog contains about tables, columns, constraints, indexes and sequences. */
export const catalog = (tables: string) =>
  rows(
    `SELECT c.oid::int8, c.relname::text, c.relkind::text, c.reloptions,
       (SELECT jsonb_agg(jsonb_build_array(a.attname, a.atttypid::int8, a.attnotnull, a.atthasdef) ORDER BY a.attnum)
        FROM pg_attribute a WHERE a.attrelid = c.oid) AS columns
     FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname NOT LIKE 'pg\\_%' AND n.nspname <> 'information_schema' AND c.relname ~ '${tables}'
     ORDER BY c.relname, c.oid`
  )

/** The tables as pupsourcing's own generator writes them (es/migrations/generator.go), retyped. */
export const pupsourcing = Effect.gen(function*() {
  yield* rows(`CREATE TABLE IF NOT EXISTS events (
    global_position BIGSERIAL PRIMARY KEY,
    bounded_context TEXT NOT NULL, aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL,
    aggregate_version BIGINT NOT NULL,
    event_id UUID NOT NULL UNIQUE, event_type TEXT NOT NULL, event_version INT NOT NULL DEFAULT 1,
    payload BYTEA NOT NULL, trace_id TEXT, correlation_id TEXT, causation_id TEXT, metadata JSONB,
    created_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    UNIQUE (bounded_context, aggregate_type, aggregate_id, aggregate_version))`)
  yield* rows(`CREATE INDEX IF NOT EXISTS idx_events_aggregate
    ON events (bounded_context, aggregate_type, aggregate_id, aggregate_version)`)
  yield* rows(`CREATE INDEX IF NOT EXISTS idx_events_event_type ON events (event_type, global_position)`)
  yield* rows(`CREATE INDEX IF NOT EXISTS idx_events_correlation
    ON events (correlation_id) WHERE correlation_id IS NOT NULL`)
  yield* rows(`CREATE TABLE IF NOT EXISTS aggregate_heads (
    bounded_context TEXT NOT NULL, aggregate_type TEXT NOT NULL, aggregate_id TEXT NOT NULL,
    aggregate_version BIGINT NOT NULL, updated_at TIMESTAMPTZ NOT NULL DEFAULT NOW(),
    PRIMARY KEY (bounded_context, aggregate_type, aggregate_id))`)
  yield* rows(`CREATE INDEX IF NOT EXISTS idx_aggregate_heads_updated ON aggregate_heads (updated_at)`)
})

export const append = (aggregate: string, version: number) =>
  rows(
    `INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    VALUES ('Identity', 'User', '${aggregate}', ${version}, gen_random_uuid(), 'UserCreated', '{}')`
  )

/** A role that owns nothing, and a way to run an effect as that role. */
export const poorRole = Effect.gen(function*() {
  // Before PostgreSQL 15 every role may create tables there.
  yield* rows("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
  const { name, url } = yield* Roles.make
  const layer = PgClient.layer({ url: Redacted.make(url.href), maxConnections: 1 })
  return {
    role: name,
    asRole: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.scoped(Effect.provide(self, layer))
  }
})

/** Asserts that the first statement of a migration file fails with this code and text. */
export const refusedByFile = Effect.fnUntraced(function*(file: ReadonlyArray<string>, code: string, text = "") {
  const { reason } = yield* Effect.flip(rows(file[0] ?? ""))
  assert.strictEqual((reason.cause as { code?: string }).code, code)
  assert.include(String(reason.cause), text)
})
