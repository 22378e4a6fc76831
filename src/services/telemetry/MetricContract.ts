/**
 * The unit and the labels of each metric, and an example query. `npm run generate` writes docs/metrics.md from them, and a
 * test compares them with the series that a worker produces.
 */
import type * as Metric from "effect/Metric"
import * as Metrics from "./Metrics.ts"

export interface Entry {
  readonly metric: Metric.Counter<number> | Metric.Gauge<number> | Metric.Histogram<number>
  readonly unit: "seconds" | "1"
  /** Its labels in the order of the documentation. Every metric has `replica_set`. */
  readonly labels: ReadonlyArray<string>
  /** What the example query shows, and the query in PromQL. */
  readonly example: readonly [purpose: string, query: string]
}

const ofReplicaSet = ["replica_set"]
const ofProjection = ["replica_set", "projection"]
const ofWorker = ["replica_set", "worker_id"]
const ofProjectionOfWorker = [...ofWorker, "projection"]

const ofCount = (metric: Entry["metric"], labels: Entry["labels"], example: Entry["example"]): Entry => ({
  metric,
  unit: "1",
  labels,
  example
})

const ofTime = (metric: Entry["metric"], labels: Entry["labels"], example: Entry["example"]): Entry => ({
  metric,
  unit: "seconds",
  labels,
  example
})

const sumOf = ({ id }: Entry["metric"]) => ({ id: `${id}_sum` })

const countOf = ({ id }: Entry["metric"]) => ({ id: `${id}_count` })

const rate = (metric: { readonly id: string }, by: Entry["labels"], window: string): string =>
  `sum by (${by.join(", ")}) (rate(${metric.id}[${window}]))`

const increase = (metric: Entry["metric"], by: Entry["labels"], window: string): string =>
  `sum by (${by.join(", ")}) (increase(${metric.id}[${window}]))`

const quantile = (metric: Entry["metric"], by: Entry["labels"]): string =>
  `histogram_quantile(0.95, sum by (${[...by, "le"].join(", ")}) (rate(${metric.id}_bucket[5m])))`

export const entries: ReadonlyArray<Entry> = [
  ofCount(Metrics.eventsProcessedTotal, ofProjection, [
    "events per second of each projection",
    rate(Metrics.eventsProcessedTotal, ofProjection, "5m")
  ]),
  ofCount(Metrics.projectionErrorsTotal, ofProjection, [
    "failures per second of each projection",
    rate(Metrics.projectionErrorsTotal, ofProjection, "5m")
  ]),
  ofCount(Metrics.projectionHaltsTotal, ofProjection, [
    "halts of the last 10 minutes, for an alert",
    `${increase(Metrics.projectionHaltsTotal, ofProjection, "10m")} > 0`
  ]),
  ofCount(Metrics.eventsSkippedTotal, ofProjection, [
    "events skipped in the last 10 minutes, for an alert",
    `${increase(Metrics.eventsSkippedTotal, ofProjection, "10m")} > 0`
  ]),
  ofCount(Metrics.eventsParkedTotal, ofProjection, [
    "events parked in the last 10 minutes, for an alert",
    `${increase(Metrics.eventsParkedTotal, ofProjection, "10m")} > 0`
  ]),
  ofTime(Metrics.eventProcessingDurationSeconds, ofProjection, [
    "95th percentile of the time per event",
    quantile(Metrics.eventProcessingDurationSeconds, ofProjection)
  ]),
  ofCount(Metrics.batchEvents, ofProjection, [
    "mean size of a batch",
    `${rate(sumOf(Metrics.batchEvents), ofProjection, "5m")} / ${
      rate(countOf(Metrics.batchEvents), ofProjection, "5m")
    }`
  ]),
  ofCount(Metrics.activeWorkers, ofWorker, [
    "workers of each replica set",
    `sum by (replica_set) (${Metrics.activeWorkers.id})`
  ]),
  ofCount(Metrics.currentGenerationPartitions, ofWorker, [
    "partitions of each replica set",
    `sum by (replica_set) (${Metrics.currentGenerationPartitions.id})`
  ]),
  ofCount(Metrics.ranges, ofProjectionOfWorker, [
    "ranges of each worker",
    `sum by (worker_id) (${Metrics.ranges.id})`
  ]),
  ofCount(Metrics.haltedRanges, ofProjectionOfWorker, [
    "projections that are halted now, for an alert",
    `sum by (replica_set, projection) (${Metrics.haltedRanges.id}) > 0`
  ]),
  ofCount(Metrics.projectionLagEvents, ofProjectionOfWorker, [
    "events that each projection has not handled yet",
    `sum by (replica_set, projection) (${Metrics.projectionLagEvents.id})`
  ]),
  ofTime(Metrics.projectionLagSeconds, ofProjectionOfWorker, [
    "projections that are more than a minute behind, for an alert",
    `max by (replica_set, projection) (${Metrics.projectionLagSeconds.id}) > 60`
  ]),
  ofTime(Metrics.projectionStalledSeconds, ofProjectionOfWorker, [
    "projections that have had events and made no progress for 5 minutes, for an alert",
    `max by (replica_set, projection) (${Metrics.projectionStalledSeconds.id}) > 300`
  ]),
  ofCount(Metrics.rangesWithoutOwner, ofProjectionOfWorker, [
    "projections with a range that no worker owned for 2 minutes, for an alert",
    `min_over_time(${Metrics.rangesWithoutOwner.id}[2m]) > 0`
  ]),
  ofCount(Metrics.parkedEvents, ofProjectionOfWorker, [
    "parked events of each projection",
    `sum by (replica_set, projection) (${Metrics.parkedEvents.id})`
  ]),
  ofCount(Metrics.parkedKeys, ofProjectionOfWorker, [
    "keys of each projection whose events are parked",
    `sum by (replica_set, projection) (${Metrics.parkedKeys.id})`
  ]),
  ofTime(Metrics.parkedOldestSeconds, ofProjectionOfWorker, [
    "projections with an event that has been parked for an hour, for an alert",
    `max by (replica_set, projection) (${Metrics.parkedOldestSeconds.id}) > 3600`
  ]),
  ofTime(Metrics.settledLagSeconds, ofWorker, [
    "replica sets whose readers wait for a transaction that is open for a minute, for an alert",
    `max by (replica_set) (${Metrics.settledLagSeconds.id}) > 60`
  ]),
  ofCount(Metrics.listening, ofWorker, [
    "workers that have only polled for 5 minutes",
    `max_over_time(${Metrics.listening.id}[5m]) == 0`
  ]),
  ofCount(Metrics.sessions, ofWorker, [
    "sessions of each process, beside its pools",
    `max by (instance) (${Metrics.sessions.id})`
  ]),
  ofCount(Metrics.workerState, [...ofWorker, "state"], [
    "workers that have not been running for 5 minutes",
    `min_over_time(${Metrics.workerState.id}{state!="running"}[5m]) == 1`
  ]),
  ofCount(Metrics.generationsTotal, ofReplicaSet, [
    "generations of the last hour; workers that join, leave or die cause them",
    increase(Metrics.generationsTotal, ofReplicaSet, "1h")
  ]),
  ofCount(Metrics.reconfigurationTotal, ofReplicaSet, [
    "switches per second of all workers",
    rate(Metrics.reconfigurationTotal, ofReplicaSet, "5m")
  ]),
  ofCount(Metrics.workersRegisteredTotal, ofReplicaSet, [
    "registrations of the last hour",
    increase(Metrics.workersRegisteredTotal, ofReplicaSet, "1h")
  ]),
  ofCount(Metrics.staleWorkersCleanedTotal, ofReplicaSet, [
    "workers that died in the last hour",
    increase(Metrics.staleWorkersCleanedTotal, ofReplicaSet, "1h")
  ]),
  ofCount(Metrics.partitionAssignmentsTotal, ofProjection, [
    "ranges that workers started to work on in the last hour",
    increase(Metrics.partitionAssignmentsTotal, ofProjection, "1h")
  ]),
  ofTime(Metrics.coordinationDurationSeconds, ofReplicaSet, [
    "95th percentile of a switch to another generation",
    quantile(Metrics.coordinationDurationSeconds, ofReplicaSet)
  ]),
  ofTime(Metrics.handOverSeconds, ofReplicaSet, [
    "95th percentile of the pause of a range that changes its worker",
    quantile(Metrics.handOverSeconds, ofReplicaSet)
  ]),
  ofTime(Metrics.takeoverSeconds, ofReplicaSet, [
    "95th percentile of the time until the ranges of a dead worker are claimed",
    quantile(Metrics.takeoverSeconds, ofReplicaSet)
  ]),
  ofTime(Metrics.heartbeatLatencySeconds, ofReplicaSet, [
    "95th percentile of a heartbeat",
    quantile(Metrics.heartbeatLatencySeconds, ofReplicaSet)
  ])
]
