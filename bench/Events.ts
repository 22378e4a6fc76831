/** The events that the benchmarks read, and the read model that they write. */
import { Console, Effect } from "effect"
import { SqlClient } from "effect/sql"

export interface Appending {
  /** The number of events that were appended before, so that the versions continue. Default 0. */
  readonly after?: number
  /** One in this number of events has the type `Rare`, the others `Happened`. Default 0: none. */
  readonly rarity?: number | undefined
  /** How the ids of the aggregates begin. Default `thing`. */
  readonly aggregates?: string
}

/** Appends events with a payload of 60 bytes, as 1,000 aggregates would, in one statement. */
export const append = Effect.fnUntraced(function*(
  count: number,
  { after = 0, aggregates = "thing", rarity = 0 }: Appending = {}
) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    SELECT 'bench', 'Thing', ${aggregates}::text || '-' || i % 1000, i / 1000 + 1, gen_random_uuid(),
      CASE WHEN i % nullif(${rarity}::int, 0) = 0 THEN 'Rare' ELSE 'Happened' END,
      convert_to(rpad('{"i":' || i || ',"pad":"', 58, 'x') || '"}', 'UTF8')
    FROM generate_series(${after}::int, ${after}::int + ${count}::int - 1) AS i`
})

/** Appends the events, and does what autovacuum would do after a while, so that it does not do so during a measurement. */
export const fill = (count: number, options?: Appending) =>
  Effect.andThen(append(count, options), Effect.flatMap(SqlClient.SqlClient, (sql) => sql`VACUUM ANALYZE events`))

const section = 1_000_000

/** Appends millions of events, in statements of a million each, so that none of them needs much memory or disk. */
export const fillMany = Effect.fnUntraced(function*(upTo: number, { after = 0, rarity }: Appending = {}) {
  const sql = yield* SqlClient.SqlClient
  for (let appended = after; appended < upTo; appended += section) {
    yield* Console.error(`  ${appended} of ${upTo} events …`)
    yield* append(Math.min(section, upTo - appended), { after: appended, rarity })
  }
  yield* sql`VACUUM ANALYZE events`
})

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
