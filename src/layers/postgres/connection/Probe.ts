/** Connections that answer a question at startup and are closed again. Their statements are not prepared. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as SqlError from "effect/sql/SqlError"
import * as SessionSettings from "./SessionSettings.ts"
import { statementTimeout } from "./SqlErrors.ts"

/** How long a question may take, and a new connection to apply its settings. */
const deadline = Duration.seconds(5)

const noAnswer = statementTimeout("a second connection was not answered")

/** Fails if there is no answer by the deadline. */
export const bounded = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError.SqlError, R> =>
  Effect.timeoutOrElse(self, { duration: deadline, orElse: () => Effect.fail(noAnswer) })

export const connect = (
  config: PgClient.PgClientConfig
): Effect.Effect<PgConnection.PgConnection, SqlError.SqlError, Scope.Scope> =>
  PgConnection.make(SessionSettings.config(config, "pupsourcing-orchestrator probe"))

/** A busy pooler may hand the backend to another client; take this many samples before concluding. */
const attempts = 10

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
    const one = yield* connect(config)
    if ((yield* backend(one)) === one.processId) return false
    const other = yield* connect(config)
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
  })).pipe(bounded)
