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
  const missing = yield* sql`
    SELECT FROM events e
    WHERE e.global_position > ${positions.after}::bigint AND e.global_position <= ${positions.upTo}::bigint
      AND NOT EXISTS (SELECT FROM journal j WHERE j.projection = 'journal' AND j.position = e.global_position)
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
