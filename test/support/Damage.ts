/** Damages stored events as a superuser. Needs its own database. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"

export interface Damage {
  readonly name: string
  /** Damages the event at a position, whose payload is longer than 2 KB and whose metadata has a key. */
  readonly make: (sql: SqlClient.SqlClient, position: bigint) => Effect.Effect<void, SqlError.SqlError>
  /** The SQLSTATE that reports the damage. */
  readonly code: string
}

/**
 * Run this before the events are appended. It makes bytes castable to text and JSON, and stores long payloads out of
 * line.
 */
export const prepare = (sql: SqlClient.SqlClient) =>
  Effect.forEach([
    "CREATE CAST (bytea AS text) WITHOUT FUNCTION",
    "CREATE CAST (bytea AS jsonb) WITHOUT FUNCTION",
    "CREATE CAST (jsonb AS bytea) WITHOUT FUNCTION",
    "ALTER TABLE events ALTER payload SET STORAGE EXTERNAL"
  ], (statement) =>
    sql.unsafe(statement).unprepared, { discard: true })

const update = (name: string, set: string, code: string): Damage => ({
  name,
  make: (sql, position) =>
    Effect.asVoid(sql.unsafe(`UPDATE events SET ${set} WHERE global_position = ${position}`).unprepared),
  code
})

const vacuumAndRead = (sql: SqlClient.SqlClient, position: bigint) =>
  Effect.andThen(
    sql.unsafe("VACUUM events").unprepared,
    Effect.exit(sql`SELECT md5(payload) FROM events WHERE global_position = ${position}`)
  )

/** Loses a chunk of a value that is stored out of line. The payloads of other events must be short. */
const lostChunk: Damage = {
  name: "a payload with a lost chunk",
  make: Effect.fnUntraced(function*(sql, position) {
    yield* sql.unsafe(`DO $$
      DECLARE toast regclass := (SELECT reltoastrelid FROM pg_class WHERE oid = 'events'::regclass);
      BEGIN
        PERFORM set_config('allow_system_table_mods', 'on', true);
        UPDATE pg_class SET relkind = 'r' WHERE oid = toast;
        EXECUTE format('DELETE FROM %s WHERE chunk_seq > 0', toast);
        UPDATE pg_class SET relkind = 't' WHERE oid = toast;
      END $$`).unprepared
    // A deleted chunk can still be read until it is removed physically. VACUUM keeps it while a snapshot of any session
    // is older, for example that of an automatic ANALYZE.
    yield* TimeLimits.waitUntil("the chunk is removed", vacuumAndRead(sql, position), Exit.isFailure)
  }),
  code: "XX001"
}

export const all: ReadonlyArray<Damage> = [
  lostChunk,
  update("a text that is not valid", "trace_id = '\\x61ff'::bytea::text", "22021"),
  update("an aggregate id that is not valid", "aggregate_id = '\\x61ff'::bytea::text", "22021"),
  update(
    "metadata whose text is not valid",
    "metadata = overlay(metadata::bytea placing '\\xff'::bytea from octet_length(metadata::bytea) for 1)::jsonb",
    "22021"
  ),
  update("metadata that is not JSON", "metadata = '\\xffffffff'::bytea::jsonb", "XX000")
]
