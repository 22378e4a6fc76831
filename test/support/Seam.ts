/**
 * The seam at which statements leave for PostgreSQL: Effect SQL's `Connection`, and the driver's own connection below
 * the sessions that listen and wait. A test puts hooks there, through which every statement of the library passes:
 * those of batches on the application's pool, including `BEGIN` and `COMMIT`, and those of the library's own sessions.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import * as SqlError from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import type { Opened } from "../../src/layers/postgres/connection/Session.ts"
import { Database } from "../../src/layers/postgres/Database.ts"
import * as DatabaseLive from "../../src/layers/postgres/DatabaseLive.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import type { StoresError } from "../../src/schema/Errors.ts"
import type { EventStore } from "../../src/services/EventStore.ts"
import type { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"

/** A statement on its way. */
export interface Statement {
  /** `pool`, or the session's application name. */
  readonly session: string
  readonly text: string
  /** Ends the connection before or after the statement, and fails as the statements on it then do. */
  readonly lose: Effect.Effect<never, SqlError.SqlError>
}

export interface Hooks {
  /** Returns the text to send instead. */
  readonly rewrite?: ((statement: Statement) => string) | undefined
  /**
   * Wraps the sending of a statement. It may fail before it, send and then fail (the answer is lost), wait, or never
   * answer.
   */
  readonly around?:
    | (<A>(statement: Statement, send: Effect.Effect<A, SqlError.SqlError>) => Effect.Effect<A, SqlError.SqlError>)
    | undefined
  /** Wraps the delivery of a notification. It may wait, or drop it. */
  readonly deliver?:
    | ((notification: PgConnection.Notification, hand: Effect.Effect<void>) => Effect.Effect<void>)
    | undefined
}

/** The error that the driver reports. */
export const connectionLost = (operation: string): SqlError.SqlError =>
  new SqlError.SqlError({
    reason: new SqlError.ConnectionError({
      cause: new Error("lost at the seam"),
      message: "lost at the seam",
      operation
    })
  })

const suicide = "SELECT pg_terminate_backend(pg_backend_pid())"

/** How a connection sends: the text, and the effect that sends it. */
type Send = <A>(
  text: string,
  send: (text: string) => Effect.Effect<A, SqlError.SqlError>
) => Effect.Effect<A, SqlError.SqlError>

const sender = (hooks: Hooks, session: string, end: Effect.Effect<unknown, SqlError.SqlError>): Send => {
  const lose = Effect.andThen(end, Effect.fail(connectionLost("execute")))
  return (text, send) =>
    Effect.suspend(() => {
      const statement = { session, text, lose }
      const sent = send(hooks.rewrite?.(statement) ?? text)
      return hooks.around?.(statement, sent) ?? sent
    })
}

const overConnection = (hooks: Hooks, session: string, real: Connection): Connection => {
  const through = sender(hooks, session, real.executeUnprepared(suicide, [], undefined))
  // Members of the driver's connections that Effect SQL's interface lacks.
  const { connection } = real as Connection & { readonly connection: PgConnection.PgConnection }
  const over: Connection & { readonly connection: PgConnection.PgConnection } = {
    connection: overPgConnection(hooks, session, connection),
    execute: (text, params, transform) => through(text, (text) => real.execute(text, params, transform)),
    executeRaw: (text, params) => through(text, (text) => real.executeRaw(text, params)),
    executeStream: (text, params, transform) =>
      Stream.unwrap(through(text, (text) => Effect.succeed(real.executeStream(text, params, transform)))),
    executeValues: (text, params) => through(text, (text) => real.executeValues(text, params)),
    executeValuesUnprepared: (text, params) => through(text, (text) => real.executeValuesUnprepared(text, params)),
    executeUnprepared: (text, params, transform) =>
      through(text, (text) => real.executeUnprepared(text, params, transform))
  }
  return over
}

const overPgConnection = (
  hooks: Hooks,
  session: string,
  real: PgConnection.PgConnection
): PgConnection.PgConnection => {
  const through = sender(hooks, session, real.query(suicide, [], false))
  return {
    [PgConnection.TypeId]: PgConnection.TypeId,
    config: real.config,
    processId: real.processId,
    interrupt: real.interrupt,
    pin: Effect.map(real.pin, (pinned) => overPgConnection(hooks, session, pinned)),
    query: (text, params, prepare) => through(text, (text) => real.query(text, params, prepare)),
    queryValues: (text, params, prepare) => through(text, (text) => real.queryValues(text, params, prepare)),
    stream: (text, params) => Stream.unwrap(through(text, (text) => Effect.succeed(real.stream(text, params)))),
    listen: Effect.fnUntraced(function*(channel) {
      const scope = yield* Effect.scope
      const heard = yield* through(`LISTEN ${channel}`, () => Scope.provide(real.listen(channel), scope))
      const { deliver } = hooks
      if (deliver === undefined) return heard
      const handed = yield* Queue.unbounded<PgConnection.Notification, SqlError.SqlError>()
      yield* Queue.take(heard).pipe(
        // Each notification separately: a late one does not delay the next.
        Effect.flatMap((notification) =>
          Effect.forkIn(deliver(notification, Effect.asVoid(Queue.offer(handed, notification))), scope)
        ),
        Effect.forever,
        Effect.catch((error) => Queue.fail(handed, error)),
        Effect.forkIn(scope)
      )
      return handed
    })
  }
}

/** Commits as the driver does: PostgreSQL answers `ROLLBACK` when the transaction was aborted. */
const commit = (connection: Connection): Effect.Effect<void, SqlError.SqlError> =>
  Effect.flatMap(connection.executeRaw("COMMIT", []), (result) =>
    (result as PgConnection.Result).command === "ROLLBACK"
      ? Effect.fail(
        new SqlError.SqlError({
          reason: new SqlError.UnknownError({
            cause: new Error("COMMIT rolled back an aborted transaction"),
            operation: "commit"
          })
        })
      )
      : Effect.void)

/** The client with all of its statements passing through the hooks. */
const sqlClient = (
  hooks: Hooks,
  session: string,
  real: SqlClient.SqlClient
): Effect.Effect<SqlClient.SqlClient> =>
  Effect.provide(
    SqlClient.make({
      acquirer: Effect.map(real.reserve, (connection) => overConnection(hooks, session, connection)),
      compiler: PgClient.makeCompiler(),
      driver: "pg",
      prepareTransactionControls: true,
      commit,
      releaseSavepoint: (name) => `RELEASE SAVEPOINT ${name}`,
      spanAttributes: []
    }),
    Reactivity.layer
  )

/** A client as `PgClient.layer` makes it, behind the hooks. */
export const client = (
  config: PgClient.PgPoolConfig,
  hooks: Hooks
): Layer.Layer<PgClient.PgClient | SqlClient.SqlClient, SqlError.SqlError> =>
  PgClient.layerFrom(Effect.gen(function*() {
    const real = yield* PgClient.make(config)
    const { json, listen, notify } = real
    const parts = { [PgClient.TypeId]: PgClient.TypeId, config, json, listen, notify } as const
    return Object.assign(yield* sqlClient(hooks, "pool", real), parts)
  }))

/** The database, with hooks on the sessions that it opens beside the application's client. */
const overDatabase = (hooks: Hooks, real: Database["Service"]): Database["Service"] => {
  const seams = new WeakMap<SqlClient.SqlClient, SqlClient.SqlClient>()
  const behind = Effect.fnUntraced(function*<S>(name: string, opened: Opened<S>) {
    const sql = seams.get(opened.sql) ?? (yield* sqlClient(hooks, name, opened.sql))
    seams.set(opened.sql, sql)
    return { ...opened, sql }
  })
  return Database.of({
    ...real,
    openConnection: (name) =>
      Effect.map(real.openConnection(name), (connection) => overPgConnection(hooks, name, connection)),
    openSession: (options) =>
      Effect.map(real.openSession(options), ({ use }) => ({
        use: (operation, f) => use(operation, (opened) => Effect.flatMap(behind(options.name, opened), f))
      }))
  })
}

/** The database over the provided client, which {@link client} makes; its own sessions pass through the hooks too. */
export const database = (
  hooks: Hooks,
  options: DatabaseLive.Options = {}
): Layer.Layer<Database, StoresError, PgClient.PgClient> =>
  Layer.effect(Database)(Effect.map(DatabaseLive.make(options), (real) => overDatabase(hooks, real)))

/** The PostgreSQL stores over such a database. */
export const stores = (
  hooks: Hooks,
  options: DatabaseLive.Options = {}
): Layer.Layer<EventStore | Projections | Stores, StoresError, PgClient.PgClient> =>
  PostgresStores.layerOver(database(hooks, options))
