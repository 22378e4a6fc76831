import { assert, it } from "@effect/vitest"
import { Cause, Config, ConfigProvider, Duration, Effect, Exit, Fiber, Layer, Stream } from "effect"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import type { Activity } from "../../src/schema/Activity.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import { test } from "./Workers.ts"
import { event, pass } from "./World.ts"

const append = (ids: ReadonlyArray<string>) =>
  Effect.flatMap(EventStore, (events) => Effect.forEach(ids, (id) => events.append([event(id)]), { discard: true }))

const settle = pass(2_000)

test("one worker handles existing events and later ones", function*({ counting, counts }) {
  yield* Effect.gen(function*() {
    yield* append(["a", "a"])
    const seen: Array<Activity["_tag"]> = []
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [counting()] })
    yield* orchestrator.activity.pipe(
      Stream.runForEach((activity) => Effect.sync(() => seen.push(activity._tag))),
      Effect.forkScoped
    )
    const fiber = yield* Effect.forkChild(orchestrator.run)
    yield* settle
    assert.deepStrictEqual(yield* counts(), { a: 2 })
    yield* append(["b"])
    yield* settle
    assert.deepStrictEqual(yield* counts(), { a: 2, b: 1 })
    yield* Effect.forkChild(Fiber.interrupt(fiber))
    yield* settle
    const exit = yield* Fiber.await(fiber)
    assert.isTrue(Exit.isFailure(exit) && Cause.hasInterruptsOnly(exit.cause))
    assert.include(seen, "AssignmentReached")
    assert.deepStrictEqual(seen.slice(-2), ["WorkerLeft", "WorkerStopped"])
  }).pipe(Effect.provide(MemoryStores.layer))
})

test("three workers share the work; when one leaves, the others claim its ranges", function*({ counting, counts }) {
  const layer = MemoryStores.layerWorld(yield* MemoryStores.makeWorld)
  const worker = Effect.gen(function*() {
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [counting()] })
    return yield* orchestrator.run
  }).pipe(Effect.provide(layer))
  const more = Effect.provide(append(Array.from({ length: 51 }, (_, index) => `user-${index % 17}`)), layer)
  const first = yield* Effect.forkChild(worker)
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
  assert.deepStrictEqual(
    yield* counts(),
    Object.fromEntries(Array.from({ length: 17 }, (_, n) => [`user-${n}`, 12]))
  )
})

test("catchUp returns when every visible event is handled", function*({ counting, counts }) {
  yield* Effect.gen(function*() {
    yield* append(Array.from({ length: 2500 }, (_, index) => `user-${index % 100}`))
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [counting()] })
    const fiber = yield* Effect.forkChild(orchestrator.catchUp)
    yield* settle
    yield* Fiber.join(fiber)
    assert.deepStrictEqual(new Set(Object.values(yield* counts())), new Set([25]))
  }).pipe(Effect.provide(MemoryStores.layer))
})

test("a worker can be interrupted after its stores are closed", function*({ counting }) {
  const fiber = yield* Effect.gen(function*() {
    const orchestrator = yield* Orchestrator.make({ replicaSet: "main", projections: [counting()] })
    const fiber = yield* Effect.forkScoped(orchestrator.run)
    yield* settle
    return fiber
  }).pipe(Effect.provide(MemoryStores.layer))
  yield* Fiber.interrupt(fiber)
})

const projections = [Projection.make("a", { handle: () => Effect.void })]

/** Builds an orchestrator on memory stores with these settings. */
const build = <E>(
  layer: Layer.Layer<Orchestrator.Orchestrator, E, Layer.Success<typeof MemoryStores.layer>>,
  provider: ConfigProvider.ConfigProvider
) =>
  Effect.provide(
    Orchestrator.Orchestrator,
    layer.pipe(Layer.provide(MemoryStores.layer), Layer.provide(ConfigProvider.layer(provider)))
  )

it.effect("a setting may be a Config or a plain value", () => {
  const layer = Orchestrator.layerConfig({
    replicaSet: Config.String("REPLICA_SET"),
    heartbeatInterval: "1 second",
    staleWorkerTimeout: Duration.seconds(9),
    batchSize: 10,
    projections
  })
  return build(layer, ConfigProvider.fromUnknown({ REPLICA_SET: "main" }))
})

it.effect("layerFromEnv reads the settings from ORCHESTRATOR_ variables", () =>
  Effect.gen(function*() {
    const built = (env: Record<string, string>) =>
      build(Orchestrator.layerFromEnv({ projections }), ConfigProvider.fromEnv({ env }))
    yield* built({ ORCHESTRATOR_REPLICA_SET: "main", ORCHESTRATOR_HEARTBEAT_INTERVAL: "2s" })
    const invalid = yield* Effect.flip(
      built({ ORCHESTRATOR_REPLICA_SET: "main", ORCHESTRATOR_HEARTBEAT_INTERVAL: "20s" })
    )
    assert.strictEqual(invalid._tag, "InvalidSettings")
    assert.strictEqual((yield* Effect.flip(built({})))._tag, "ConfigError")
  }))
