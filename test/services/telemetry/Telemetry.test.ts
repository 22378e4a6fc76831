import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as Tracer from "effect/Tracer"
import { Activity } from "../../../src/schema/Activity.ts"
import * as HashRange from "../../../src/schema/HashRange.ts"
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

it.effect("counts events, divides a batch's duration by them, and moves the worker's state", () =>
  Effect.gen(function*() {
    const set = { replica_set: "main" }
    const labels = { ...set, projection: "users" }
    yield* Telemetry.emit(
      "main",
      Activity.BatchCommitted({ projection: "users", range, events: 4, position: 9n, took: Duration.seconds(2) })
    )
    yield* Telemetry.emit("main", Activity.Suspended())
    const events = yield* Metric.value(Metric.withAttributes(Metrics.eventsProcessedTotal, labels))
    assert.strictEqual(events.count, 4)
    const durations = yield* Metric.value(Metric.withAttributes(Metrics.eventProcessingDurationSeconds, labels))
    assert.deepStrictEqual([durations.count, durations.sum], [1, 0.5])
    const stateOf = (state: string) => Metric.value(Metric.withAttributes(Metrics.workerState, { ...set, state }))
    assert.strictEqual((yield* stateOf("suspended")).value, 1)
    yield* Telemetry.emit("main", Activity.Resumed())
    assert.strictEqual((yield* stateOf("suspended")).value, 0)
    assert.strictEqual((yield* stateOf("running")).value, 1)
  }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))

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
