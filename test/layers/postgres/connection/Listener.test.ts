import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Logger from "effect/Logger"
import * as Queue from "effect/Queue"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as SqlError from "effect/sql/SqlError"
import { describe } from "vitest"
import * as Listener from "../../../../src/layers/postgres/connection/Listener.ts"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import * as DatabaseLive from "../../../../src/layers/postgres/DatabaseLive.ts"
import * as Announcement from "../../../../src/schema/Announcement.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import { test } from "../../../support/EventStores.ts"
import * as Proxy from "../../../support/Proxy.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"

/** A listener as one process has it. */
const process = (options: DatabaseLive.Options = {}) =>
  Effect.flatMap(DatabaseLive.make(options), (database) => Effect.provideService(Listener.make, Database, database))

const listening = `FROM pg_stat_activity
  WHERE datname = current_database() AND application_name = 'pupsourcing-orchestrator listener'`

const count = Effect.flatMap(
  PgClient.PgClient,
  (sql) => Effect.map(sql.unsafe(`SELECT ${listening}`), (rows) => rows.length)
)

/** Ends the listening sessions and returns how many there were. */
const kill = Effect.flatMap(
  PgClient.PgClient,
  (sql) => Effect.map(sql.unsafe(`SELECT pg_terminate_backend(pid, 5000) ${listening}`), (rows) => rows.length)
)

const of = (hash: number) => Announcement.make([hash])

/** The next message other than `reconnected`. */
const next = (queue: Queue.Dequeue<string>): Effect.Effect<string> =>
  Effect.flatMap(
    Queue.take(queue),
    (payload) => payload === Listener.reconnected ? next(queue) : Effect.succeed(payload)
  )

const lost = new SqlError.SqlError({
  reason: new SqlError.UnknownError({ cause: new Error("no"), message: "no", operation: "hook" })
})

describe("Listener", () => {
  test("connects once, when it is first needed, and notifies its subscribers", function*() {
    const listener = yield* process()
    assert.strictEqual(yield* count, 0)
    const a = yield* listener.subscribe("a")
    const b = yield* listener.subscribe("b")
    const again = yield* listener.subscribe("a")
    for (const queue of [a, b, again]) assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
    yield* listener.onConnection(() => Effect.void)
    yield* listener.notify("a", of(1))
    assert.strictEqual(yield* next(a), "appended:1")
    assert.strictEqual(yield* next(again), "appended:1")
    assert.strictEqual(yield* count, 1)
  })

  test("delivers announcements to other processes, those of a few milliseconds as one message", function*() {
    const one = yield* process()
    const other = yield* process()
    const queue = yield* other.subscribe("c")
    assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
    for (let index = 0; index < 500; index++) yield* one.notify("c", of(index % 10))
    yield* one.notify("elsewhere", of(10))
    yield* one.notify("c", of(11))
    const seen: Array<string> = []
    const hashes = new Set<number>()
    while (!hashes.has(11)) {
      seen.push(yield* next(queue))
      const announcement = Announcement.decode(seen[seen.length - 1]!)
      assert(announcement !== Announcement.all)
      for (const hash of announcement) hashes.add(hash)
    }
    assert.isAtMost(seen.length, 3)
    assert.deepStrictEqual([...hashes].sort((a, b) => a - b), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11])
  })

  test("sends the last message before it closes", function*() {
    const queue = yield* (yield* process()).subscribe("a")
    assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
    yield* Effect.scoped(Effect.gen(function*() {
      const leaving = yield* process()
      yield* leaving.onConnection(() => Effect.void)
      yield* leaving.notify("a", of(1))
      assert.strictEqual(yield* next(queue), "appended:1")
      yield* leaving.notify("a", of(2))
    }))
    assert.strictEqual(yield* next(queue), "appended:2")
  })

  test(
    "a process that exits immediately sends its notifications, even if its session was never opened",
    function*({ sql }) {
      const queue = yield* (yield* process()).subscribe("a")
      assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
      const leave = Effect.scoped(Effect.andThen(process(), (leaving) => leaving.notify("a", of(1))))
      yield* leave
      assert.strictEqual(yield* next(queue), "appended:1")
      // Sending does not wait for the end of a transaction.
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* leave
        assert.strictEqual(yield* next(queue), "appended:1")
      }))
    }
  )

  test("finishes sending a message while its process ends", function*() {
    const queue = yield* (yield* process()).subscribe("a")
    assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
    // The session is opened and the message sent, whenever the scope closes.
    for (let turn = 0; turn < 20; turn++) {
      yield* Effect.scoped(Effect.gen(function*() {
        const leaving = yield* process()
        yield* leaving.notify("a", of(turn))
        yield* Effect.sleep(`${turn} millis`)
      }))
      assert.strictEqual(yield* next(queue), `appended:${turn}`)
    }
  })

  test("an unresponsive server does not prevent a process from ending", function*({ url }) {
    const target = new URL(url)
    const proxy = yield* Proxy.make({ host: target.hostname, port: Number(target.port || 5432) })
    target.hostname = "127.0.0.1"
    target.port = String(proxy.port)
    const client = yield* PgClient.make({ url: Redacted.make(target.href), maxConnections: 1 }).pipe(
      Effect.provide(Reactivity.layer)
    )
    const scope = yield* Scope.make()
    const leaving = yield* process().pipe(
      Effect.provideService(PgClient.PgClient, client),
      Scope.provide(scope)
    )
    yield* proxy.silence
    yield* leaving.notify("a", of(1))
    yield* Scope.close(scope, Exit.void)
    yield* proxy.giveUp
  })

  test("a connection lost under a hook fails its registration, and interrupts no fiber", function*() {
    const listener = yield* process()
    const runs = yield* Queue.unbounded<void>()
    yield* listener.onConnection(() => Effect.asVoid(Queue.offer(runs, undefined)))
    yield* Queue.take(runs)
    yield* kill
    // From here on, the listener waits for the end of the connection.
    yield* Queue.take(runs)
    const begun = yield* Deferred.make<void>()
    const hook = () => Effect.andThen(Deferred.succeed(begun, undefined), Effect.never)
    const setting = yield* Effect.forkScoped(Effect.exit(listener.onConnection(hook)))
    yield* Deferred.await(begun)
    yield* kill
    const exit = yield* Fiber.join(setting)
    assert(Exit.isFailure(exit))
    const failure = exit.cause.reasons.find(Cause.isFailReason)
    assert.strictEqual(failure?.error.reason._tag, "DatabaseUnavailable")
  })

  test("a session that is considered lost is closed", function*() {
    const listener = yield* process()
    const silent = new SqlError.SqlError({
      reason: new SqlError.ConnectionError({ cause: new Error("no"), message: "no", operation: "query" })
    })
    // Nothing else needs the session yet.
    const exit = yield* Effect.exit(listener.onConnection(() => Effect.fail(silent)))
    assert.isTrue(Exit.isFailure(exit))
    yield* TimeLimits.waitUntil("the session is closed", count, (sessions) => sessions === 0)
    // The next hook opens a new session.
    yield* listener.onConnection(() => Effect.void)
    assert.strictEqual(yield* count, 1)
  })

  test("a lost connection is reopened at once: subscribers are notified, hooks run again, and one line is logged", function*() {
    const lines: Array<string> = []
    const logger = Logger.make<unknown, void>(({ logLevel, message }) => {
      lines.push(`${logLevel} ${String(message)}`)
    })
    yield* Effect.gen(function*() {
      const listener = yield* process()
      const queue = yield* listener.subscribe("a")
      assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
      const runs = yield* Queue.unbounded<number>()
      const scope = yield* Scope.fork(yield* Effect.scope)
      yield* Scope.provide(
        listener.onConnection(({ processId }) => Effect.asVoid(Queue.offer(runs, processId))),
        scope
      )
      const passing = yield* Scope.fork(scope)
      const dropped = yield* Queue.unbounded<number>()
      yield* Scope.provide(
        listener.onConnection(({ processId }) => Effect.asVoid(Queue.offer(dropped, processId))),
        passing
      )
      yield* Scope.close(passing, yield* Effect.exit(Effect.void))
      const first = yield* Queue.take(runs)
      assert.strictEqual(yield* kill, 1)
      assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
      assert.notStrictEqual(yield* Queue.take(runs), first)
      assert.strictEqual(yield* Queue.size(dropped), 1)
      yield* listener.notify("a", of(1))
      assert.strictEqual(yield* next(queue), "appended:1")
      assert.strictEqual(lines.filter((line) => line.startsWith("Warn") && line.includes("lost")).length, 1)
      assert.strictEqual(lines.filter((line) => line.startsWith("Info") && line.includes("again")).length, 1)
    }).pipe(Effect.provide(Logger.layer([logger])))
  })

  test("the first failure of a hook is returned to the caller, and the hook is not kept", function*() {
    const listener = yield* process()
    let runs = 0
    const error = yield* Effect.flip(listener.onConnection(() => {
      runs++
      return Effect.fail(lost)
    }))
    assert.strictEqual(reasonOf(error)._tag, "StatementFailed")
    const queue = yield* listener.subscribe("a")
    assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
    yield* kill
    assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
    assert.strictEqual(runs, 1)
  })

  test("a hook that fails later is retried on a new connection", function*() {
    const listener = yield* process()
    const runs = yield* Queue.unbounded<number>()
    let times = 0
    yield* listener.onConnection(() => {
      times++
      return Effect.andThen(Queue.offer(runs, times), times === 2 ? Effect.fail(lost) : Effect.void)
    })
    yield* Queue.take(runs)
    yield* kill
    assert.strictEqual(yield* Queue.take(runs), 2)
    assert.strictEqual(yield* Queue.take(runs), 3)
  })

  test("with listen: false nothing is sent or received, but hooks run again", function*() {
    const deaf = yield* process({ listen: false })
    const other = yield* process()
    const queue = yield* other.subscribe("a")
    const nothing = yield* deaf.subscribe("a")
    assert.strictEqual(yield* Queue.take(queue), Listener.reconnected)
    yield* deaf.notify("a", of(1))
    yield* other.notify("a", of(2))
    assert.strictEqual(yield* next(queue), "appended:2")
    assert.strictEqual(yield* Queue.size(nothing), 0)
    const runs = yield* Queue.unbounded<number>()
    yield* deaf.onConnection(({ processId }) => Effect.asVoid(Queue.offer(runs, processId)))
    const first = yield* Queue.take(runs)
    assert.strictEqual(yield* kill, 2)
    assert.notStrictEqual(yield* Queue.take(runs), first)
    assert.strictEqual(yield* Queue.size(nothing), 0)
  })
})
