/**
 * What the parts on PostgreSQL must not do to each other.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { describe } from "vitest"
import * as Settled from "../../../src/layers/postgres/Settled.ts"
import type { NewEvent } from "../../../src/schema/Event.ts"
import { CheckpointStore } from "../../../src/services/CheckpointStore.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import { patient } from "../../suites/Suite.ts"
import * as CoordinationStores from "../../support/CoordinationStores.ts"
import * as EventStores from "../../support/EventStores.ts"
import * as Proxy from "../../support/Proxy.ts"
import * as TestDatabase from "../../support/TestDatabase.ts"
import * as TimeLimits from "../../support/TimeLimits.ts"

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
  it("a transaction that seemed to end and then turned up prepared still holds readers back", () => {
    const settled = Settled.make()
    const holder = (id: string, pid?: number): Settled.Holder => ({ id, pid, application: undefined })
    Settled.see(settled, [], 5n)
    for (const seen of [holder("3/5", 1), holder("3/0", 1), holder("3/5")]) Settled.prove(settled, 5n, [seen])
    assert.strictEqual(settled.mark, 0n)
    Settled.prove(settled, 5n, [])
    assert.strictEqual(settled.mark, 5n)
  })

  it.live("a checkpoint that is ahead of the events moves nobody else's bound", () =>
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

  it.live("the settled position is where others are, not where the history has its first gap", () =>
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
  it.live("a key that comes out of the sequence again while somebody holds it is not taken for one's own", () =>
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
  /** Over a pool of so many connections. */
  const pooled = (maxConnections: number) =>
    CoordinationStores.over().pipe(Layer.provideMerge(TestDatabase.layerWith({ client: { maxConnections } })))

  it.live("that get no connection of the pool fail, and say why", () =>
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
    "are transactions at the top level: savepoints nest in them, and what waits for the commit has a connection",
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
            // What is run after the commit may not fail; what dies there is logged, and the count stays away.
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
      // Not a wait for anything that happens: all batches at once is what must not.
      yield* Effect.timeoutOption(Deferred.await(all), "500 millis")
      // Without a free connection it would wait for a batch to end, and none ends before this.
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

// At the same time, because most of what they do is to wait.
describe("batches whose connection falls silent", { concurrent: true, tags: ["long"] }, () => {
  /** A process whose way to the database may fall silent. */
  const behind = <A, E>(
    self: (
      proxy: Proxy.Proxy
    ) => Effect.Effect<A, E, CoordinationStores.Stores | PgClient.PgClient | Scope.Scope>
  ) =>
    Effect.gen(function*() {
      const url = new URL((yield* TestDatabase.TestDatabase).url)
      const proxy = yield* Proxy.make({ host: url.hostname, port: Number(url.port) })
      url.host = `127.0.0.1:${proxy.port}`
      return yield* Effect.provide(
        // The client's pool closes after this: no connection that was left behind may hold it up.
        Effect.scoped(self(proxy)),
        CoordinationStores.over().pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(url.href) })))
      )
    }).pipe(Effect.scoped, Effect.provide(TestDatabase.layer))

  const idleTimeout = Duration.seconds(1)

  it.live(
    "end when that happens in a handler, however alive the rest of the process is",
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
    "do not begin for ever when it happened while nobody used it",
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
          // What is not even begun stays with the pool until TCP gives it up.
          yield* proxy.giveUp
        })
      )
  )

  it.live(
    "are committed when only the answer to their COMMIT never comes",
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
    "can be interrupted while the answer to their COMMIT never comes: their range is given up",
    () =>
      behind((proxy) =>
        Effect.gen(function*() {
          const checkpoints = yield* CheckpointStore
          const held = yield* CoordinationStores.held("p")
          const handled = yield* Deferred.make<void>()
          const batch = yield* Effect.forkChild(checkpoints.commit(
            held,
            // Far longer than a range has to be given up.
            { from: 0n, idleTimeout: Duration.minutes(1) },
            proxy.silenceAtEnd.pipe(Effect.andThen(Deferred.succeed(handled, undefined)), Effect.as(1n))
          ))
          yield* Deferred.await(handled)
          yield* Effect.repeat(checkpoints.rows("p"), {
            until: ([row]) => row?.position === 1n,
            schedule: Schedule.spaced("20 millis")
          })
          yield* TimeLimits.within("60 seconds")(Fiber.interrupt(batch))
        })
      )
  )

  it.live(
    "can be interrupted while nothing answers to their ROLLBACK",
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
