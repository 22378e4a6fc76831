/** The gauges that are sampled: of a replica set, by its worker with partition 0, and of each worker's connections. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import * as TxRef from "effect/TxRef"
import * as Metrics from "../../../src/services/telemetry/Metrics.ts"
import { failingHeartbeats, makeGate, test } from "../Workers.ts"
import { event, pass, unavailable } from "../World.ts"

const sampled = [
  Metrics.projectionLagEvents,
  Metrics.projectionLagSeconds,
  Metrics.projectionStalledSeconds,
  Metrics.rangesWithoutOwner,
  Metrics.settledLagSeconds
]

/** The values of a gauge by worker and projection. */
const seriesOf = (metric: { readonly id: string }) =>
  Effect.map(Metric.snapshot, (snapshots) =>
    Object.fromEntries(
      snapshots.filter(({ id }) => id === metric.id).map(({ attributes, state }) => {
        const { projection, worker_id: worker } = attributes as Record<string, string>
        return [[worker, projection].filter((label) => label !== undefined).join(" "), "value" in state && state.value]
      })
    ))

/** The ids of all gauges that have a series. */
const gauges = Effect.map(Metric.snapshot, (snapshots) => [
  ...new Set(snapshots.flatMap(({ id, type }) => type === "Gauge" ? [id] : []))
])

/** Longer than the interval of samples. */
const untilSampled = pass(16_000, 500)

test("the lag is reported while the handler hangs, and no series remains after the worker has left", function*({
  counting,
  events,
  start
}) {
  const gate = yield* makeGate
  const worker = yield* start({ workerId: "a", projections: [counting({ before: () => gate.wait })] })
  yield* pass(500)
  assert.deepStrictEqual(yield* seriesOf(Metrics.projectionLagEvents), { "a counts": 0 })
  assert.deepStrictEqual(yield* seriesOf(Metrics.rangesWithoutOwner), { "a counts": 0 })
  assert.deepStrictEqual(yield* seriesOf(Metrics.settledLagSeconds), { a: 0 })

  yield* events.append([event("user-1"), event("user-1")])
  yield* gate.reached
  yield* pass(60_000, 500)
  assert.deepStrictEqual(yield* seriesOf(Metrics.projectionLagEvents), { "a counts": 2 })
  for (const metric of [Metrics.projectionLagSeconds, Metrics.projectionStalledSeconds]) {
    const { "a counts": seconds } = yield* seriesOf(metric)
    assert.isTrue(Number(seconds) > 40 && Number(seconds) <= 61, `${metric.id}: ${seconds}`)
  }

  yield* gate.open
  yield* untilSampled
  for (const metric of sampled) assert.deepStrictEqual(Object.values(yield* seriesOf(metric)), [0])
  yield* worker.stop
  yield* pass(500)
  assert.deepStrictEqual(yield* gauges, [])
})

test("one of two workers reports the replica set, so that the sum over both is its value", function*({
  appendAll,
  counting,
  start
}) {
  const gate = yield* makeGate
  const projections = [counting({ before: () => gate.wait }), counting({ name: "others" })]
  const first = yield* start({ workerId: "a", projections })
  yield* start({ workerId: "b", projections })
  yield* pass(1000)
  yield* appendAll
  yield* untilSampled
  assert.deepStrictEqual(yield* seriesOf(Metrics.projectionLagEvents), { "a counts": 16, "a others": 0 })

  // The other worker gets partition 0.
  yield* gate.open
  yield* first.stop
  yield* untilSampled
  assert.deepStrictEqual(yield* seriesOf(Metrics.projectionLagEvents), { "b counts": 0, "b others": 0 })
})

test("counts the ranges that no worker owns, and reports no other replica set", function*({ counting, start, world }) {
  yield* start({ workerId: "a" })
  const other = yield* start({ workerId: "b", replicaSet: "other", projections: [counting({ name: "others" })] })
  yield* pass(500)
  // The workers that carried this projection are gone.
  const { value: row } = world.rows.get("counts@0")!
  world.rows.set("orders@0", TxRef.makeUnsafe<typeof row>({ ...row!, projection: "orders", fence: undefined }))
  yield* other.stop
  yield* untilSampled
  assert.deepStrictEqual(yield* seriesOf(Metrics.rangesWithoutOwner), { "a counts": 0, "a orders": 1 })
})

test("a suspended worker does not report the replica set", function*({ start }) {
  const failing = { now: false }
  const worker = yield* start({ workerId: "a", membership: failingHeartbeats(failing) })
  yield* pass(500)
  assert.deepStrictEqual(yield* seriesOf(Metrics.settledLagSeconds), { a: 0 })
  failing.now = true
  yield* pass(26_000, 500)
  assert.strictEqual(worker.of("Suspended").length, 1)
  for (const metric of sampled) assert.deepStrictEqual(yield* seriesOf(metric), {})
  failing.now = false
  yield* untilSampled
  assert.deepStrictEqual(yield* seriesOf(Metrics.settledLagSeconds), { a: 0 })
})

for (const how of ["fails", "dies", "hangs", "does not stop"] as const) {
  test(`a sample that ${how} is skipped, and harms neither the worker nor its end`, function*({
    appendAll,
    counting,
    counts,
    start
  }) {
    const failures = {
      fails: Effect.fail(unavailable),
      dies: Effect.die(new Error("broken")),
      hangs: Effect.never,
      "does not stop": Effect.uninterruptible(Effect.never)
    }
    let isBroken = false
    const worker = yield* start({
      workerId: "a",
      projections: [counting()],
      status: (real) => Effect.suspend(() => isBroken ? failures[how] : real)
    })
    yield* pass(500)
    isBroken = true
    yield* appendAll
    yield* pass(30_000, 500)
    assert.strictEqual(Object.keys(yield* counts()).length, 16)
    // The last sample counts for a while.
    assert.deepStrictEqual(yield* seriesOf(Metrics.projectionLagEvents), { "a counts": 0 })
    yield* pass(90_000, 500)
    for (const metric of sampled) assert.deepStrictEqual(yield* seriesOf(metric), {})
    const warnings = worker.said("Warn")
    assert.strictEqual(warnings.length, 1, warnings.join("\n"))
    assert.include(warnings[0], "The status for the metrics of the replica set could not be read")

    yield* worker.stop
    yield* pass(1000)
    assert.isTrue(worker.hasEnded())
    assert.deepStrictEqual(yield* gauges, [])
  })
}

test("a worker reports whether LISTEN is active, and its sessions", function*({ start }) {
  const connections = { isListening: false, sessions: 2 }
  const worker = yield* start({
    workerId: "a",
    membership: () => ({ connections: Effect.sync(() => ({ ...connections })) })
  })
  assert.deepStrictEqual([yield* seriesOf(Metrics.listening), yield* seriesOf(Metrics.sessions)], [{ a: 0 }, { a: 2 }])
  connections.isListening = true
  connections.sessions = 3
  yield* untilSampled
  assert.deepStrictEqual([yield* seriesOf(Metrics.listening), yield* seriesOf(Metrics.sessions)], [{ a: 1 }, { a: 3 }])
  yield* pass(60_000, 500)
  // Only changes are activities.
  assert.strictEqual(worker.of("ConnectionsChanged").length, 2)
})

test("hand-overs and takeovers are measured by the new owner", function*({ start }) {
  const histogram = (metric: typeof Metrics.handOverSeconds) =>
    Metric.value(Metric.withAttributes(metric, { replica_set: "main" }))
  const first = yield* start({ workerId: "a" })
  yield* pass(500)
  assert.strictEqual((yield* histogram(Metrics.handOverSeconds)).count, 0)
  const second = yield* start({ workerId: "b" })
  yield* pass(1000)
  // The first worker has released the upper half.
  assert.deepStrictEqual(second.of("RangeHandedOver").map(({ projection }) => projection), ["counts"])
  const handOvers = yield* histogram(Metrics.handOverSeconds)
  assert.strictEqual(handOvers.count, 1)
  assert.isBelow(handOvers.sum, 1)
  assert.deepStrictEqual([first.of("RangeHandedOver"), first.of("RangeTakenOver")], [[], []])

  yield* second.handle.cut
  yield* pass(1000)
  assert.deepStrictEqual(first.of("RangeTakenOver").map(({ projection }) => projection), ["counts"])
  const takeovers = yield* histogram(Metrics.takeoverSeconds)
  assert.strictEqual(takeovers.count, 1)
  // It had sent its last heartbeat when it reached its assignment.
  assert.isTrue(takeovers.sum > 0.1 && takeovers.sum < 3, `${takeovers.sum}`)
  assert.strictEqual((yield* histogram(Metrics.handOverSeconds)).count, 1)
  yield* second.stopCut
})
