/**
 * All databases of a server share its notification queue. Another application fills it here, with a session that
 * listens inside an open transaction. Nothing that must succeed may depend on the queue.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Queue from "effect/Queue"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"
import { afterAll } from "vitest"
import { codeOf } from "../../../../src/layers/postgres/connection/SqlErrors.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import { Membership } from "../../../../src/services/Membership.ts"
import * as EmbeddedPostgres from "../../../../src/testing/EmbeddedPostgres.ts"
import * as PostgresTest from "../../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import { patient } from "../../../suites/Suite.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as EventStores from "../../../support/EventStores.ts"

const { decide, join } = CoordinationStores

const serverScope = Scope.makeUnsafe()
afterAll(() => Effect.runPromise(Scope.close(serverScope, Exit.void)))

/** A server whose queue fills quickly. */
const server = Effect.runSync(Effect.cached(
  EmbeddedPostgres.acquire({ name: "test-notify", settings: { max_notify_queue_pages: "64", fsync: "off" } }).pipe(
    Scope.provide(serverScope),
    Effect.map(({ url }) => url),
    Effect.orDie
  )
))

const connect = (url: string) => Effect.provide(PgClient.makeClient({ url: Redacted.make(url) }), Reactivity.layer)

/** Fills the queue until the scope closes, from another database of the server. */
const fillQueue = Effect.gen(function*() {
  const other = yield* PostgresTest.make({ serverUrl: yield* server })
  const listening = yield* connect(other.url)
  yield* listening`LISTEN other_application`
  yield* listening`BEGIN`
  yield* listening`SELECT 1`
  const sending = yield* connect(other.url)
  const fill = Effect.flip(Effect.forever(
    sending`SELECT count(pg_notify('other_application', repeat('x', 7000) || n)) FROM generate_series(1, 10) AS n`
  ))
  yield* fill
  // Removes what an earlier test left, so that this session fills the whole queue.
  yield* sending`SELECT pg_notification_queue_usage()`
  const error = yield* fill
  assert.strictEqual(SqlError.isSqlError(error) ? codeOf(error) : undefined, "54000")
})

const live = (
  title: string,
  listen: boolean,
  test: () => Effect.Effect<
    unknown,
    unknown,
    CoordinationStores.Services | SqlClient.SqlClient | PgClient.PgClient | Scope.Scope
  >
) =>
  it.live(title, () =>
    Effect.flatMap(server, (serverUrl) =>
      Effect.scoped(test()).pipe(
        Effect.provide(
          CoordinationStores.over({ listen }).pipe(Layer.provideMerge(PostgresTest.layerWith({ serverUrl })))
        )
      )))

// Not concurrent, because the tests share the queue.
describe("NotificationQueue", { concurrent: false }, () => {
  for (const listen of [true, false]) {
    live(
      `with a full queue a worker registers, claims, is evicted and leaves (listen: ${listen})`,
      listen,
      () =>
        Effect.gen(function*() {
          yield* fillQueue
          const membership = yield* Membership
          const first = yield* join("set", "first", ["users"])
          assert.isTrue((yield* decide(first)).isComplete)
          const other = yield* CoordinationStores.another({ listen })
          const second = yield* other.provide(join("set", "second", ["users"]))
          yield* other.provide(decide(second))
          // Cut and released, then claimed.
          yield* decide(first)
          const claimed = yield* other.provide(decide(second))
          assert.isTrue(claimed.isComplete)
          assert.strictEqual(claimed.ownedRows.length, 1)
          yield* membership.heartbeat(first)
          const { evict, isComplete: settled } = yield* decide(first, {
            rules: { ...patient, heartbeatIntervalMillis: 0, staleWorkerTimeoutMillis: -1 }
          })
          assert.deepStrictEqual(evict.map((worker) => worker.incarnation), [second.incarnation])
          assert.isTrue(settled)
          yield* decide(first, { leaving: true })
          assert.strictEqual((yield* Effect.flip(membership.heartbeat(first)))._tag, "WorkerEvicted")
        })
    )
  }

  live("with a full queue events are appended, and one line reports the queue", true, () =>
    Effect.gen(function*() {
      yield* fillQueue
      const lines: Array<string> = []
      const logger = Logger.make(({ message }) => void lines.push(String(message)))
      const event = { boundedContext: "test", aggregateType: "Test", eventType: "Happened", payload: {} }
      yield* Effect.gen(function*() {
        const events = yield* EventStore
        const reported = () =>
          lines.filter((line) => line.includes("notification queue of the database server is full"))
        for (const aggregateId of ["a", "b", "c"]) {
          assert.strictEqual((yield* events.append([{ ...event, aggregateId }])).positions.length, 1)
          yield* TimeLimits.waitUntil("the queue is reported", Effect.sync(reported), (found) => found.length > 0)
        }
        // Notifications are sent in order, so that every append has been announced.
        yield* Effect.sleep("100 millis")
        assert.strictEqual(reported().length, 1)
      }).pipe(Effect.provide(EventStores.stores().pipe(Layer.provideMerge(Logger.layer([logger])))))
    }))

  live("workers are woken again once the queue has space", true, () =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      yield* Scope.provide(fillQueue, scope)
      const membership = yield* Membership
      const first = yield* join("set", "first", ["users"])
      const wakeUps = yield* membership.wakeUps(first)
      const sql = yield* SqlClient.SqlClient
      yield* Scope.close(scope, Exit.void)
      // The server leaves the queue full although no session reads it any more.
      assert.strictEqual(
        SqlError.isSqlError(yield* Effect.flip(sql`SELECT pg_notify('any', '')`)),
        true
      )
      yield* Queue.clear(wakeUps)
      yield* decide(yield* join("set", "second", ["users"]))
      yield* TimeLimits.waitUntil("the worker is woken", Queue.size(wakeUps), (size) => size > 0)
    }))
})
