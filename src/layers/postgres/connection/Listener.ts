/**
 * The one listening session of a process: it listens on the library's channels and holds the presence lock. It is
 * opened again whenever it is lost; subscribers are then woken, because messages may have been missed.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import type * as Scope from "effect/Scope"
import type * as SqlError from "effect/sql/SqlError"
import type { Announcement } from "../../../schema/Announcement.ts"
import type { StoreError } from "../../../schema/Errors.ts"
import * as Abandonable from "../../../services/Abandonable.ts"
import { Database } from "../Database.ts"
import * as Connection from "./ListenerConnection.ts"
import type * as Notifications from "./Notifications.ts"
import * as Outbox from "./Outbox.ts"
import { outsideTransactions } from "./Session.ts"
import { refail, sqlErrorIn, toStoreError } from "./SqlErrors.ts"

export { reconnected } from "./ListenerConnection.ts"

/** Subscriptions and notifications on the listening session. */
export class Listener extends Context.Service<Listener, {
  /**
   * Returns the payloads that arrive on a channel, and `reconnected` (the empty payload) after each (re)connection. A slow
   * reader receives the newest `queueCapacity`: if the queue is full, messages may have been discarded. Never fails:
   * without a connection, or with `listen: false`, nothing arrives.
   */
  readonly subscribe: (channel: string) => Effect.Effect<Queue.Dequeue<string>, never, Scope.Scope>

  /**
   * Sends an announcement soon: those of a few milliseconds become one message on their channel, sent in a separate
   * transaction, because a NOTIFY inside a writer's transaction serializes the commits of the whole database. Never
   * fails and never waits for the database.
   */
  readonly notify: (channel: string, announcement: Announcement) => Effect.Effect<void>

  /**
   * Runs `hook` on the connection now and after each reconnection, as long as the scope is open. If the first run
   * fails, this fails; if a later one fails, the connection is dropped and connecting is retried.
   */
  readonly onConnection: (
    hook: (connection: PgConnection.PgConnection) => Effect.Effect<void, SqlError.SqlError>
  ) => Effect.Effect<void, StoreError, Scope.Scope>

  /** Whether the session is open and listens. */
  readonly isListening: () => boolean

  /** Waits until an open connection is lost; returns at once while a lost one has not been replaced. */
  readonly lost: Effect.Effect<void>
}>()("pupsourcing-orchestrator/layers/postgres/Listener") {}

/** Messages that are kept for a slow subscriber; older ones are discarded. */
export const queueCapacity = 64

/** Announcements within this interval become one message. */
const sendInterval = Duration.millis(5)

/** How long a message waits for a connection that is being opened, and a closing scope for its last messages. */
const sendPatience = Duration.seconds(2)

/** After a connection that lasted at least this long, the next attempt is made at once. */
const steadyNanos = 5_000_000_000n

const opening = "open the listening session"

/** The connection, and what keeps it open. */
interface State {
  readonly connection: Connection.State
  /** Opened by the first subscriber, message or hook. */
  readonly needed: Latch.Latch
  readonly outbox: Outbox.Outbox
}

/**
 * Makes a listener that connects when first needed. The listening session also sends: it is never busy with a batch,
 * and a process that only appends needs no more than this one connection beside its pool.
 */
export const make: Effect.Effect<Listener["Service"], never, Database | Scope.Scope> = Effect.gen(function*() {
  const database = yield* Database
  const state: State = {
    connection: yield* Connection.makeState(database),
    needed: Latch.makeUnsafe(false),
    outbox: Outbox.make()
  }
  const { connection: { lost, owner } } = state
  yield* Effect.forkIn(Effect.withTracerEnabled(keepOpen(state), false), owner)
  if (database.listen) {
    yield* Effect.forkIn(Effect.withTracerEnabled(keepSending(state), false), owner)
    // Without this, the messages of a process's last appends would be lost when it ends.
    yield* Effect.addFinalizer(() => sendLast(state))
  }
  return Listener.of({
    subscribe: (channel) => subscribe(state, channel),
    notify: (channel, announcement) =>
      database.listen
        ? Effect.sync(() => {
          Outbox.put(state.outbox, channel, announcement)
          state.needed.openUnsafe()
        })
        : Effect.void,
    onConnection: (hook) => onConnection(state, hook),
    isListening: () => database.listen && state.connection.current !== undefined,
    lost: lost.await
  })
})

/** Connects while a connection is needed and none is open. Reports one line for each outage. */
const keepOpen = Effect.fnUntraced(function*({ connection: state, needed }: State) {
  let attempt = 0
  let reported = false
  while (true) {
    yield* needed.await
    yield* Effect.sleep(yield* delay(attempt))
    const exit = yield* Effect.exit(state.changing.withPermit(Connection.ensure(state)))
    if (Exit.isFailure(exit)) {
      if (Cause.hasInterrupts(exit.cause)) return yield* Effect.failCause(exit.cause)
      attempt++
      if (!reported) yield* reportFailure(state, exit.cause)
      reported = true
      continue
    }
    const self = exit.value
    if (reported) yield* Effect.logInfo("The listening session is open again.")
    const error = yield* Deferred.await(self.lost)
    const lived = (yield* Clock.monotonicTimeNanos) - self.openedAt
    attempt = lived >= steadyNanos ? 0 : attempt + 1
    reported = true
    yield* Effect.logWarning(
      `The listening session was lost; until it is open again, polling takes its place. ${describe(state, error)}`
    )
  }
})

/**
 * The delay before an attempt: none, then 100 ms doubling up to 1 s, jittered so that processes do not reconnect in
 * step. It is at most 1 s because presence ends with this session: after an outage, processes that have reconnected
 * count the others as absent after 3 s.
 */
const delay = (attempt: number): Effect.Effect<Duration.Duration> =>
  attempt === 0
    ? Effect.succeed(Duration.zero)
    : Effect.map(Random.next, (random) => Duration.millis(Math.min(1000, 50 * 2 ** attempt) * (0.5 + random / 2)))

const reportFailure = (state: Connection.State, cause: Cause.Cause<SqlError.SqlError>): Effect.Effect<void> => {
  const error = sqlErrorIn(cause)
  return error === undefined
    ? Effect.logError("The listening session cannot be opened; it is tried again.", cause)
    : Effect.logWarning(`The listening session cannot be opened; it is tried again. ${describe(state, error)}`)
}

const describe = ({ database }: Connection.State, error: SqlError.SqlError): string =>
  toStoreError(database.sessionServer, opening)(error).message

/** Sends messages while the process runs. */
const keepSending = Effect.fnUntraced(function*({ connection, outbox }: State) {
  while (true) {
    yield* outbox.waiting.await
    yield* Effect.timeoutOption(connection.connected.await, sendPatience)
    yield* Outbox.flush(outbox, () => Connection.queryCurrent(connection))
    yield* Effect.sleep(sendInterval)
  }
})

/**
 * Sends the last messages, on the pool if the session is not open: a process that appends and ends has often not
 * opened it yet. A send that is in progress is awaited as well, but a server that does not answer is not.
 */
const sendLast = ({ connection, outbox }: State): Effect.Effect<void> =>
  Abandonable.start(
    Outbox.flush(outbox, () => Connection.queryCurrent(connection) ?? queryPool(connection))
  ).pipe(
    Effect.flatMap((fiber) => Abandonable.end(fiber, sendPatience)),
    Effect.asVoid
  )

/** Uses the application's pool, which has a connection after an append, but never a transaction of the caller. */
const queryPool = ({ database: { sql } }: Connection.State): Notifications.Query => (text, params) =>
  outsideTransactions(sql)(sql.unsafe(text, params))

const subscribe = Effect.fnUntraced(function*({ connection: state, needed }: State, channel: string) {
  const queue = yield* Effect.acquireRelease(
    Effect.tap(Queue.sliding<string>(queueCapacity), (queue) =>
      Effect.sync(() => {
        const queues = state.subscribers.get(channel)
        if (queues === undefined) state.subscribers.set(channel, new Set([queue]))
        else queues.add(queue)
      })),
    (queue) => {
      state.subscribers.get(channel)?.delete(queue)
      return Queue.shutdown(queue)
    }
  )
  if (!state.database.listen) return queue
  needed.openUnsafe()
  yield* state.changing.withPermit(Effect.suspend(() => {
    const self = state.current
    return self === undefined ? Effect.void : Connection.listenOn(state, self, channel).pipe(
      Effect.tap(() => Queue.offer(queue, Connection.reconnected)),
      Effect.catch((error) => Connection.drop(state, self, error))
    )
  })).pipe(Effect.forkIn(state.owner))
  return queue
})

const onConnection = Effect.fnUntraced(function*({ connection: state, needed }: State, hook: Connection.Hook) {
  // A function of its own, because the same hook may be registered twice.
  const entry: Connection.Hook = (connection) => hook(connection)
  yield* state.changing.withPermit(Effect.gen(function*() {
    const self = yield* Connection.ensure(state)
    yield* Connection.within(self, entry(self.connection)).pipe(
      Effect.tapError((error) =>
        error.reason._tag === "ConnectionError" ? Connection.drop(state, self, error) : Effect.void
      )
    )
    yield* Effect.addFinalizer(() => Effect.sync(() => state.hooks.delete(entry)))
    state.hooks.add(entry)
  })).pipe(refail(state.database.sessionServer, opening), state.database.namingPrivileges("worker"))
  needed.openUnsafe()
})
