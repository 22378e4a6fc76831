import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Tracer from "effect/Tracer"
import { Activity } from "../../../src/schema/Activity.ts"
import { WorkerEvicted } from "../../../src/schema/Errors.ts"
import * as HashRange from "../../../src/schema/HashRange.ts"
import * as ActivityStream from "../../../src/services/telemetry/ActivityStream.ts"
import * as Metrics from "../../../src/services/telemetry/Metrics.ts"
import * as Telemetry from "../../../src/services/telemetry/Telemetry.ts"
import { logs } from "../World.ts"

const generation = (members: number) => ({
  replicaSet: "main",
  generationId: 7n,
  members: Array.from({ length: members }, (_, key) => ({
    workerId: `worker-${key}`,
    incarnation: BigInt(key),
    projections: ["users"]
  })),
  leaderId: "worker-0"
})

const halt = { error: "Broken: no", position: 5n, eventId: "e5" }
const range = HashRange.whole

it.effect("logs a change of generation in the original's words", () =>
  Effect.gen(function*() {
    const { layer, lines } = logs()
    const emit = (activity: Activity) => Telemetry.emit("main", activity).pipe(Effect.provide(layer))
    const changed = { generation: generation(1), partition: 0, formedByThisWorker: true }
    yield* emit(Activity.GenerationChanged({ ...changed, reasons: [] }))
    yield* emit(Activity.GenerationChanged({ ...changed, partition: -1, reasons: ["WorkerJoined", "WorkerLost"] }))
    const reached = { generation: generation(1), partition: 0, after: Duration.millis(5) }
    yield* emit(Activity.AssignmentReached({ ...reached, isLeftAlone: false }))
    yield* emit(Activity.AssignmentReached({ ...reached, isLeftAlone: true }))
    assert.deepStrictEqual(lines.map(({ text }) => text), [
      "Assigned partition: 0 of 1",
      "Generation 7 has 1 worker; this worker has partition 0 of 1.",
      "New worker detected, reconfiguring...",
      "Worker lost, reconfiguring...",
      "Stopping current generation",
      "Restarting with new configuration...",
      "Generation 7 has 1 worker; this worker has no partition.",
      "Processing events...",
      "Processing all events now..."
    ])
  }))

const registration = (key: number) => ({
  replicaSet: "main",
  workerId: `worker-${key}`,
  incarnation: BigInt(key),
  startedAt: new Date(0),
  projections: ["users"]
})

/** The series of a metric as text, without those at 0. */
const series = (metric: { readonly id: string }) =>
  Effect.map(
    Metric.snapshot,
    (snapshots) =>
      snapshots.filter(({ id }) => id === metric.id).flatMap(({ attributes, state }) => {
        const value = "count" in state ? state.count : "value" in state ? state.value : NaN
        return value === 0 ? [] : [`${Object.values(attributes ?? {}).join(" ")}: ${value}`]
      })
  )

const alone = Effect.provideService(Metric.MetricRegistry, new Map())

it.effect("counts events, and divides a batch's duration by them", () =>
  Effect.gen(function*() {
    const labels = { replica_set: "main", projection: "users" }
    yield* Telemetry.emit(
      "main",
      Activity.BatchCommitted({ projection: "users", range, events: 4, position: 9n, took: Duration.seconds(2) })
    )
    const events = yield* Metric.value(Metric.withAttributes(Metrics.eventsProcessedTotal, labels))
    assert.strictEqual(events.count, 4)
    const durations = yield* Metric.value(Metric.withAttributes(Metrics.eventProcessingDurationSeconds, labels))
    assert.deepStrictEqual([durations.count, durations.sum], [1, 0.5])
  }).pipe(alone))

it.effect("sets the gauges of a replica set for one of its workers only, and removes them when it stops", () =>
  Effect.gen(function*() {
    const workers = [0, 1].map(() => ActivityStream.make("main", () => []))
    const emit = (key: number, activity: Activity) => workers[key]!.record(activity)
    const changed = { formedByThisWorker: false, reasons: [] }
    for (const key of [0, 1]) {
      yield* emit(key, Activity.WorkerStarting({ workerId: `worker-${key}`, projections: ["users"] }))
      yield* emit(key, Activity.WorkerRegistered({ registration: registration(key) }))
      yield* emit(key, Activity.GenerationChanged({ ...changed, generation: generation(2), partition: key }))
    }
    assert.deepStrictEqual(yield* series(Metrics.activeWorkers), ["main worker-0: 2"])
    assert.deepStrictEqual(yield* series(Metrics.workerState), ["main worker-0 ready: 1", "main worker-1 ready: 1"])

    yield* emit(0, Activity.Suspended())
    assert.deepStrictEqual(yield* series(Metrics.currentGenerationPartitions), [])
    assert.deepStrictEqual((yield* series(Metrics.workerState))[0], "main worker-0 suspended: 1")
    yield* emit(0, Activity.Resumed())
    assert.deepStrictEqual((yield* series(Metrics.workerState))[0], "main worker-0 ready: 1")
    assert.deepStrictEqual(yield* series(Metrics.currentGenerationPartitions), ["main worker-0: 2"])

    const [lower, upper] = [0, 1].map((key) => ({
      projection: "users",
      range: HashRange.partition(key, 2),
      position: 0n
    }))
    yield* emit(0, Activity.RangeClaimed(lower!))
    yield* emit(0, Activity.RangeClaimed(upper!))
    yield* emit(0, Activity.RangeHalted({ ...upper!, halt, stack: "" }))
    assert.deepStrictEqual(yield* series(Metrics.ranges), ["main worker-0 users: 2"])
    assert.deepStrictEqual(yield* series(Metrics.haltedRanges), ["main worker-0 users: 1"])
    yield* emit(0, Activity.RangeClaimed({ ...lower!, projection: "orders" }))
    yield* emit(0, Activity.RangeStopped(lower!))
    assert.deepStrictEqual(yield* series(Metrics.ranges), ["main worker-0 users: 1", "main worker-0 orders: 1"])
    yield* emit(0, Activity.RangeStopped(upper!))
    assert.deepStrictEqual(yield* series(Metrics.ranges), ["main worker-0 orders: 1"])
    assert.deepStrictEqual(yield* series(Metrics.haltedRanges), [])

    yield* emit(0, Activity.WorkerStopping({ registration: registration(0) }))
    assert.deepStrictEqual((yield* series(Metrics.workerState))[0], "main worker-0 stopping: 1")
    yield* emit(0, Activity.WorkerLeft({ registration: registration(0), formedGeneration: true }))
    assert.deepStrictEqual(yield* series(Metrics.ranges), [])
    yield* emit(1, Activity.GenerationChanged({ ...changed, generation: generation(1), partition: 0 }))
    assert.deepStrictEqual(yield* series(Metrics.activeWorkers), ["main worker-1: 1"])
    assert.deepStrictEqual(yield* series(Metrics.workerState), ["main worker-1 ready: 1"])
    assert.deepStrictEqual(yield* series(Metrics.generationsTotal), ["main: 1"])

    const error = new WorkerEvicted({ replicaSet: "main", workerId: "worker-1", reason: "evicted" })
    yield* emit(1, Activity.WorkerEvicted({ registration: registration(1), error }))
    assert.deepStrictEqual(yield* series(Metrics.activeWorkers), [])
    assert.deepStrictEqual(yield* series(Metrics.workerState), [])
  }).pipe(alone))

it.effect("a sample of a worker that has lost partition 0 meanwhile is dropped, and the earlier one removed", () =>
  Effect.gen(function*() {
    const { record } = ActivityStream.make("main", () => [])
    const lag = {
      projection: "users",
      lagEvents: 3n,
      lag: Duration.zero,
      stalled: Duration.zero,
      rangesWithoutOwner: 0,
      parkedEvents: 0,
      parkedKeys: 0,
      parkedFor: Duration.zero
    }
    const sampled = Activity.ReplicaSetSampled({ sample: { settledLag: Duration.zero, projections: [lag] } })
    const follow = (partition: number) =>
      record(
        Activity.GenerationChanged({ generation: generation(2), partition, formedByThisWorker: false, reasons: [] })
      )
    yield* record(Activity.WorkerRegistered({ registration: registration(0) }))
    yield* record(sampled)
    assert.deepStrictEqual(yield* series(Metrics.projectionLagEvents), [])
    yield* follow(0)
    yield* record(sampled)
    assert.deepStrictEqual(yield* series(Metrics.projectionLagEvents), ["main worker-0 users: 3"])
    yield* follow(1)
    assert.deepStrictEqual(yield* series(Metrics.projectionLagEvents), [])
    yield* record(sampled)
    assert.deepStrictEqual(yield* series(Metrics.projectionLagEvents), [])
    // The earlier sample does not come back with partition 0.
    yield* follow(0)
    assert.deepStrictEqual(yield* series(Metrics.projectionLagEvents), [])
    yield* record(sampled)
    yield* record(Activity.ReplicaSetSampled({ sample: { settledLag: Duration.zero, projections: [] } }))
    assert.deepStrictEqual(yield* series(Metrics.projectionLagEvents), [])
  }).pipe(alone))

it.effect("adds rare activities to the current span, and no batches", () =>
  Effect.gen(function*() {
    const span = yield* Effect.currentSpan
    assert.instanceOf(span, Tracer.NativeSpan)
    yield* Telemetry.emit("main", Activity.RangeHalted({ projection: "users", range, halt, stack: "" }))
    yield* Telemetry.emit(
      "main",
      Activity.BatchCommitted({ projection: "users", range, events: 1, position: 1n, took: Duration.zero })
    )
    // Effect adds log lines to the span too; the activity's own event has attributes.
    const own = span.events.filter(([name]) => name === "RangeHalted" || name === "BatchCommitted")
    assert.deepStrictEqual(own.map(([name, , attributes]) => [name, attributes]), [[
      "RangeHalted",
      { projection: "users", range: HashRange.format(range), position: "5", event: "e5" }
    ]])
  }).pipe(Effect.withSpan("run")))

it.effect("counts a failure after which onFailure skips the event, but not a requested skip, whose halt was counted", () =>
  Effect.gen(function*() {
    const skipped = { projection: "users", range, position: 5n, eventId: "e5", error: "broken", stack: "" }
    for (const requested of [false, true, true]) {
      yield* Telemetry.emit("main", Activity.EventSkipped({ ...skipped, requested }))
    }
    const counts = yield* Effect.forEach(
      [Metrics.eventsSkippedTotal, Metrics.projectionErrorsTotal],
      (metric) => Metric.value(Metric.withAttributes(metric, { replica_set: "main", projection: "users" }))
    )
    assert.deepStrictEqual(counts.map(({ count }) => Number(count)), [3, 1])
  }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
