import { assert, it } from "@effect/vitest"
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Runtime from "effect/Runtime"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import { TestClock } from "effect/testing"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import * as EventSet from "../../src/schema/EventSet.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type * as Settings from "../../src/schema/Settings.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as Workers from "./Workers.ts"
import { enter, event, logs, pass, rules, unavailable } from "./World.ts"

const { aggregates, assertFailed, fail, lower, test, times, upper } = Workers

test("a worker's lifecycle is logged with the Go original's messages", function*({ start }) {
  const first = yield* start({ workerId: "worker-1" })
  yield* pass(500)
  const second = yield* start({ workerId: "worker-2" })
  yield* pass(500)
  yield* second.stop
  yield* pass(500)
  yield* first.stop
  yield* pass(500)
  assert.deepStrictEqual(first.said("Info"), [
    "Starting orchestrator...",
    "Worker registered: worker-1",
    "Assigned partition: 0 of 1",
    "Generation 1 has 1 worker; this worker has partition 0 of 1.",
    "Processing events...",
    "New worker detected, reconfiguring...",
    "Stopping current generation",
    "Restarting with new configuration...",
    "Assigned partition: 0 of 2",
    "Generation 2 has 2 workers; this worker has partition 0 of 2.",
    "Processing events...",
    "Worker left, reconfiguring...",
    "Stopping current generation",
    "Restarting with new configuration...",
    "Assigned partition: 0 of 1",
    "Generation 3 has 1 worker; this worker has partition 0 of 1.",
    "Processing all events now...",
    "Unregistering worker...",
    "Shutdown complete"
  ])
  assert.deepStrictEqual(second.said("Info"), [
    "Starting orchestrator...",
    "Worker registered: worker-2",
    "Assigned partition: 1 of 2",
    "Generation 2 has 2 workers; this worker has partition 1 of 2.",
    "Processing events...",
    "Unregistering worker...",
    "Shutdown complete"
  ])
  for (const { annotations, text } of first.lines) {
    assert.strictEqual(annotations["replica_set"], "main", text)
    assert.strictEqual(annotations["worker"], "worker-1", text)
  }
  assert.deepStrictEqual(first.said("Warn").concat(first.said("Error")), [])
})

test("activity starts with the current state", function*({ appendAll, counting, start }) {
  const worker = yield* start({ projections: [counting(), counting({ name: "others" })] })
  yield* appendAll
  yield* pass(500)
  const seen = yield* worker.orchestrator.activity.pipe(Stream.take(4), Stream.runCollect)
  assert.deepStrictEqual(seen.map(({ _tag }) => _tag), [
    "WorkerRegistered",
    "GenerationChanged",
    "RangeClaimed",
    "RangeClaimed"
  ])
  for (const entry of seen) {
    if (entry._tag === "GenerationChanged") {
      assert.strictEqual(entry.partition, 0)
      assert.strictEqual(entry.generation.members.length, 1)
    }
    if (entry._tag === "RangeClaimed") assert.strictEqual(entry.position, 16n)
  }
  assert.deepStrictEqual(
    worker.tags().filter((tag) => !["ConnectionsChanged", "HeartbeatRenewed"].includes(tag)).slice(0, 4),
    [
      "WorkerStarting",
      "WorkerRegistered",
      "GenerationChanged",
      "RangeClaimed"
    ]
  )
  assert.strictEqual(worker.of("AssignmentReached").length, 1)
  yield* worker.stop
  yield* pass(100)
  // The worker has left: there is no current state to replay.
  const after = yield* worker.orchestrator.activity.pipe(
    Stream.runHead,
    Effect.timeoutOption("1 second"),
    Effect.forkChild
  )
  yield* TestClock.adjust("2 seconds")
  assert.isTrue((yield* Fiber.join(after))._tag === "None")
})

test("a concurrent second run fails with AlreadyRunning; a later run succeeds", function*({ start }) {
  const worker = yield* start()
  const { layer, lines } = logs()
  for (const second of [worker.orchestrator.run, worker.orchestrator.catchUp]) {
    const error = yield* Effect.flip(Effect.provide(second, layer))
    assert.strictEqual(error._tag, "AlreadyRunning")
    assert.include(error.message, "\"main\"")
  }
  assert.strictEqual(lines.length, 2)
  yield* worker.stop
  yield* pass(100)
  const again = yield* Effect.forkChild(worker.orchestrator.run)
  yield* pass(100)
  assert.isUndefined(again.pollUnsafe())
})

test("a failure is logged once and not reported again by the runtime", function*({ start }) {
  yield* start({ workerId: "the-first" })
  yield* pass(100)
  const second = yield* start({ workerId: "the-first" })
  // A heartbeat of the first worker proves that it is alive.
  yield* pass(6_000)
  const error = assertFailed(second, "WorkerIdInUse", ["the-first", "process 2", "memory", "1970-01-01T00:00:00.000Z"])
  assert.deepStrictEqual(second.said("Error"), [error.message])
  assert.isFalse(Runtime.getErrorReported(error), "the runtime must not print it again")
})

test(
  "a projection of another replica set's live worker is refused until that worker leaves",
  function*({ appendAll, counts, start }) {
    const owner = yield* start({ replicaSet: "owners", workerId: "owner-1" })
    yield* appendAll
    yield* pass(500)
    const other = yield* start({ replicaSet: "others" })
    yield* pass(500)
    assertFailed(other, "ProjectionInOtherReplicaSet", ["\"counts\"", "\"owners\"", "\"others\"", "\"owner-1\""])
    yield* owner.stop
    yield* pass(500)
    const later = yield* start({ replicaSet: "others" })
    yield* appendAll
    yield* pass(500)
    assert.isFalse(later.hasEnded())
    assert.deepStrictEqual(yield* counts(), times(2))
  }
)

/** The reasons for new generations that the worker has logged. */
const reasonsOf = (worker: { readonly said: (level: string) => ReadonlyArray<string> }) =>
  worker.said("Info").filter((text) => text.endsWith(", reconfiguring..."))

test("a killed worker is logged as lost, a stopped one as left, a restarted one as new", function*({ start }) {
  const started = (workerId: string) => start({ workerId })
  const watcher = yield* started("watcher")
  yield* pass(500)
  const [killed, stopped] = [yield* started("killed"), yield* started("stopped")]
  yield* pass(500)
  const reasons = () => reasonsOf(watcher)
  assert.deepStrictEqual(new Set(reasons()), new Set(["New worker detected, reconfiguring..."]))
  let before = reasons().length
  const since = () => {
    const all = reasons().slice(before)
    before = reasons().length
    return all
  }
  yield* killed.handle.cut
  yield* pass(1_000)
  assert.deepStrictEqual(since(), ["Worker lost, reconfiguring..."])
  yield* stopped.stop
  yield* pass(1_000)
  assert.deepStrictEqual(since(), ["Worker left, reconfiguring..."])
  const restarted = yield* started("killed")
  yield* pass(1_000)
  assert.deepStrictEqual(since(), ["New worker detected, reconfiguring..."])
  assert.include(watcher.said("Info").at(-2), "has 2 workers; this worker has partition 0 of 2.")
  assert.isFalse(restarted.hasEnded())
  yield* killed.stopCut
})

test(
  "a worker that registers again before the others notice its end is logged only as new",
  function*({ start, world }) {
    const watcher = yield* start({ workerId: "watcher" })
    yield* pass(500)
    const options = { replicaSet: "main", workerId: "pod-0", projections: ["counts"], rules }
    const join = Effect.flatMap(enter(world), ({ membership }) => membership.join(options))
    const first = yield* join
    yield* pass(5_500)
    yield* MemoryWorld.changeWorker(world, first, (worker) => ({ ...worker, stoppedAt: 0, evictedBy: "another" }))
    yield* join
    yield* pass(5_500)
    assert.deepStrictEqual(reasonsOf(watcher), Array(2).fill("New worker detected, reconfiguring..."))
  }
)

for (const [what, departed] of [["fails", Effect.fail(unavailable)], ["is not answered", Effect.never]] as const) {
  test(`a worker counts as having left when the query for how it ended ${what}`, function*({ start }) {
    const watcher = yield* start({ workerId: "watcher", membership: () => ({ departed: () => departed }) })
    yield* pass(500)
    const killed = yield* start({ workerId: "killed" })
    yield* pass(500)
    yield* killed.handle.cut
    yield* pass(1_000)
    assert.deepStrictEqual(reasonsOf(watcher), [
      "New worker detected, reconfiguring...",
      "Worker left, reconfiguring..."
    ])
    assert.include(watcher.said("Info"), "Processing all events now...")
    yield* killed.stopCut
  })
}

test(
  "a halted range does not affect other ranges and projections",
  function*({ checkpoints, counting, counts, events, start }) {
    const broken = counting({ before: ({ aggregateId }) => aggregateId === upper ? fail() : Effect.void })
    const projections = [broken, counting({ name: "others" })]
    const workers = [yield* start({ projections }), yield* start({ projections })]
    yield* pass(500)
    yield* events.append([event(upper)])
    yield* pass(500)
    yield* events.append([event(upper), event(upper)])
    yield* events.append([event(lower), event(lower)])
    yield* pass(2_000)
    assert.deepStrictEqual(yield* counts(), { [lower]: 2 })
    assert.deepStrictEqual(yield* counts("others"), { [lower]: 2, [upper]: 3 })
    const rows = yield* checkpoints.rows("counts")
    assert.deepStrictEqual(rows.map(({ halt, position }) => [halt?.position, position]), [[undefined, 5n], [1n, 0n]])
    assert.isTrue(HashRange.tiles(rows.map(({ range }) => range)))
    assert.deepStrictEqual(workers.map((worker) => worker.hasEnded()), [false, false])
    // Merging ranges at the same position must not restart the halted range.
    yield* pass(12_000, 250)
    const errors = workers.flatMap(({ lines }) => lines.filter(({ level }) => level === "Error"))
    assert.strictEqual(errors.length, 1)
    const { generation, projection, range, worker } = errors[0]!.annotations
    assert.deepStrictEqual([projection, generation], ["counts", "1"])
    assert.isString(worker)
    assert.isString(range)
    // A new subscriber receives the halt.
    const present = yield* Effect.forEach(workers, ({ orchestrator }) =>
      orchestrator.activity.pipe(
        Stream.takeUntil(({ _tag }) => _tag === "RangeHalted"),
        Stream.runCollect,
        Effect.timeoutOption("1 second"),
        Effect.forkChild
      ))
    yield* pass(2_000)
    const halts = yield* Effect.forEach(present, (fiber) => Fiber.join(fiber))
    assert.strictEqual(halts.filter(({ _tag }) => _tag === "Some").length, 1)
  }
)

test("a worker retries while events cannot be read, and continues afterwards", function*({ appendAll, counts, start }) {
  const failing = { now: false }
  const worker = yield* start({
    events: (real) => ({
      read: (options) => Effect.suspend(() => failing.now ? Effect.fail(unavailable) : real.read(options))
    })
  })
  yield* pass(500)
  failing.now = true
  yield* appendAll
  yield* pass(10_000, 250)
  assert.deepStrictEqual(yield* counts(), {})
  failing.now = false
  yield* pass(6_000, 250)
  assert.deepStrictEqual(yield* counts(), times(1))
  assert.isFalse(worker.hasEnded())
})

test("metrics have correct values", function*({ appendAll, counting, start }) {
  yield* start({
    projections: [counting(), counting({ name: "broken", before: () => fail() })]
  })
  yield* pass(500)
  const second = yield* start()
  yield* pass(500)
  yield* appendAll
  yield* pass(6_000, 250)
  yield* second.handle.cut
  yield* pass(1_000)

  const snapshot = yield* Metric.snapshot
  const found = (name: string, attributes: Readonly<Record<string, string>> = {}) =>
    snapshot.filter((metric) =>
      metric.id === `pupsourcing_orchestrator_${name}` &&
      Object.entries(attributes).every(([key, value]) => metric.attributes?.[key] === value)
    )
  const sum = (name: string, attributes: Readonly<Record<string, string>> = {}) =>
    found(name, attributes).reduce((total, metric) =>
      total +
      Number("count" in metric.state ? metric.state.count : "value" in metric.state ? metric.state.value : NaN), 0)
  assert.strictEqual(sum("generations_total"), 3)
  assert.strictEqual(sum("workers_registered_total"), 2)
  // One for each member of each of the three generations: 1 + 2 + 1.
  assert.strictEqual(sum("reconfiguration_total"), 4)
  assert.strictEqual(sum("stale_workers_cleaned_total"), 1)
  assert.strictEqual(sum("events_processed_total", { projection: "counts" }), 16)
  assert.strictEqual(sum("projection_halts_total", { projection: "broken" }), 1)
  assert.strictEqual(sum("active_workers"), 1)
  assert.strictEqual(sum("current_generation_partitions"), 1)
  // The dead worker could not remove its own.
  assert.strictEqual(sum("worker_state", { state: "running" }), 2)
  assert.strictEqual(sum("worker_state"), 2)
  assert.isAtLeast(sum("partition_assignments_total", { projection: "counts" }), 3)
  assert.isAtLeast(sum("heartbeat_latency_seconds"), 2)
  assert.isAtLeast(sum("event_processing_duration_seconds", { projection: "counts" }), 2)
  assert.strictEqual(sum("coordination_duration_seconds"), 4)
  yield* second.stopCut
})

it.effect.each<readonly [string, Partial<Settings.Input>, RegExp]>([
  ["an empty replica set", { replicaSet: " " }, /"replicaSet".*must not be empty/],
  ["a negative duration", { pollInterval: "-1 seconds" }, /"pollInterval".*not negative/],
  [
    "a duration that is not a number",
    { drainTimeout: Number.NaN },
    /"drainTimeout".*not a valid duration.*"5 seconds"/
  ],
  ["an endless duration", { pollInterval: Duration.infinity }, /"pollInterval".*finite/],
  ["a duration of zero", { heartbeatInterval: 0 }, /"heartbeatInterval".*greater than zero/],
  ["too few heartbeats", { heartbeatInterval: "20 seconds" }, /"staleWorkerTimeout".*three heartbeats/],
  ["a drain longer than the switch", { drainTimeout: "2 minutes" }, /"drainTimeout".*coordinationTimeout/],
  ["half an event", { batchSize: 0.5 }, /"batchSize".*whole number/],
  ["an empty worker id", { workerId: "" }, /"workerId".*must not be empty/]
])("%s is refused when the orchestrator is built", ([, input, message]) =>
  Effect.gen(function*() {
    const { counting } = yield* Workers.make
    const error = yield* Effect.flip(Orchestrator.make({ replicaSet: "main", projections: [counting()], ...input }))
    assert.strictEqual(error._tag, "InvalidSettings")
    assert.match(error.message, message)
  }).pipe(Effect.provide(MemoryStores.layer)))

it.effect("rejects no projections, an empty name, duplicate names, an empty filter and an invalid partition key", () =>
  Effect.gen(function*() {
    const named = (name: string, options: Projection.CommonOptions = {}) =>
      Projection.make(name, { handle: () => Effect.void, ...options })
    const untyped = (options: object): Projection.CommonOptions => options
    const Users = EventSet.make({ UserCreated: Schema.Unknown })
    const refused = (projections: ReadonlyArray<Projection.Projection>) =>
      Effect.flip(Orchestrator.make({ replicaSet: "main", projections }))
    const expected: ReadonlyArray<readonly [ReadonlyArray<Projection.Projection>, string, RegExp]> = [
      [[], "InvalidSettings", /at least one Projection\.make/],
      [[named("")], "InvalidSettings", /name must not be empty/],
      [[named(" ")], "InvalidSettings", /name must not be empty/],
      [[named("a"), named("b"), named("a")], "DuplicateProjection", /"a".*each projection its own/],
      [[named("a", { startFrom: -1n })], "InvalidSettings", /startFrom of "a"/],
      [[named("a", { startFrom: new Date(Number.NaN) })], "InvalidSettings", /startFrom of "a" is not a date/],
      [[named("a", { concurrency: 0 })], "InvalidSettings", /concurrency of "a" is 0\. Give an integer from 1 to 100/],
      [[named("a", { concurrency: 1.5 })], "InvalidSettings", /concurrency of "a" is 1\.5/],
      [[named("a", { concurrency: 101 })], "InvalidSettings", /concurrency of "a" is 101/],
      [
        [named("a", { isolation: "none" as "serializable" })],
        "InvalidSettings",
        /isolation of "a" is "none"\. Give one/
      ],
      [[named("a", { delivery: "once" as "at-least-once" })], "InvalidSettings", /delivery of "a" is "once"/],
      [
        [named("a", { delivery: "at-least-once", isolation: "serializable" })],
        "InvalidSettings",
        /"a" has delivery "at-least-once" and an isolation/
      ],
      [[named("a", { ordering: "some" as "global" })], "InvalidSettings", /ordering of "a" is "some"/],
      [[named("a", { ordering: "global", concurrency: 2 })], "InvalidSettings", /"a" has ordering "global" and conc/],
      [[named("a", { eventTypes: [] })], "InvalidSettings", /eventTypes of "a" is empty/],
      [[named("a", { partitionBy: { metadata: "" } })], "InvalidSettings", /partitionBy of "a" has an empty name/],
      [[named("a", { partitionBy: { metadata: "b\u0000" } })], "InvalidSettings", /partitionBy of "a" .* NUL/],
      [[named("a", { partitionBy: "tenantId" as "aggregateId" })], "InvalidSettings", /partitionBy of "a" must be/],
      [
        [named("a", untyped({ handleBatch: () => Effect.void }))],
        "InvalidSettings",
        /"a".*either handle or handleBatch/
      ],
      [
        [Projection.make("a", { handleBatch: () => Effect.void, batchWindow: { time: 0 } })],
        "InvalidSettings",
        /batchWindow of "a" must have a time/
      ],
      [[named("a", untyped({ replacesFilter: true }))], "InvalidSettings", /replacesFilter of "a" is not a filter/],
      [[named("a", untyped({ replacesFilter: [Users] }))], "InvalidSettings", /replacesFilter of "a".*event set/],
      [[named("a", untyped({ handle: undefined }))], "InvalidSettings", /"a".*either handle or handleBatch/],
      [
        [Projection.make("a", Users, { handle: {} as never }) as unknown as Projection.Projection],
        "InvalidSettings",
        /handle of "a" has no function for UserCreated\./
      ]
    ]
    for (const [projections, tag, message] of expected) {
      const error = yield* refused(projections)
      assert.strictEqual(error._tag, tag)
      assert.match(error.message, message)
    }
  }).pipe(Effect.provide(MemoryStores.layer)))

test("settings from Config are validated like plain ones", function*({ counting, counts }) {
  const live = Orchestrator.layerConfig({
    replicaSet: Config.String("replicaSet"),
    batchSize: Config.Int("batchSize"),
    pollInterval: "1 second",
    projections: [counting()]
  }).pipe(Layer.provideMerge(MemoryStores.layer))
  const given = (values: Record<string, unknown>) =>
    Layer.provide(live, ConfigProvider.layer(ConfigProvider.fromUnknown(values)))
  const built = (values: Record<string, unknown>) => Effect.flip(Effect.scoped(Layer.build(given(values))))
  assert.strictEqual((yield* built({ replicaSet: "main" }))._tag, "ConfigError")
  const invalid = yield* built({ replicaSet: "main", batchSize: 0 })
  assert.strictEqual(invalid._tag, "InvalidSettings")
  assert.match(invalid.message, /"batchSize".*at least 1/)
  yield* Effect.gen(function*() {
    const events = yield* EventStore
    yield* Effect.forEach(aggregates, (id) => events.append([event(id)]))
    const fiber = yield* Effect.forkChild(Orchestrator.catchUp)
    yield* pass(500)
    yield* Fiber.join(fiber)
  }).pipe(Effect.provide(Layer.merge(given({ replicaSet: "main", batchSize: 3 }), logs().layer)))
  assert.deepStrictEqual(yield* counts(), times(1))
})
