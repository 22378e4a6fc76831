/**
 * A session of the library beside the application's pool: one connection that is replaced when it is lost or misses a
 * deadline, with state that is discarded with it.
 *
 * The state machine is that of `effect/cluster`'s lock connection (closed, open, replaced). The deadline bounds the
 * wait, not the statement, because interrupting a statement on a dead network takes the driver five seconds.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
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
import type { StoreError } from "../../../schema/Errors.ts"
import * as Abandonable from "../../../services/Abandonable.ts"
import type { Server } from "./Server.ts"
import * as SessionSettings from "./SessionSettings.ts"
import { isConflict, isConnectionLoss, refail, sqlErrorIn, unavailable } from "./SqlErrors.ts"

/** An open connection and the state that belongs to it. */
export interface Opened<S> {
  readonly sql: SqlClient.SqlClient
  /** What was learned through this connection; each connection starts with a new state. */
  readonly state: S
  /** `Clock.monotonicTimeNanos` when the connection was opened. */
  readonly openedAt: bigint
}

/** A session whose connection is opened when it is first used, and replaced when it is lost. */
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

/** How a session is opened, and its initial settings. */
export interface Options<S> {
  /** Shown as `application_name`. */
  readonly name: string
  readonly deadline: Duration.Duration
  /** Settings in addition to, or instead of, those of every session. */
  readonly settings?: Readonly<Record<string, string>>
  readonly state: () => S
  /** SQL of a text that is read when the settings are applied, and the callback that receives the text. */
  readonly mark?: { readonly sql: string; readonly read: (state: S, mark: string) => void }
}

interface Target {
  readonly config: PgClient.PgPoolConfig
  readonly server: Server
  /** Runs in the scope of each connection when it is open. */
  readonly opened?: Effect.Effect<void, never, Scope.Scope> | undefined
}

interface Connection<S> extends Opened<S> {
  readonly scope: Scope.Closeable
  /** Whether its settings have been applied. */
  isReady: boolean
}

/** The connection of one session. Only `open` and `drop` change which one is current. */
interface Slot<S> {
  readonly options: Options<S> & Target
  readonly owner: Scope.Scope
  readonly opening: Semaphore.Semaphore
  current: Connection<S> | undefined
}

/** Makes a session in the current scope. Nothing connects before the first use. */
export const make = <S>(options: Options<S> & Target): Effect.Effect<Session<S>, never, Scope.Scope> =>
  Effect.map(Effect.scope, (owner) => {
    const slot: Slot<S> = { options, owner, opening: Semaphore.makeUnsafe(1), current: undefined }
    return { use: (operation, f) => use(slot, operation, f) }
  })

const use = <S, A, E, R>(
  slot: Slot<S>,
  operation: string,
  f: (opened: Opened<S>) => Effect.Effect<A, E | SqlError.SqlError, R>
): Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R> => {
  const { deadline, server } = slot.options
  const noAnswer = () =>
    unavailable(server, "no answer in time", new Error(`${operation}: no answer within ${Duration.format(deadline)}`))
  return slot.opening.withPermit(open(slot)).pipe(
    Effect.flatMap((connection) =>
      // Never interrupted: an interrupted caller stops waiting, and the deadline stays.
      Abandonable.run(
        Effect.flatMap(makeReady(slot, connection), () => f(connection)).pipe(
          // A transaction of the application's client cannot leak in: each client has its own transaction service.
          outsideTransactions(connection.sql),
          Effect.onError((cause) => dropIfLost(slot, connection, cause))
        ),
        { limit: Abandonable.after(deadline, noAnswer), onAbandoned: () => drop(slot, connection) }
      )
    ),
    refail(server, operation),
    Effect.withTracerEnabled(false)
  )
}

/** Returns the connection, after opening it if there is none. Must run with the permit of `opening`. */
const open = <S>(slot: Slot<S>): Effect.Effect<Connection<S>, SqlError.SqlError> =>
  Effect.suspend(() => slot.current === undefined ? openNew(slot) : Effect.succeed(slot.current))

const openNew = <S>(slot: Slot<S>): Effect.Effect<Connection<S>, SqlError.SqlError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Scope.fork(slot.owner)
      const client = yield* PgClient.makeClient(SessionSettings.config(slot.options.config, slot.options.name)).pipe(
        Effect.provideService(Scope.Scope, scope),
        Effect.provide(Reactivity.layer),
        restore,
        Effect.onError((cause) => Scope.close(scope, Exit.failCause(cause)))
      )
      slot.current = {
        sql: client.withoutTransforms(),
        state: slot.options.state(),
        openedAt: yield* Clock.monotonicTimeNanos,
        scope,
        isReady: false
      }
      return slot.current
    })
  )

/** Applies the settings before the first use of a connection. */
const makeReady = <S>({ options }: Slot<S>, connection: Connection<S>): Effect.Effect<void, SqlError.SqlError> => {
  if (connection.isReady) return Effect.void
  const statement = `SELECT ${SessionSettings.apply(options.settings)}::text AS settings, ${
    options.mark?.sql ?? "''"
  } AS mark`
  return Effect.map(connection.sql.unsafe<{ readonly mark: string }>(statement), ([row]) => {
    options.mark?.read(connection.state, row!.mark)
    connection.isReady = true
  }).pipe(Effect.andThen(Scope.provide(options.opened ?? Effect.void, connection.scope)))
}

/** Not every lost connection has a known error code, so after other errors a probe query decides. */
const dropIfLost = <S>(slot: Slot<S>, connection: Connection<S>, cause: Cause.Cause<unknown>): Effect.Effect<void> => {
  const error = sqlErrorIn(cause)
  if (error === undefined || isConflict(error)) return Effect.void
  return isConnectionLoss(error)
    ? drop(slot, connection)
    : connection.sql`SELECT 1`.pipe(
      outsideTransactions(connection.sql),
      Effect.asVoid,
      // The caller receives the error of its own statement.
      Effect.catchCause(() => drop(slot, connection))
    )
}

const drop = <S>(slot: Slot<S>, connection: Connection<S>): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (slot.current !== connection) return Effect.void
    slot.current = undefined
    // Closing a connection that no longer answers may take long, so it is not awaited.
    return Effect.asVoid(Abandonable.start(Scope.close(connection.scope, Exit.void)))
  })

/** Runs an effect outside any transaction of the client that the caller's context contains. */
export const outsideTransactions =
  (sql: SqlClient.SqlClient) => <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.updateContext(
      self,
      (context: Context.Context<R>) => Context.omit(sql.transactionService)(context) as Context.Context<R>
    )
