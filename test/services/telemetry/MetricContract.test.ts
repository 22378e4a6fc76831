/** The metrics that the documentation promises, compared with the Go original's and with the series of a worker. */
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import { readFileSync } from "node:fs"
import * as MetricsPage from "../../../scripts/MetricsPage.ts"
import { Activity } from "../../../src/schema/Activity.ts"
import * as HashRange from "../../../src/schema/HashRange.ts"
import * as ActivityStream from "../../../src/services/telemetry/ActivityStream.ts"
import * as MetricContract from "../../../src/services/telemetry/MetricContract.ts"
import * as Metrics from "../../../src/services/telemetry/Metrics.ts"
import * as MetricUse from "../../support/MetricUse.ts"

const prefix = "pupsourcing_orchestrator_"

/** The original's metrics with their types and labels (metrics/metrics.go). Its histograms have Go's default buckets. */
const original = [
  ["generations_total", "Counter", "replica_set"],
  ["workers_registered_total", "Counter", "replica_set"],
  ["partition_assignments_total", "Counter", "replica_set"],
  ["reconfiguration_total", "Counter", "replica_set"],
  ["stale_workers_cleaned_total", "Counter", "replica_set"],
  ["events_processed_total", "Counter", "replica_set projection"],
  ["projection_errors_total", "Counter", "replica_set projection"],
  ["active_workers", "Gauge", "replica_set"],
  ["current_generation_partitions", "Gauge", "replica_set"],
  ["worker_state", "Gauge", "replica_set worker_id state"],
  ["coordination_duration_seconds", "Histogram", "replica_set"],
  ["event_processing_duration_seconds", "Histogram", "replica_set projection"],
  ["heartbeat_latency_seconds", "Histogram", "replica_set"]
] as const
const originalBounds = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]

it.effect.each(original)(
  "%s has the original's type, labels and bucket bounds",
  ([name, type, labels]) =>
    Effect.gen(function*() {
      const entry = MetricContract.entries.find(({ metric }) => metric.id === prefix + name)
      assert.strictEqual(entry?.metric.type, type)
      assert.includeMembers([...entry!.labels], labels.split(" "))
      const { state } =
        (yield* Effect.andThen(Metric.value(entry!.metric as Metric.Counter<number>), Metric.snapshot))[0]!
      const bounds = "buckets" in state ? state.buckets.map(([bound]) => bound) : undefined
      if (type === "Histogram") assert.includeMembers(bounds ?? [], originalBounds)
      else assert.isUndefined(bounds)
    }).pipe(Effect.provideService(Metric.MetricRegistry, new Map()))
)

it("every metric has an entry, and an example query that uses it", () => {
  const ids = Object.values(Metrics).map(({ id }) => id)
  assert.sameMembers(MetricContract.entries.map(({ metric }) => metric.id), ids)
  for (const { example: [, query], metric } of MetricContract.entries) {
    assert.include(query, metric.id)
    assert.deepStrictEqual(MetricUse.problems(query), [])
  }
})

it("docs/metrics.md is what npm run generate writes", () => {
  const page = readFileSync(new URL("../../../docs/metrics.md", import.meta.url), "utf8")
  assert.strictEqual(page, MetricsPage.render(), "run npm run generate")
})

it.effect("a worker's series have the promised labels, and its counters and histograms start at 0", () =>
  Effect.gen(function*() {
    const { record: emit } = ActivityStream.make("main", () => [])
    const found = Effect.map(
      Metric.snapshot,
      (snapshots) =>
        new Map(snapshots.map(({ attributes, id, state }) => [id, { labels: Object.keys(attributes ?? {}), state }]))
    )

    yield* emit(Activity.WorkerStarting({ workerId: "worker-0", projections: ["users"] }))
    const started = yield* found
    for (const { metric } of MetricContract.entries) {
      if (metric.type === "Gauge") assert.isFalse(started.has(metric.id), metric.id)
      else assert.deepInclude(started.get(metric.id)?.state, { count: 0 }, metric.id)
    }

    const registration = {
      replicaSet: "main",
      workerId: "worker-0",
      incarnation: 1n,
      startedAt: new Date(0),
      projections: ["users"]
    }
    const members = [{ ...registration, projections: ["users"] }]
    const generation = { replicaSet: "main", generationId: 1n, members, leaderId: "worker-0" }
    const at = { projection: "users", range: HashRange.whole, position: 1n }
    const took = Duration.millis(1)
    yield* emit(Activity.WorkerRegistered({ registration }))
    yield* emit(Activity.GenerationChanged({ generation, partition: 0, formedByThisWorker: true, reasons: [] }))
    yield* emit(Activity.RangeClaimed(at))
    yield* emit(Activity.AssignmentReached({ generation, partition: 0, after: took, isLeftAlone: false }))
    yield* emit(Activity.BatchCommitted({ ...at, events: 1, took }))
    yield* emit(Activity.HeartbeatRenewed({ took }))
    yield* emit(Activity.ConnectionsChanged({ isListening: true, sessions: 3 }))
    const lag = { lagEvents: 1n, lag: took, stalled: took, rangesWithoutOwner: 0 }
    const projection = { projection: "users", ...lag, parkedEvents: 1, parkedKeys: 1, parkedFor: took }
    yield* emit(Activity.ReplicaSetSampled({ sample: { settledLag: took, projections: [projection] } }))
    const series = yield* found
    for (const { labels, metric } of MetricContract.entries) {
      assert.sameMembers(series.get(metric.id)?.labels ?? [], [...labels], metric.id)
    }
  }).pipe(Effect.provideService(Metric.MetricRegistry, new Map())))
