import { assert, it } from "@effect/vitest"
import { Cause, Config, ConfigProvider, Duration, Effect, Exit, Fiber, Layer, Stream, TxRef } from "effect"
import { TestClock } from "effect/testing"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import type { Activity } from "../../src/schema/Activity.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"

const user = (id: string, eventType = "UserCreated") => ({
  boundedContext: "app",
  aggregateType: "User",
  aggregateId: id,
  eventType,
  payload: { id }
})

/** Counts the events of each aggregate and fails on any version but the next. */
const counting = (counts: TxRef.TxRef<Record<string, number>>) =>
  Projection.make("counts", {
    aggregateTypes: ["User"],
    handle: Effect.fnUntraced(function*(event) {
      const before = (yield* TxRef.get(counts))[event.aggregateId] ?? 0
      if (BigInt(before) + 1n !== event.aggregateVersion) {
        return yield* Effect.die(new Error(`${event.aggregateId}: ${event.aggregateVersion} after ${before}`))
      }
      yield* TxRef.update(counts, (all) => ({ ...all, [event.aggregateId]: before + 1 }))
    })
  })

const settle = TestClock.adjust("50 millis").pipe(Effect.repeat({ times: 40 }))

it.effect("one worker handles existing events and later ones", () =>
  Effect.gen(function*() {
    const counts = yield* TxRef.make<Record<string, number>>({})
    const events = yield* EventStore
    yield* events.append([user("a"), user("a", "EmailChanged")])
    const seen: Array<Activity["_tag"]> = []
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [counting(counts)] })
    yield* orchestrator.activity.pipe(
      Stream.runForEach((activity) => Effect.sync(() => seen.push(activity._tag))),
      Effect.forkScoped
    )
    const fiber = yield* Effect.forkChild(orchestrator.run)
    yield* settle
    assert.deepStrictEqual(yield* TxRef.get(counts), { a: 2 })
    yield* events.append([user("b")])
    yield* settle
    assert.deepStrictEqual(yield* TxRef.get(counts), { a: 2, b: 1 })
    const stopping = yield* Effect.forkChild(Fiber.interrupt(fiber))
    yield* settle
    yield* Fiber.join(stopping)
    const exit = yield* Fiber.await(fiber)
    assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
    assert.include(seen, "AssignmentReached")
    assert.deepStrictEqual(seen.slice(-2), ["WorkerLeft", "WorkerStopped"])
  }).pipe(Effect.provide(MemoryStores.layer)))

it.effect("three workers share the work; when one leaves, the others claim its ranges", () =>
  Effect.gen(function*() {
    const counts = yield* TxRef.make<Record<string, number>>({})
    const world = yield* MemoryStores.makeWorld
    const worker = Effect.gen(function*() {
      const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [counting(counts)] })
      return yield* orchestrator.run
    }).pipe(Effect.provide(MemoryStores.layerWorld(world)))
    yield* Effect.gen(function*() {
      const events = yield* EventStore
      const first = yield* Effect.forkChild(worker)
      const expected: Record<string, number> = {}
      const more = Effect.forEach(Array.from({ length: 50 }, (_, index) => `user-${index % 17}`), (id) => {
        expected[id] = (expected[id] ?? 0) + 1
        return events.append([user(id)])
      }, { discard: true })
      yield* more
      yield* settle
      yield* Effect.forkChild(worker)
      yield* more
      yield* Effect.forkChild(worker)
      yield* settle
      yield* more
      yield* Effect.forkChild(Fiber.interrupt(first))
      yield* settle
      yield* more
      yield* settle
      assert.deepStrictEqual(yield* TxRef.get(counts), expected)
    }).pipe(Effect.provide(MemoryStores.layerWorld(world)))
  }))

it.effect("catchUp returns when every visible event is handled", () =>
  Effect.gen(function*() {
    const counts = yield* TxRef.make<Record<string, number>>({})
    const events = yield* EventStore
    yield* Effect.forEach(Array.from({ length: 2500 }, (_, index) => `user-${index % 100}`), (id) =>
      events.append([user(id)]))
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [counting(counts)] })
    const fiber = yield* Effect.forkChild(orchestrator.catchUp)
    yield* settle
    yield* Fiber.join(fiber)
    assert.strictEqual(
      Object.values(yield* TxRef.get(counts)).reduce((a, b) =>
        a + b, 0),
      2500
    )
  }).pipe(Effect.provide(Layer.mergeAll(MemoryStores.layer))))

it.effect("a setting may be a Config or a plain value", () =>
  Orchestrator.Orchestrator.pipe(
    Effect.provide(
      Orchestrator.layerConfig({
        replicaSet: Config.String("REPLICA_SET"),
        heartbeatInterval: "1 second",
        staleWorkerTimeout: Duration.seconds(9),
        batchSize: 10,
        projections: [Projection.make("a", { handle: () => Effect.void })]
      }).pipe(
        Layer.provide(MemoryStores.layer),
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromUnknown({ REPLICA_SET: "main" })))
      )
    )
  ))

it.effect("layerFromEnv reads the settings from ORCHESTRATOR_ variables", () =>
  Effect.gen(function*() {
    const build = (env: Record<string, string>) =>
      Orchestrator.Orchestrator.pipe(
        Effect.provide(
          Orchestrator.layerFromEnv({ projections: [Projection.make("a", { handle: () => Effect.void })] }).pipe(
            Layer.provide(MemoryStores.layer),
            Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env })))
          )
        )
      )
    yield* build({ ORCHESTRATOR_REPLICA_SET: "main", ORCHESTRATOR_HEARTBEAT_INTERVAL: "2s" })
    const invalid = yield* Effect.flip(
      build({ ORCHESTRATOR_REPLICA_SET: "main", ORCHESTRATOR_HEARTBEAT_INTERVAL: "20s" })
    )
    assert.strictEqual(invalid._tag, "InvalidSettings")
    assert.strictEqual((yield* Effect.flip(build({})))._tag, "ConfigError")
  }))

it.effect("a worker can be interrupted after its stores are closed", () =>
  Effect.gen(function*() {
    const counts = yield* TxRef.make<Record<string, number>>({})
    const fiber = yield* Effect.gen(function*() {
      const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [counting(counts)] })
      const fiber = yield* Effect.forkScoped(orchestrator.run)
      yield* settle
      return fiber
    }).pipe(Effect.provide(MemoryStores.layer))
    yield* Fiber.interrupt(fiber)
  }))
