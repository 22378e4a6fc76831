/** Queries on the journal during a run. `Projections.difference` makes the comparison at the end. */
import * as Effect from "effect/Effect"
import { SqlClient } from "effect/sql"

/** The number of handled events. */
export const lines = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly lines: bigint }>`
    SELECT count(*) AS lines FROM journal WHERE projection = 'journal'`
  return Number(row?.lines ?? 0)
})

/** The number of the newest line. */
export const newest = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly seq: bigint }>`SELECT coalesce(max(seq), 0) AS seq FROM journal`
  return row?.seq ?? 0n
})

/** Returns whether every event in this range of positions has a line. */
export const isComplete = Effect.fnUntraced(function*(positions: { readonly after: bigint; readonly upTo: bigint }) {
  const sql = yield* SqlClient.SqlClient
  // EXCEPT instead of a lookup per event, which can be slow while the planner has no statistics of the journal.
  const missing = yield* sql`
    SELECT global_position FROM events
    WHERE global_position > ${positions.after}::bigint AND global_position <= ${positions.upTo}::bigint
    EXCEPT
    SELECT position FROM journal
    WHERE projection = 'journal' AND position > ${positions.after}::bigint AND position <= ${positions.upTo}::bigint
    LIMIT 1`
  return missing.length === 0
})

/**
 * The longest time in milliseconds between the start of a writer's transaction and the handling of its event, among
 * newer lines.
 */
export const longestWait = Effect.fnUntraced(function*(since: bigint) {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly millis: number | null }>`
    SELECT extract(epoch FROM max(j.at - e.created_at))::float8 * 1000 AS millis
    FROM journal j JOIN events e ON e.global_position = j.position
    WHERE j.projection = 'journal' AND j.seq > ${since}::bigint`
  return row?.millis ?? 0
})
