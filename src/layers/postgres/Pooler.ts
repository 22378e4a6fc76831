/**
 * Whether a pooler stands between the process and its server, and what of a session it leaves.
 *
 * @since 0.1.0
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import type * as SqlError from "effect/sql/SqlError"
import * as Session from "./Session.ts"

/**
 * `none`: connections end at the server. `session`: a connection has a server session for itself. `transaction`: only its
 * transactions have one.
 *
 * @category models
 * @since 0.1.0
 */
export type Pooling = "none" | "session" | "transaction"

/** A busy pooler gives the session to somebody else; this often it must have happened before it is believed. */
const attempts = 20

/** Without a prepared statement: those are what a pooler may lose. */
const backend = (connection: PgConnection.PgConnection): Effect.Effect<unknown, SqlError.SqlError> =>
  Effect.map(connection.query("SELECT pg_backend_pid() AS pid", [], false), ({ rows }) => rows[0]?.["pid"])

/**
 * Finds out by asking. The process id that a connection was greeted with is not its server's when a pooler has greeted
 * it. A connection that meets two server processes has none for itself, and two connections that are open at once and
 * meet the same one share it: PgBouncer hands out first what was used last, or in turn, as it is told to.
 *
 * @category constructors
 * @since 0.1.0
 */
export const find = (config: PgClient.PgClientConfig): Effect.Effect<Pooling, SqlError.SqlError> =>
  Effect.scoped(Effect.gen(function*() {
    const connect = PgConnection.make(Session.configOf(config, "pupsourcing-orchestrator probe"))
    const one = yield* connect
    if ((yield* backend(one)) === one.processId) return "none"
    const other = yield* connect
    const met = new Set<unknown>()
    const metByOther = new Set<unknown>()
    for (let attempt = 0; attempt < attempts; attempt++) {
      met.add(yield* backend(one))
      metByOther.add(yield* backend(other))
      // An odd number of questions, or two servers that take turns would answer each the same one.
      met.add(yield* backend(one))
      if (met.size > 1 || metByOther.size > 1 || [...met].some((pid) => metByOther.has(pid))) return "transaction"
    }
    return "session"
  }))
