/** Interactions between the parts on PostgreSQL that must not happen. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import { describe } from "vitest"
import type { NewEvent } from "../../../src/schema/Event.ts"
import { CheckpointStore } from "../../../src/services/CheckpointStore.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../src/testing/TimeLimits.ts"
import { patient } from "../../suites/Suite.ts"
import * as CoordinationStores from "../../support/CoordinationStores.ts"
import * as EventStores from "../../support/EventStores.ts"
import * as Proxy from "../../support/Proxy.ts"

const event = (aggregateId: string): NewEvent => ({
  boundedContext: "test",
  aggregateType: "Test",
  aggregateId,
  eventType: "Happened",
  payload: {}
})

const append = Effect.fnUntraced(function*(aggregateId: string) {
  const appended = yield* (yield* EventStore).append([event(aggregateId)])
  return appended.positions[0]!
})

const poll = Duration.millis(50)

describe("settled position", () => {
  it.live("a checkpoint ahead of the events does not advance other readers", () =>
    Effect.gen(function*() {
      const store = yield* EventStore
      const first = yield* append("a")
      assert.strictEqual((yield* Effect.flip(store.settledBeyond(1000n, poll)))._tag, "CheckpointAheadOfEvents")
      const second = yield* append("a")
      const upTo = yield* store.settledBeyond(first, poll)
      assert.strictEqual(upTo, second)
      const page = yield* store.read({ after: first, upTo })
      assert.strictEqual(page.position, second)
    }).pipe(Effect.provide(EventStores.layerWith())))

  it.live("a new reader starts at the settled position, not at the first gap of the history", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      yield* append("a")
      yield* Effect.exit(sql.withTransaction(Effect.andThen(append("b"), Effect.fail("no"))))
      const before = yield* append("a")
      const open = yield* Deferred.make<void>()
      const done = yield* Deferred.make<void>()
      yield* Effect.forkChild(sql.withTransaction(
        Effect.andThen(append("c"), Effect.andThen(Deferred.succeed(open, undefined), Deferred.await(done)))
      ))
      yield* Deferred.await(open)
      yield* append("a")
      const found = yield* Effect.gen(function*() {
        const store = yield* EventStore
        yield* Effect.forkChild(Effect.andThen(Effect.sleep("1 second"), Deferred.succeed(done, undefined)))
        return yield* store.settledPosition
      }).pipe(Effect.provide(EventStores.stores()))
      assert.isAtLeast(Number(found), Number(before))
    }).pipe(Effect.provide(EventStores.layerWith())))
})

describe("presence", () => {
  it.live("a presence key that the sequence returns again while another process holds it is not used", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const first = yield* CoordinationStores.join("set", "first", ["p"])
      // As after a failover that lost the sequence's last steps.
      yield* sql`SELECT setval('orchestrator_presence_keys', 1, false)`
      const process = yield* CoordinationStores.another()
      const second = yield* process.provide(CoordinationStores.join("set", "second", ["p"]))
      const { evict, generation } = yield* process.provide(CoordinationStores.decide(second, {
        rules: { ...patient, presenceGraceMillis: 0 }
      }))
      assert.deepStrictEqual(evict, [])
      assert.deepStrictEqual(generation?.members.map(({ workerId }) => workerId), [first.workerId, second.workerId])
    }).pipe(Effect.scoped, Effect.provide(CoordinationStores.layerWith())))
})

describe("batches", { concurrent: true }, () => {
  /** Stores over a pool of this many connections. */
  const pooled = (maxConnections: number) =>
    CoordinationStores.over().pipe(Layer.provideMerge(PostgresTest.layerWith({ client: { maxConnections } })))

  it.live("that get no connection of the pool fail, and the error states why", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const checkpoints = yield* CheckpointStore
      const held = yield* CoordinationStores.held("p")
      const [taken, done] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const busy = yield* Effect.forkChild(
        sql.withTransaction(Effect.andThen(Deferred.succeed(taken, undefined), Deferred.await(done)))
      )
      yield* Deferred.await(taken)
      const commit = checkpoints.commit(held, { from: 0n, idleTimeout: Duration.seconds(30) }, Effect.succeed(1n))
      const failure = yield* Effect.flip(commit)
      assert(failure._tag === "DatabaseUnavailable")
      assert.include(failure.message, "No connection of the application's pool became free")
      yield* Deferred.succeed(done, undefined)
      yield* Fiber.join(busy)
      yield* commit
    }).pipe(Effect.scoped, Effect.provide(pooled(1))), { tags: ["long"] })

  it.live(
    "are top-level transactions: savepoints nest in them, and after-commit effects have a connection",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient.PgClient
        const checkpoints = yield* CheckpointStore
        const held = yield* CoordinationStores.held("p")
        yield* sql`CREATE TABLE seen (id int)`
        const counts: Array<unknown> = []
        const count = Effect.map(sql`SELECT id FROM seen ORDER BY id`.values, (rows) => {
          counts.push(rows.flat())
        })
        yield* checkpoints.commit(
          held,
          { from: 0n, idleTimeout: Duration.seconds(30) },
          Effect.gen(function*() {
            yield* sql`INSERT INTO seen VALUES (1)`
            yield* Effect.exit(
              sql.withTransaction(Effect.andThen(sql`INSERT INTO seen VALUES (2)`, Effect.fail("undone")))
            )
            yield* sql.withTransaction(sql`INSERT INTO seen VALUES (3)`)
            // Effects that run after the commit must not fail; a defect in one is logged, and the count is not updated.
            yield* sql.afterCommit(Effect.orDie(count))
            return 1n
          })
        )
        assert.deepStrictEqual(counts, [[1, 3]])
      }).pipe(Effect.scoped, Effect.provide(pooled(1)))
  )

  it.live("leave the application a connection of its pool", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const checkpoints = yield* CheckpointStore
      const done = yield* Deferred.make<void>()
      let begun = 0
      const all = yield* Deferred.make<void>()
      const batches = yield* Effect.forEach(["p", "q"], (name) =>
        Effect.flatMap(CoordinationStores.held(name), (held) =>
          Effect.forkChild(checkpoints.commit(
            held,
            { from: 0n, idleTimeout: Duration.seconds(30) },
            Effect.andThen(
              Effect.suspend(() =>
                ++begun === 2 ? Deferred.succeed(all, undefined) : Effect.void
              ),
              Effect.as(Deferred.await(done), 1n)
            )
          ))))
      // This does not wait for a condition: the test asserts that the batches do not all run at once.
      yield* Effect.timeoutOption(Deferred.await(all), "500 millis")
      // Without a free connection this would wait for a batch to end, and none ends before it.
      yield* TimeLimits.within("60 seconds")(sql`SELECT 1`)
      yield* Deferred.succeed(done, undefined)
      yield* Effect.forEach(batches, Fiber.join)
    }).pipe(
      Effect.scoped,
      Effect.provide(
        pooled(2)
      )
    ))
})

// Concurrent, because these tests mostly wait.
describe("batches whose connection goes silent", { concurrent: true, tags: ["long"] }, () => {
  /** A process whose connections to the database can be silenced. */
  const behind = <A, E>(
    self: (
      proxy: Proxy.Proxy
    ) => Effect.Effect<A, E, CoordinationStores.Stores | PgClient.PgClient | Scope.Scope>
  ) =>
    Effect.gen(function*() {
      const url = new URL((yield* PostgresTest.TestDatabase).url)
      const proxy = yield* Proxy.make({ host: url.hostname, port: Number(url.port) })
      url.host = `127.0.0.1:${proxy.port}`
      return yield* Effect.provide(
        // The client's pool closes after this; a connection left behind must not delay it.
        Effect.scoped(self(proxy)),
        CoordinationStores.over().pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(url.href) })))
      )
    }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer))

  const idleTimeout = Duration.seconds(1)

  it.live(
    "end when the connection goes silent in a handler, even while the process keeps running",
    () =>
      behind((proxy) =>
        Effect.gen(function*() {
          const sql = yield* PgClient.PgClient
          const checkpoints = yield* CheckpointStore
          const held = yield* CoordinationStores.held("p")
          const failure = yield* checkpoints.commit(
            held,
            { from: 0n, idleTimeout },
            Effect.andThen(proxy.silence, Effect.as(sql`SELECT 1`, 1n))
          ).pipe(Effect.flip, TimeLimits.within("60 seconds"))
          assert.strictEqual(failure._tag, "TransientFailure")
          yield* checkpoints.commit(held, { from: 0n, idleTimeout }, Effect.succeed(1n))
        })
      )
  )

  it.live(
    "fail instead of waiting forever in BEGIN on a connection that went silent while idle",
    () =>
      behind((proxy) =>
        Effect.gen(function*() {
          const sql = yield* PgClient.PgClient
          const checkpoints = yield* CheckpointStore
          const held = yield* CoordinationStores.held("p")
          yield* sql`SELECT 1`
          yield* proxy.silence
          const commit = checkpoints.commit(held, { from: 0n, idleTimeout }, Effect.succeed(1n))
          const failure = yield* commit.pipe(Effect.flip, TimeLimits.within("60 seconds"))
          assert.strictEqual(failure._tag, "DatabaseUnavailable")
          yield* commit
          assert.strictEqual((yield* checkpoints.rows("p"))[0]?.position, 1n)
          // A connection that is silent in BEGIN stays with the pool until TCP gives it up.
          yield* proxy.giveUp
        })
      )
  )

  it.live(
    "are committed when only the answer to their COMMIT is lost",
    () =>
      behind((proxy) =>
        Effect.gen(function*() {
          const checkpoints = yield* CheckpointStore
          const held = yield* CoordinationStores.held("p")
          const batch = yield* Effect.forkChild(
            checkpoints.commit(held, { from: 0n, idleTimeout }, Effect.as(proxy.silenceAtEnd, 1n))
          )
          yield* TimeLimits.within("60 seconds")(Fiber.join(batch))
          assert.strictEqual((yield* checkpoints.rows("p"))[0]?.position, 1n)
        })
      )
  )

  it.live(
    "can be interrupted while the answer to their COMMIT is missing, so that the range can be closed",
    () =>
      behind((proxy) =>
        Effect.gen(function*() {
          const checkpoints = yield* CheckpointStore
          const held = yield* CoordinationStores.held("p")
          const handled = yield* Deferred.make<void>()
          const batch = yield* Effect.forkChild(checkpoints.commit(
            held,
            // Much longer than the time in which a range has to be closed.
            { from: 0n, idleTimeout: Duration.minutes(1) },
            proxy.silenceAtEnd.pipe(Effect.andThen(Deferred.succeed(handled, undefined)), Effect.as(1n))
          ))
          yield* Deferred.await(handled)
          yield* TimeLimits.waitUntil("the batch is committed", checkpoints.rows("p"), ([row]) => row?.position === 1n)
          yield* TimeLimits.within("60 seconds")(Fiber.interrupt(batch))
        })
      )
  )

  it.live(
    "can be interrupted while their ROLLBACK gets no answer",
    () =>
      behind((proxy) =>
        Effect.gen(function*() {
          const checkpoints = yield* CheckpointStore
          const held = yield* CoordinationStores.held("p")
          const silent = yield* Deferred.make<void>()
          const batch = yield* Effect.forkChild(checkpoints.commit(
            held,
            { from: 0n, idleTimeout: Duration.minutes(1) },
            proxy.silence.pipe(Effect.andThen(Deferred.succeed(silent, undefined)), Effect.andThen(Effect.never))
          ))
          yield* Deferred.await(silent)
          yield* TimeLimits.within("60 seconds")(Fiber.interrupt(batch))
        })
      )
  )
})
