/**
 * The one listening session of a process: it listens on the library's channels and holds the presence lock. It is
 * opened again whenever it is lost; subscribers are then woken, because messages may have been missed.
 *
 * @since 0.1.0
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
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type * as SqlError from "effect/sql/SqlError"
import type { StoreError } from "../../../schema/Errors.ts"
import * as Abandonable from "../../../services/Abandonable.ts"
import { Database } from "../Database.ts"
import * as Notifications from "./Notifications.ts"
import { connectionLost, refail, sqlErrorIn, toStoreError } from "./SqlErrors.ts"

/**
 * Subscriptions and notifications on the listening session.
 *
 * @category services
 * @since 0.1.0
 */
export class Listener extends Context.Service<Listener, {
  /**
   * Returns the payloads that arrive on a channel, coalesced (a slow reader receives the newest few), and `reconnected`
   * (the empty payload) after each (re)connection. Never fails: without a connection, or with `listen: false`, nothing
   * arrives.
   */
  readonly subscribe: (channel: string) => Effect.Effect<Queue.Dequeue<string>, never, Scope.Scope>

  /**
   * Sends a notification soon: the same channel and payload within a few milliseconds become one message, sent in a
   * separate transaction, because a NOTIFY inside a writer's transaction serializes the commits of the whole database.
   * Never fails and never waits for the database.
   */
  readonly notify: (channel: string, payload: string) => Effect.Effect<void>

  /**
   * Runs `hook` on the connection now and after each reconnection, as long as the scope is open. If the first run
   * fails, this fails; if a later one fails, the connection is dropped and connecting is retried.
   */
  readonly onConnection: (
    hook: (connection: PgConnection.PgConnection) => Effect.Effect<void, SqlError.SqlError>
  ) => Effect.Effect<void, StoreError, Scope.Scope>

  /** Waits until an open connection is lost; returns at once while a lost one has not been replaced. */
  readonly lost: Effect.Effect<void>
}>()("pupsourcing-orchestrator/layers/postgres/Listener") {}

/**
 * The payload that means "connected (again); messages may have been missed".
 *
 * @category models
 * @since 0.1.0
 */
export const reconnected = ""

/** Messages that are kept for a slow subscriber; older ones are discarded. */
const queueCapacity = 16

/** Equal messages within this interval become one. */
const sendInterval = Duration.millis(5)

/** Different messages that are kept between two sends; more are discarded, because every receiver is woken anyway. */
const pendingCapacity = 1000

/** How long a message waits for a connection that is being opened, and a closing scope for its last messages. */
const sendPatience = Duration.seconds(2)

/** A server that becomes unreachable without closing the connection is detected within this plus `answerDeadline`. */
const probeInterval = Duration.seconds(15)

/** Without LISTEN, only the probe detects a lost connection. */
const probeIntervalWithoutListen = Duration.seconds(2)

const answerDeadline = Duration.seconds(5)

/** After a connection that lasted at least this long, the next attempt is made at once. */
const steadyNanos = 5_000_000_000n

/**
 * The delay before an attempt: none, then 100 ms doubling up to 1 s, jittered so that processes do not reconnect in
 * step. It is at most 1 s because presence ends with this session: after an outage, processes that have reconnected
 * count the others as absent after 3 s.
 */
const delay = (attempt: number): Effect.Effect<Duration.Duration> =>
  attempt === 0
    ? Effect.succeed(Duration.zero)
    : Effect.map(Random.next, (random) => Duration.millis(Math.min(1000, 50 * 2 ** attempt) * (0.5 + random / 2)))

type Hook = (connection: PgConnection.PgConnection) => Effect.Effect<void, SqlError.SqlError>

interface Connected {
  readonly connection: PgConnection.PgConnection
  /** The scope of everything that runs on the connection. */
  readonly scope: Scope.Closeable
  readonly listening: Set<string>
  readonly openedAt: bigint
  readonly lost: Deferred.Deferred<SqlError.SqlError>
  readonly close: Effect.Effect<void>
}

const noAnswer = connectionLost("the server does not answer")

/**
 * Runs an effect in `scope`, and waits for it until the deadline. Only the wait is bounded, because interrupting a
 * statement takes time.
 */
const within = <A>(
  scope: Scope.Scope,
  self: Effect.Effect<A, SqlError.SqlError>
): Effect.Effect<A, SqlError.SqlError> =>
  Effect.flatMap(
    Effect.forkIn(self, scope, { startImmediately: true }),
    (fiber) =>
      Effect.flatMap(
        Abandonable.end(fiber, answerDeadline),
        Option.match({
          onNone: () => Effect.fail(noAnswer),
          // The scope closes with the connection; the caller receives an error, not an interruption.
          onSome: (exit): Effect.Effect<A, SqlError.SqlError> =>
            Exit.isFailure(exit) && Cause.hasInterrupts(exit.cause) ? Effect.fail(noAnswer) : exit
        })
      )
  )

/**
 * Makes a listener that connects when first needed. The listening session also sends: it is never busy with a batch,
 * and a process that only appends needs no more than this one connection beside its pool.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<Listener["Service"], never, Database | Scope.Scope> = Effect.gen(function*() {
  const database = yield* Database
  const owner = yield* Effect.scope
  // Forked before the fibers below, so that it closes after them and they do not report the closing as a loss.
  const connections = yield* Scope.fork(owner)
  const subscribers = new Map<string, Set<Queue.Queue<string>>>()
  const hooks = new Set<Hook>()
  // Serializes connecting and changes of what runs on the connection.
  const changing = Semaphore.makeUnsafe(1)
  const needed = Latch.makeUnsafe(false)
  const connected = Latch.makeUnsafe(false)
  const lost = Latch.makeUnsafe(false)
  let current: Connected | undefined

  const offer = (channel: string, payload: string): void => {
    for (const queue of subscribers.get(channel) ?? []) Queue.offerUnsafe(queue, payload)
  }

  const drop = (self: Connected, error: SqlError.SqlError): Effect.Effect<void> =>
    Effect.suspend(() => {
      if (current === self) {
        current = undefined
        connected.closeUnsafe()
        lost.openUnsafe()
      }
      // Closing a connection that no longer answers may take long, so it is not awaited.
      return Effect.andThen(Deferred.succeed(self.lost, error), Effect.asVoid(Effect.forkIn(self.close, owner)))
    })

  const listenOn = Effect.fnUntraced(function*(self: Connected, channel: string) {
    if (self.listening.has(channel)) return
    const queue = yield* within(self.scope, Scope.provide(self.connection.listen(channel), self.scope))
    self.listening.add(channel)
    yield* Queue.take(queue).pipe(
      Effect.tap((message) => Effect.sync(() => offer(channel, message.payload))),
      Effect.forever,
      Effect.catch((error) => drop(self, error)),
      Effect.forkIn(self.scope)
    )
  })

  const probe = (self: Connected) =>
    Effect.sleep(database.listen ? probeInterval : probeIntervalWithoutListen).pipe(
      Effect.andThen(within(self.scope, self.connection.query("SELECT 1"))),
      Effect.forever,
      Effect.catch((error) => drop(self, error))
    )

  const connect: Effect.Effect<Connected, SqlError.SqlError> = Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Scope.fork(connections)
      // Forked later, so that the connection closes first and no UNLISTEN is sent for each channel to a dead server.
      const connectionScope = yield* Scope.fork(connections)
      const close = Effect.andThen(Scope.close(connectionScope, Exit.void), Scope.close(scope, Exit.void))
      const self = yield* Effect.gen(function*() {
        const base = yield* Scope.provide(
          database.openConnection("pupsourcing-orchestrator listener"),
          connectionScope
        )
        const self: Connected = {
          connection: yield* Scope.provide(base.pin, scope),
          scope,
          listening: new Set(),
          openedAt: yield* Clock.monotonicTimeNanos,
          lost: Deferred.makeUnsafe(),
          close
        }
        if (database.listen) {
          // Always listen on one channel, because a listening queue fails at once when the connection is lost.
          for (const channel of new Set([database.channels.control, ...subscribers.keys()])) {
            yield* listenOn(self, channel)
          }
        }
        for (const hook of hooks) yield* within(scope, hook(self.connection))
        return self
      }).pipe(restore, Effect.onError(() => Effect.forkIn(close, owner)))
      current = self
      connected.openUnsafe()
      lost.closeUnsafe()
      yield* Effect.forkIn(probe(self), scope)
      if (database.listen) {
        for (const channel of subscribers.keys()) offer(channel, reconnected)
      }
      return self
    })
  )

  /** Must run with the permit of `changing`. */
  const ensure = Effect.suspend(() => current === undefined ? connect : Effect.succeed(current))

  const describe = (error: SqlError.SqlError): string =>
    toStoreError(database.sessionServer, "open the listening session")(error).message

  const keep = Effect.gen(function*() {
    let attempt = 0
    let reported = false
    while (true) {
      yield* needed.await
      yield* Effect.sleep(yield* delay(attempt))
      const exit = yield* Effect.exit(changing.withPermit(ensure))
      if (Exit.isFailure(exit)) {
        if (Cause.hasInterrupts(exit.cause)) return yield* Effect.failCause(exit.cause)
        attempt++
        if (!reported) {
          reported = true
          const error = sqlErrorIn(exit.cause)
          yield* error === undefined
            ? Effect.logError("The listening session cannot be opened; retrying.", exit.cause)
            : Effect.logWarning(`The listening session cannot be opened; retrying. ${describe(error)}`)
        }
        continue
      }
      const self = exit.value
      if (reported) yield* Effect.logInfo("The listening session is open again.")
      const error = yield* Deferred.await(self.lost)
      const lived = (yield* Clock.monotonicTimeNanos) - self.openedAt
      attempt = lived >= steadyNanos ? 0 : attempt + 1
      reported = true
      yield* Effect.logWarning(
        `The listening session was lost; polling until it is open again. ${describe(error)}`
      )
    }
  })

  const pending = new Map<string, Notifications.Message>()
  const sendTo = Notifications.makeSender()
  const waiting = Latch.makeUnsafe(false)

  const sending = Semaphore.makeUnsafe(1)

  const sendPending = (fallback: Notifications.Query | undefined) =>
    sending.withPermit(Effect.suspend(() => {
      const messages = [...pending.values()]
      pending.clear()
      const self = current
      const query: Notifications.Query | undefined = self === undefined
        ? fallback
        : (text, params) => within(self.scope, self.connection.query(text, params))
      return query === undefined || messages.length === 0 ? Effect.void : Effect.ignoreCause(sendTo(query, messages))
    }))

  /** Uses the application's pool, which has a connection after an append, but never a transaction of the caller. */
  const queryPool: Notifications.Query = (text, params) =>
    Effect.updateContext(
      database.sql.unsafe(text, params),
      (context: Context.Context<never>) => Context.omit(database.sql.transactionService)(context)
    )

  /**
   * Sends the last messages, on the pool if the session is not open: a process that appends and ends has often not
   * opened it yet. A send that is in progress is awaited as well, but a server that does not answer is not.
   */
  const sendLast = Effect.flatMap(
    Abandonable.start(sendPending(queryPool)),
    (fiber) => Effect.asVoid(Abandonable.end(fiber, sendPatience))
  )

  const send = Effect.gen(function*() {
    while (true) {
      yield* waiting.await
      yield* Effect.timeoutOption(connected.await, sendPatience)
      waiting.closeUnsafe()
      yield* sendPending(undefined)
      yield* Effect.sleep(sendInterval)
    }
  })

  yield* Effect.forkIn(Effect.withTracerEnabled(keep, false), owner)
  if (database.listen) {
    yield* Effect.forkIn(Effect.withTracerEnabled(send, false), owner)
    // Without this, the messages of a process's last appends would be lost when it ends.
    yield* Effect.addFinalizer(() => sendLast)
  }

  const subscribe: Listener["Service"]["subscribe"] = Effect.fnUntraced(function*(channel) {
    const queue = yield* Effect.acquireRelease(
      Effect.tap(Queue.sliding<string>(queueCapacity), (queue) =>
        Effect.sync(() => {
          const queues = subscribers.get(channel)
          if (queues === undefined) subscribers.set(channel, new Set([queue]))
          else queues.add(queue)
        })),
      (queue) => {
        subscribers.get(channel)?.delete(queue)
        return Queue.shutdown(queue)
      }
    )
    if (!database.listen) return queue
    needed.openUnsafe()
    yield* changing.withPermit(Effect.suspend(() => {
      const self = current
      return self === undefined ? Effect.void : listenOn(self, channel).pipe(
        Effect.tap(() => Queue.offer(queue, reconnected)),
        Effect.catch((error) => drop(self, error))
      )
    })).pipe(Effect.forkIn(owner))
    return queue
  })

  const notify: Listener["Service"]["notify"] = (channel, payload) =>
    database.listen
      ? Effect.sync(() => {
        if (pending.size < pendingCapacity) pending.set(`${channel}\u0000${payload}`, [channel, payload])
        needed.openUnsafe()
        waiting.openUnsafe()
      })
      : Effect.void

  const onConnection: Listener["Service"]["onConnection"] = Effect.fnUntraced(function*(hook) {
    const scope = yield* Effect.scope
    const entry: Hook = (connection) => hook(connection)
    yield* changing.withPermit(Effect.gen(function*() {
      const self = yield* ensure
      yield* within(self.scope, entry(self.connection)).pipe(
        Effect.tapError((error) => error.reason._tag === "ConnectionError" ? drop(self, error) : Effect.void)
      )
      hooks.add(entry)
      yield* Scope.addFinalizer(scope, Effect.sync(() => hooks.delete(entry)))
    })).pipe(refail(database.sessionServer, "open the listening session"))
    needed.openUnsafe()
  })

  return Listener.of({ subscribe, notify, onConnection, lost: lost.await })
})
