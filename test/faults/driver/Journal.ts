/**
 * What the journal says while a run goes on; the comparison at its end is `Projections.difference`.
 */
import * as Effect from "effect/Effect"
import { SqlClient } from "effect/sql"

/** How many events were handled. */
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

/** Whether every event of these positions has a line. */
export const isComplete = Effect.fnUntraced(function*(positions: { readonly after: bigint; readonly upTo: bigint }) {
  const sql = yield* SqlClient.SqlClient
  // Not by looking for each event's line: that can take long while the server does not know how many lines there are.
  const missing = yield* sql`
    SELECT global_position FROM events
    WHERE global_position > ${positions.after}::bigint AND global_position <= ${positions.upTo}::bigint
    EXCEPT
    SELECT position FROM journal
    WHERE projection = 'journal' AND position > ${positions.after}::bigint AND position <= ${positions.upTo}::bigint
    LIMIT 1`
  return missing.length === 0
})

/** Milliseconds from the beginning of its writer's transaction that the event of a newer line waited longest. */
export const longestWait = Effect.fnUntraced(function*(since: bigint) {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly millis: number | null }>`
    SELECT extract(epoch FROM max(j.at - e.created_at))::float8 * 1000 AS millis
    FROM journal j JOIN events e ON e.global_position = j.position
    WHERE j.projection = 'journal' AND j.seq > ${since}::bigint`
  return row?.millis ?? 0
})
