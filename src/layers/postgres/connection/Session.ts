/**
 * A session of the library beside the application's pool: one connection that is replaced when it is lost or misses a
 * deadline, with state that is discarded with it.
 *
 * The state machine is that of `effect/cluster`'s lock connection (closed, open, replaced). The deadline bounds the
 * wait, not the statement, because interrupting a statement on a dead network takes the driver five seconds.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import { DatabaseUnavailable, type StoreError } from "../../../schema/Errors.ts"
import * as Abandonable from "../../../services/Abandonable.ts"
import type { Server } from "./Server.ts"
import { isConflict, isConnectionLoss, refail, sqlErrorIn } from "./SqlErrors.ts"

/**
 * An open connection and the state that belongs to it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Opened<S> {
  readonly sql: SqlClient.SqlClient
  /** What was learned through this connection; each connection starts with a new state. */
  readonly state: S
  /** `Clock.monotonicTimeNanos` when the connection was opened. */
  readonly openedAt: bigint
}

/**
 * A session whose connection is opened when it is first used, and replaced when it is lost.
 *
 * @category models
 * @since 0.1.0
 */
export interface Session<S> {
  /**
   * Runs `f` on the connection, which is opened if there is none. Without an answer by the deadline it fails with
   * `DatabaseUnavailable`, and the connection is dropped. Once started, `f` runs to its end even when the caller is
   * interrupted, so that the connection stays usable.
   */
  readonly use: <A, E, R>(
    operation: string,
    f: (opened: Opened<S>) => Effect.Effect<A, E | SqlError.SqlError, R>
  ) => Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R>
}

/** The driver's own codecs, regardless of those that the application registers for its client or for all clients. */
const types = PgTypes.makeRegistry()

/**
 * How the library's own connections differ from the application's: they have another name and the driver's own codecs,
 * detect an unreachable network, and are not shared.
 *
 * @category constructors
 * @since 0.1.0
 */
export const configOf = (config: PgClient.PgClientConfig, name: string): PgClient.PgClientConfig => ({
  ...config,
  applicationName: name,
  keepAlive: config.keepAlive ?? Duration.seconds(15),
  multiplex: false,
  types
})

/**
 * The settings of every session of the library, so that no default of the role, the database or the client affects its
 * statements.
 *
 * **Details**
 *
 * Values are transferred in binary, or as text that no setting changes, so the formats of dates and numbers do not
 * matter. Three settings are deliberately not changed: the role, because the privileges are granted to it;
 * `default_transaction_read_only`, with which an administrator prevents all writes; and `synchronous_commit`, because a
 * crash that loses a commit also loses every later one, so the remaining state is an earlier consistent state.
 */
const common: Readonly<Record<string, string>> = {
  default_transaction_isolation: "read committed",
  statement_timeout: "0",
  lock_timeout: "0",
  idle_session_timeout: "0",
  idle_in_transaction_session_timeout: "0",
  transaction_timeout: "0",
  standard_conforming_strings: "on",
  quote_all_identifiers: "off",
  exit_on_error: "off",
  jit: "off"
}

/**
 * SQL: an expression that applies the settings of a session of the library. Settings that the server does not have are
 * skipped.
 *
 * @category utils
 * @since 0.1.0
 */
export const set = (settings: Readonly<Record<string, string>> = {}): string =>
  `(SELECT count(set_config(s.name, s.value, false)) FROM (VALUES ${
    Object.entries({ ...common, ...settings }).map(([name, value]) => `('${name}', '${value}')`).join(", ")
  }) AS s (name, value) WHERE current_setting(s.name, true) IS NOT NULL)`

/**
 * How a session is opened, and its initial settings.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<S> {
  /** Shown as `application_name`. */
  readonly name: string
  readonly deadline: Duration.Duration
  /** Settings in addition to, or instead of, those of every session. */
  readonly settings?: Readonly<Record<string, string>>
  readonly state: () => S
  /** SQL of a text that is read whenever the settings are applied, and the callback that receives the text. */
  readonly mark?: { readonly sql: string; readonly read: (state: S, mark: string) => void }
}

/**
 * Opens a session in the current scope. Nothing connects before the first use.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*<S>(
  options: Options<S> & {
    readonly config: PgClient.PgPoolConfig
    readonly server: Server
  }
): Effect.fn.Return<Session<S>, never, Scope.Scope> {
  const owner = yield* Effect.scope
  const entering = `SELECT ${set(options.settings)}::text AS settings, ${options.mark?.sql ?? "''"} AS mark`
  const ready = new WeakSet<Opened<S>>()

  const enter = (opened: Opened<S>) =>
    Effect.map(opened.sql.unsafe<{ readonly mark: string }>(entering), ([row]) => {
      options.mark?.read(opened.state, row!.mark)
      ready.add(opened)
    })

  const entered = <A, E, R>(
    opened: Opened<S>,
    self: Effect.Effect<A, E, R>
  ): Effect.Effect<A, E | SqlError.SqlError, R> => ready.has(opened) ? self : Effect.andThen(enter(opened), self)
  const opening = Semaphore.makeUnsafe(1)
  let current: (Opened<S> & { readonly scope: Scope.Closeable }) | undefined

  const drop = (opened: Opened<S>) =>
    Effect.suspend(() => {
      if (current !== opened) return Effect.void
      const scope = current.scope
      current = undefined
      // Closing a connection that no longer answers may take long, so it is not awaited.
      return Effect.asVoid(Abandonable.start(Scope.close(scope, Exit.void)))
    })

  const open = opening.withPermit(Effect.suspend(() => {
    if (current !== undefined) return Effect.succeed(current)
    return Effect.uninterruptibleMask((restore) =>
      Effect.gen(function*() {
        const scope = yield* Scope.fork(owner)
        const exit = yield* Effect.exit(restore(
          PgClient.makeClient(configOf(options.config, options.name)).pipe(
            Effect.provideService(Scope.Scope, scope),
            Effect.provide(Reactivity.layer)
          )
        ))
        if (Exit.isFailure(exit)) {
          yield* Scope.close(scope, exit)
          return yield* Effect.failCause(exit.cause)
        }
        current = {
          sql: exit.value.withoutTransforms(),
          state: options.state(),
          openedAt: yield* Clock.monotonicTimeNanos,
          scope
        }
        return current
      })
    )
  }))

  const use: Session<S>["use"] = <A, E, R>(
    operation: string,
    f: (opened: Opened<S>) => Effect.Effect<A, E | SqlError.SqlError, R>
  ) =>
    open.pipe(
      Effect.flatMap((opened) => {
        /** Not every lost connection has a known error code, so after other errors a probe query decides. */
        const dropWhenLost = (cause: Cause.Cause<unknown>) => {
          const error = sqlErrorIn(cause)
          if (error === undefined || isConflict(error)) return Effect.void
          return isConnectionLoss(error)
            ? drop(opened)
            : Effect.catchCause(Effect.asVoid(withoutTransaction(opened, opened.sql`SELECT 1`)), () => drop(opened))
        }
        const work = Effect.onError(withoutTransaction(opened, entered(opened, f(opened))), dropWhenLost)
        // Never interrupted: an interrupted caller stops waiting, and the deadline stays.
        return Abandonable.run(work, {
          limit: Abandonable.after(options.deadline, () =>
            new DatabaseUnavailable({
              ...options.server,
              reason: "no answer in time",
              cause: new Error(`${operation}: no answer within ${Duration.format(options.deadline)}`)
            })),
          onAbandoned: () => drop(opened)
        })
      }),
      refail(options.server, operation),
      Effect.withTracerEnabled(false)
    )

  return { use }
})

/**
 * Runs an effect outside any transaction of the session's client that the caller's context contains. A transaction of
 * the application's client cannot leak in, because each client has its own transaction service.
 */
const withoutTransaction = <S, A, E, R>(opened: Opened<S>, self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.updateContext(
    self,
    (context: Context.Context<R>) => Context.omit(opened.sql.transactionService)(context) as Context.Context<R>
  )
