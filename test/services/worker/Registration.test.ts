import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Stream from "effect/Stream"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import { Membership } from "../../../src/services/Membership.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../src/testing/TimeLimits.ts"
import { enter, event, logs, pass, restorePoint, stubborn } from "../World.ts"

it.effect("a worker leaves although its handler does not stop", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const process = yield* enter(world)
    yield* process.events.append([event("a")])
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [stubborn] }).pipe(
      Effect.provide(process.stores)
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(500)
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(40_000, 250)
    assert.isDefined(fiber.pollUnsafe())
    assert.isDefined([...world.workers.value.values()][0]?.stoppedAt)
  }))

it.effect("a late subscriber receives the halts of the current state", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    yield* process.events.append([event("a")])
    const broken = Projection.make("broken", { handle: () => Effect.fail("no") })
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [broken] }).pipe(
      Effect.provide(process.stores)
    )
    const fiber = yield* Effect.forkDetach(orchestrator.run)
    yield* pass(1000)
    const present = yield* orchestrator.activity.pipe(Stream.take(4), Stream.runCollect)
    assert.deepStrictEqual([...present].map(({ _tag }) => _tag), [
      "WorkerRegistered",
      "GenerationChanged",
      "RangeClaimed",
      "RangeHalted"
    ])
    yield* Effect.forkDetach(Fiber.interrupt(fiber))
    yield* pass(1000)
  }))

it.live("the application's pool closes although a handler does not stop", () =>
  Effect.gen(function*() {
    const { url } = yield* PostgresTest.TestDatabase
    const holding = yield* Deferred.make<void>()
    const holds = Projection.make("holds", {
      handle: () => Effect.andThen(Deferred.succeed(holding, undefined), Effect.uninterruptible(Effect.never))
    })
    const live = Orchestrator.layer({ replicaSet: "main", projections: [holds], drainTimeout: 50 }).pipe(
      Layer.provideMerge(PostgresStores.layer),
      Layer.provideMerge(PgClient.layer({ url: Redacted.make(url) }))
    )
    const fiber = yield* Effect.gen(function*() {
      yield* (yield* EventStore).append([event("a")])
      return yield* Orchestrator.run
    }).pipe(Effect.provide(live), Effect.forkDetach)
    yield* Effect.raceFirst(Deferred.await(holding), Fiber.join(fiber))
    fiber.interruptUnsafe()
    yield* TimeLimits.within("60 seconds")(Fiber.await(fiber))
  }).pipe(Effect.provide(Layer.effectDiscard(Migrations.up).pipe(Layer.provideMerge(PostgresTest.layer)))))

it.effect("a defect during shutdown is logged", () =>
  Effect.gen(function*() {
    const process = yield* enter(yield* MemoryStores.makeWorld)
    const { run } = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [Projection.make("users", { handle: () => Effect.void })]
    }).pipe(
      Effect.provide(Context.add(process.stores, Membership, {
        ...process.membership,
        wakeUps: (self) =>
          Effect.acquireRelease(process.membership.wakeUps(self), () => Effect.die(new Error("a bug in closing")))
      }))
    )
    const { layer, lines } = logs()
    const fiber = yield* Effect.forkDetach(Effect.provide(run, layer))
    yield* pass(1000)
    yield* Fiber.interrupt(fiber)
    const texts = lines.map(({ text }) => text)
    assert.include(texts, "The orchestrator died")
    assert.notInclude(texts, "Shutdown complete")
  }))

it.effect("a worker whose registration the server has lost registers again, also if its id was used before", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const users = Projection.make("users", { handle: () => Effect.void })
    const start = Effect.fnUntraced(function*() {
      const orchestrator = yield* Orchestrator.make({
        replicaSet: "main",
        projections: [users],
        workerId: "pod-0"
      }).pipe(Effect.provide((yield* enter(world)).stores))
      return yield* Effect.forkDetach(Effect.exit(orchestrator.run))
    })
    const before = yield* start()
    yield* pass(1000)
    yield* Effect.forkDetach(Fiber.interrupt(before))
    yield* pass(1000)
    const comeBack = restorePoint(world)
    const worker = yield* start()
    yield* pass(1000)
    yield* comeBack
    yield* pass(20_000)
    assert.isUndefined(worker.pollUnsafe())
    assert.strictEqual(world.workers.value.values().next().value?.state, "running")
  }))
