/** Detects a pooler that does not preserve sessions. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as SqlError from "effect/sql/SqlError"
import * as SessionSettings from "./SessionSettings.ts"

/** A busy pooler may hand the backend to another client; take this many samples before concluding. */
const attempts = 20

/** Reads the backend's process id, without a prepared statement, which a pooler may lose. */
const backend = (connection: PgConnection.PgConnection): Effect.Effect<unknown, SqlError.SqlError> =>
  Effect.map(connection.query("SELECT pg_backend_pid() AS pid", [], false), ({ rows }) => rows[0]?.["pid"])

/**
 * Whether the configuration leads to a pooler in transaction mode, where a connection has a server session only during
 * a transaction.
 *
 * The process id that a connection receives at its start is not that of its backend if a pooler has answered. A
 * connection that reaches two backends has none of its own, and two connections that are open at once and reach the
 * same backend share it. Both are checked, because PgBouncer assigns either the most recently used backend or all in
 * turn, depending on its configuration.
 */
export const isTransactionPooler = (config: PgClient.PgClientConfig): Effect.Effect<boolean, SqlError.SqlError> =>
  Effect.scoped(Effect.gen(function*() {
    const connect = PgConnection.make(SessionSettings.config(config, "pupsourcing-orchestrator probe"))
    const one = yield* connect
    if ((yield* backend(one)) === one.processId) return false
    const other = yield* connect
    const met = new Set<unknown>()
    const metByOther = new Set<unknown>()
    for (let attempt = 0; attempt < attempts; attempt++) {
      met.add(yield* backend(one))
      metByOther.add(yield* backend(other))
      // An odd number of queries, because with an even number two backends that take turns would each always answer the
      // same connection.
      met.add(yield* backend(one))
      if (met.size > 1 || metByOther.size > 1 || [...met].some((pid) => metByOther.has(pid))) return true
    }
    return false
  }))
