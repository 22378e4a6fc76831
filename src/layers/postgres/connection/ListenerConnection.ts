/** The connection of the listening session: opened with its channels and hooks, probed, and dropped when it is lost. */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type * as SqlError from "effect/sql/SqlError"
import * as Abandonable from "../../../services/Abandonable.ts"
import type { Database } from "../Database.ts"
import type * as Notifications from "./Notifications.ts"
import { connectionLost } from "./SqlErrors.ts"

/** A server that becomes unreachable without closing the connection is detected within this plus `answerDeadline`. */
const probeInterval = Duration.seconds(15)

/** Without LISTEN, only the probe detects a lost connection. */
const probeIntervalWithoutListen = Duration.seconds(2)

const answerDeadline = Duration.seconds(5)

const noAnswer = connectionLost("the server does not answer")

/** The payload that means "connected (again); messages may have been missed". */
export const reconnected = ""

export type Hook = (connection: PgConnection.PgConnection) => Effect.Effect<void, SqlError.SqlError>

export interface Connected {
  readonly connection: PgConnection.PgConnection
  /** The scope of everything that runs on the connection. */
  readonly scope: Scope.Closeable
  readonly listening: Set<string>
  readonly openedAt: bigint
  readonly lost: Deferred.Deferred<SqlError.SqlError>
  readonly close: Effect.Effect<void>
}

/** The current connection, and what runs on every connection. Only `connect` and `drop` change which one is current. */
export interface State {
  readonly database: Database["Service"]
  readonly owner: Scope.Scope
  readonly connections: Scope.Scope
  readonly subscribers: Map<string, Set<Queue.Queue<string>>>
  readonly hooks: Set<Hook>
  /** Serializes connecting and changes of what runs on the connection. */
  readonly changing: Semaphore.Semaphore
  readonly connected: Latch.Latch
  readonly lost: Latch.Latch
  current: Connected | undefined
}

export const makeState = Effect.fnUntraced(function*(database: Database["Service"]) {
  const owner = yield* Effect.scope
  const state: State = {
    database,
    owner,
    // Forked before the fibers that use it, so that it closes after them and they do not report the closing as a loss.
    connections: yield* Scope.fork(owner),
    subscribers: new Map(),
    hooks: new Set(),
    changing: Semaphore.makeUnsafe(1),
    connected: Latch.makeUnsafe(false),
    lost: Latch.makeUnsafe(false),
    current: undefined
  }
  return state
})

/** Returns the open connection, or opens one. Must run with the permit of `changing`. */
export const ensure = (state: State): Effect.Effect<Connected, SqlError.SqlError> =>
  Effect.suspend(() => state.current === undefined ? connect(state) : Effect.succeed(state.current))

const connect = (state: State): Effect.Effect<Connected, SqlError.SqlError> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.gen(function*() {
      const scope = yield* Scope.fork(state.connections)
      // Forked later, so that the connection closes first and no UNLISTEN is sent for each channel to a dead server.
      const connectionScope = yield* Scope.fork(state.connections)
      const close = Effect.andThen(Scope.close(connectionScope, Exit.void), Scope.close(scope, Exit.void))
      const self = yield* open(state, scope, connectionScope, close).pipe(
        restore,
        Effect.onError(() => Effect.forkIn(close, state.owner))
      )
      state.current = self
      state.connected.openUnsafe()
      state.lost.closeUnsafe()
      yield* Effect.forkIn(probe(state, self), scope)
      if (state.database.listen) {
        for (const channel of state.subscribers.keys()) offer(state, channel, reconnected)
      }
      return self
    })
  )

/** Opens a connection, listens on the channels and runs the hooks. */
const open = Effect.fnUntraced(function*(
  state: State,
  scope: Scope.Closeable,
  connectionScope: Scope.Scope,
  close: Effect.Effect<void>
) {
  const { database, hooks, subscribers } = state
  const base = yield* Scope.provide(database.openConnection("pupsourcing-orchestrator listener"), connectionScope)
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
      yield* listenOn(state, self, channel)
    }
  }
  for (const hook of hooks) yield* within(self, hook(self.connection))
  return self
})

export const listenOn = Effect.fnUntraced(function*(state: State, self: Connected, channel: string) {
  if (self.listening.has(channel)) return
  const queue = yield* within(self, Scope.provide(self.connection.listen(channel), self.scope))
  self.listening.add(channel)
  yield* Queue.take(queue).pipe(
    Effect.tap((message) => Effect.sync(() => offer(state, channel, message.payload))),
    Effect.forever,
    Effect.catch((error) => drop(state, self, error)),
    Effect.forkIn(self.scope)
  )
})

const offer = ({ subscribers }: State, channel: string, payload: string): void => {
  for (const queue of subscribers.get(channel) ?? []) Queue.offerUnsafe(queue, payload)
}

const probe = (state: State, self: Connected): Effect.Effect<void> =>
  Effect.sleep(state.database.listen ? probeInterval : probeIntervalWithoutListen).pipe(
    Effect.andThen(within(self, self.connection.query("SELECT 1"))),
    Effect.forever,
    Effect.catch((error) => drop(state, self, error))
  )

export const drop = (state: State, self: Connected, error: SqlError.SqlError): Effect.Effect<void> =>
  Effect.suspend(() => {
    if (state.current === self) {
      state.current = undefined
      state.connected.closeUnsafe()
      state.lost.openUnsafe()
    }
    // Closing a connection that no longer answers may take long, so it is not awaited.
    return Effect.andThen(Deferred.succeed(self.lost, error), Effect.asVoid(Effect.forkIn(self.close, state.owner)))
  })

/** Sends statements on the current connection; undefined while there is none. */
export const queryCurrent = ({ current }: State): Notifications.Query | undefined =>
  current === undefined ? undefined : (text, params) => within(current, current.connection.query(text, params))

/**
 * Runs an effect in the scope of a connection, and waits for it until the deadline. Only the wait is bounded, because
 * interrupting a statement takes time.
 */
export const within = <A>(
  { scope }: Connected,
  self: Effect.Effect<A, SqlError.SqlError>
): Effect.Effect<A, SqlError.SqlError> =>
  Effect.forkIn(self, scope, { startImmediately: true }).pipe(
    Effect.flatMap((fiber) => Abandonable.end(fiber, answerDeadline)),
    Effect.flatMap(Option.match({
      onNone: () => Effect.fail(noAnswer),
      // The scope closes with the connection; the caller receives an error, not an interruption.
      onSome: (exit): Effect.Effect<A, SqlError.SqlError> =>
        Exit.isFailure(exit) && Cause.hasInterrupts(exit.cause) ? Effect.fail(noAnswer) : exit
    }))
  )
