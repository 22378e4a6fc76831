/** The events that the benchmarks read, and the read model that they write. */
import { Effect } from "effect"
import { SqlClient } from "effect/sql"

/** Appends events with a payload of 60 bytes, as 1,000 aggregates would, in one statement. */
export const append = Effect.fnUntraced(function*(count: number) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    SELECT 'bench', 'Thing', 'thing-' || i % 1000, i / 1000 + 1, gen_random_uuid(), 'Happened',
      convert_to(rpad('{"i":' || i || ',"pad":"', 58, 'x') || '"}', 'UTF8')
    FROM generate_series(0, ${count}::int - 1) AS i`
})

/** Appends the events, and does what autovacuum would do after a while, so that it does not do so during a measurement. */
export const fill = (count: number) =>
  Effect.andThen(append(count), Effect.flatMap(SqlClient.SqlClient, (sql) => sql`VACUUM ANALYZE events`))

/** The read model: how many events each aggregate has. Each run has rows of its own. */
export const createCounts = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE counts (run text, id text, events bigint NOT NULL, PRIMARY KEY (run, id))`
})

/** Dies unless the run has counted each event once. */
export const checkCounts = Effect.fnUntraced(function*(run: string, expected: number) {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly sum: number }>`SELECT sum(events)::int4 AS sum FROM counts WHERE run = ${run}`
  if (row?.sum !== expected) return yield* Effect.die(new Error(`${run} counted ${row?.sum} of ${expected} events`))
})

/** Deletes all events. The positions start from the beginning again. */
export const empty = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`TRUNCATE events, aggregate_heads RESTART IDENTITY`
})
