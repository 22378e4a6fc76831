/** What the benchmarks of a fleet ask of and do to their database. */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { hashOf, keyOf } from "../../src/layers/postgres/HashSql.ts"

/** The read model of the handler `upsert`. */
export const createReadModel = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  sql`
    CREATE TABLE read_model (projection text, id text, events bigint NOT NULL, position bigint NOT NULL, PRIMARY KEY (projection, id))`)

/** The hashes of all events, by position. */
export const hashes = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql.unsafe<{ readonly position: number; readonly hash: number }>(
    `SELECT global_position::float8 AS position, (${hashOf(keyOf("aggregateId"))})::float8 AS hash FROM events`
  )
  return new Map(rows.map(({ hash, position }) => [position, hash]))
})

export interface Backlog {
  readonly events: number
  /** Size of each payload. */
  readonly bytes?: number
  readonly aggregates?: number
  readonly eventType?: string
}

/** Appends a backlog of events in one statement, and vacuums the table. */
export const append = Effect.fnUntraced(
  function*({ aggregates = 1000, bytes = 60, events, eventType = "Happened" }: Backlog) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    SELECT 'bench', 'Filled', 'filled-' || i % ${aggregates}::int, i / ${aggregates}::int + 1, gen_random_uuid(), ${eventType},
      convert_to(rpad('{"i":' || i || ',"pad":"', ${bytes - 2}::int, 'x') || '"}', 'UTF8')
    FROM generate_series(0, ${events}::int - 1) AS i`
    yield* sql`VACUUM ANALYZE events`
  }
)

/** Deletes all events. The positions start from the beginning again. */
export const empty = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`TRUNCATE events, aggregate_heads RESTART IDENTITY`
)

/** Makes the server count the statements of this database; see `statements`. Requires that it has loaded `pg_stat_statements`. */
export const countStatements = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE EXTENSION IF NOT EXISTS pg_stat_statements`
)

/** The number of statements that were executed in this database so far. The statement that asks counts the next time. */
export const statements = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly calls: number }>`
    SELECT coalesce(sum(calls), 0)::float8 AS calls FROM pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())`
  return row!.calls
})

/** Makes the counts of this database start from zero. */
export const resetStatements = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`SELECT pg_stat_statements_reset(0, (SELECT oid FROM pg_database WHERE datname = current_database()))`
)

/** The longest execution of a statement since the last reset of the counts, in milliseconds, and the statement. */
export const longestStatement = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly millis: number; readonly text: string }>`
    SELECT max_exec_time::float8 AS millis, query AS text FROM pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database()) AND query NOT LIKE '%pg_stat_statements%'
    ORDER BY max_exec_time DESC LIMIT 1`
  return row!
})
