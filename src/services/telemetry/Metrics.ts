/**
 * Metrics of a worker, under the names of the Go original, so that its dashboards still work. Every metric has the label
 * `replica_set`; further labels are named where a metric has them. docs/metrics.md lists them all, with an example query
 * for each.
 *
 * Counters start at 0 when the worker starts, so that `increase` and `rate` include the first change. The gauges of a
 * whole replica set are set only by the worker with partition 0, so that both `sum` and `max` over all workers are
 * right. The gauges of a worker disappear when it leaves or is evicted.
 *
 * **Example** (Read a metric in the process)
 *
 * ```ts
 * import { Metric } from "effect"
 * import { Metrics } from "pupsourcing-orchestrator"
 *
 * export const handledUsers = Metric.value(
 *   Metric.withAttributes(Metrics.eventsProcessedTotal, { replica_set: "main-projections", projection: "users" })
 * )
 * ```
 *
 * @since 0.1.0
 */
import * as Metric from "effect/Metric"

const name = (suffix: string) => `pupsourcing_orchestrator_${suffix}`

const counter = (suffix: string, description: string) =>
  Metric.counter(name(suffix), { description, incremental: true })

const gauge = (suffix: string, description: string) => Metric.gauge(name(suffix), { description })

const seconds = (suffix: string, description: string, boundaries: ReadonlyArray<number>) =>
  Metric.histogram(name(suffix), { description, boundaries })

/** The bucket bounds of the original, which are the defaults of Prometheus' client for Go. */
const original = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10]

/**
 * Generations that this worker has formed, including the one without it that it forms when it leaves.
 *
 * @category metrics
 * @since 0.1.0
 */
export const generationsTotal = counter("generations_total", "Generations formed by this worker.")

/**
 * Registrations of this worker: 1, plus 1 after each eviction.
 *
 * @category metrics
 * @since 0.1.0
 */
export const workersRegisteredTotal = counter("workers_registered_total", "Registrations of this worker.")

/**
 * Ranges that this worker has started to work on, including restarts of their runners. Label: `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const partitionAssignmentsTotal = counter(
  "partition_assignments_total",
  "Ranges that this worker has started to work on."
)

/**
 * Switches of this worker to another generation, the first one included.
 *
 * @category metrics
 * @since 0.1.0
 */
export const reconfigurationTotal = counter("reconfiguration_total", "Switches of this worker to another generation.")

/**
 * Dead workers that this worker has evicted.
 *
 * @category metrics
 * @since 0.1.0
 */
export const staleWorkersCleanedTotal = counter("stale_workers_cleaned_total", "Dead workers evicted by this worker.")

/**
 * Events that were handled and committed. Label: `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const eventsProcessedTotal = counter("events_processed_total", "Events handled and committed, by projection.")

/**
 * Failures: reads, batches and writes that failed, whether they are retried, the range halted, or the event was parked or
 * skipped. Label: `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const projectionErrorsTotal = counter(
  "projection_errors_total",
  "Failed reads, batches and writes, including those after which a range halted, or an event was parked or skipped."
)

/**
 * Halts of ranges. Label: `projection`. How many ranges are halted now is in the table of checkpoints.
 *
 * @category metrics
 * @since 0.1.0
 */
export const projectionHaltsTotal = counter("projection_halts_total", "Ranges that halted while this worker ran them.")

/**
 * Events that were skipped because they could not be handled. Label: `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const eventsSkippedTotal = counter("events_skipped_total", "Events that were skipped without being handled.")

/**
 * Events that were parked: those that could not be handled, and those that queue behind them. Label: `projection`. How
 * many events are parked now is in the table of parked events.
 *
 * @category metrics
 * @since 0.1.0
 */
export const eventsParkedTotal = counter(
  "events_parked_total",
  "Events that were parked, including those that queue behind them."
)

/**
 * Workers in the newest generation of the replica set. Set only by the worker with partition 0. Label: `worker_id`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const activeWorkers = gauge(
  "active_workers",
  "Workers in the newest generation; set only by the worker with partition 0."
)

/**
 * Partitions of the newest generation of the replica set. Equal to `activeWorkers`, and set by the same worker. Label:
 * `worker_id`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const currentGenerationPartitions = gauge(
  "current_generation_partitions",
  "Partitions of the newest generation; set only by the worker with partition 0."
)

/**
 * Ranges that this worker works on, including halted ones. Labels: `worker_id`, `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const ranges = gauge("ranges", "Ranges that this worker works on.")

/**
 * Ranges of this worker that are halted. Labels: `worker_id`, `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const haltedRanges = gauge("halted_ranges", "Ranges of this worker that are halted.")

/**
 * Events that match a projection and are not handled yet, in all of its ranges, against the head of the events table. Set
 * only by the worker with partition 0. A range counts the next 10,000 events exactly, or fewer if more than 100 ranges
 * lag; beyond, its value is an estimate. Labels: `worker_id`, `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const projectionLagEvents = gauge(
  "projection_lag_events",
  "Events that match the projection and are not handled yet, up to the head of the events table; an estimate where more than 10,000 events follow a range's position, or fewer if more than 100 ranges lag. Set only by the worker with partition 0."
)

/**
 * Seconds since the oldest event that matches a projection and is not handled was appended; 0 if there is none. If none
 * of the next 10,000 events of a range matches, or of fewer if more than 100 ranges lag, and further events follow, it
 * is the age of the last of these: no match can be older. Set only by the worker with partition 0. Labels: `worker_id`,
 * `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const projectionLagSeconds = gauge(
  "projection_lag_seconds",
  "Seconds since the oldest event that matches the projection and is not handled yet was appended (its created_at); 0 if there is none. If none of the next 10,000 events of a range matches (fewer if more than 100 ranges lag) and further events follow, it is the age of the last of these, because no match can be older. Set only by the worker with partition 0."
)

/**
 * Seconds for which a projection has made no progress although it had events to handle: of its ranges that have some,
 * the one that has waited longest. 0 if there is none. Set only by the worker with partition 0. Labels: `worker_id`,
 * `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const projectionStalledSeconds = gauge(
  "projection_stalled_seconds",
  "Seconds since the last progress of the range that has waited longest, among the ranges with events to handle; at most the age of its oldest event, and 0 if no range has any. A halt and a claim by another worker count as a change. Set only by the worker with partition 0."
)

/**
 * Ranges that no registered worker owns. Set only by the worker with partition 0. Labels: `worker_id`, `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const rangesWithoutOwner = gauge(
  "ranges_without_owner",
  "Ranges of the projection that no registered worker owns. Set only by the worker with partition 0."
)

/**
 * Parked events of a projection: those whose handler failed, and those that queue behind them. Set only by the worker
 * with partition 0. Labels: `worker_id`, `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const parkedEvents = gauge(
  "parked_events",
  "Parked events of the projection, including those that queue behind an event of the same key. Set only by the worker with partition 0."
)

/**
 * Keys of a projection that have parked events. Set only by the worker with partition 0. Labels: `worker_id`,
 * `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const parkedKeys = gauge(
  "parked_keys",
  "Keys of the projection that have parked events. Set only by the worker with partition 0."
)

/**
 * Seconds since the oldest parked event of a projection was parked; 0 if there is none. Set only by the worker with
 * partition 0. Labels: `worker_id`, `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const parkedOldestSeconds = gauge(
  "parked_oldest_seconds",
  "Seconds since the oldest parked event of the projection was parked; 0 if there is none. Set only by the worker with partition 0."
)

/**
 * Seconds since the oldest transaction for which readers wait began: it has drawn positions and may still commit events
 * there. 0 if there is none. Set only by the worker with partition 0. Label: `worker_id`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const settledLagSeconds = gauge(
  "settled_lag_seconds",
  "Seconds since the oldest open transaction that has drawn positions for events, and for which readers wait, began; 0 if there is none. Since it was first observed, if the worker's role may not read when it began. Set only by the worker with partition 0."
)

/**
 * 1 while LISTEN is active, 0 while this worker finds changes by polling. Label: `worker_id`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const listening = gauge("listening", "1 while LISTEN is active, 0 while this worker finds changes by polling.")

/**
 * Database sessions that the library has opened for itself in this worker's process: for listening and presence,
 * coordination, reading, and the wait for a neighbour's presence. The pool of the application's client, on which batches
 * run, is not included. Label: `worker_id`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const sessions = gauge(
  "sessions",
  "Open database sessions of the library in the worker's process: listening and presence (one), coordination (one), reading (one), and waiting for a neighbour's presence (one for each neighbour). Not included: the pool of the application's client, on which batches run. Workers of one process that share their stores report the same sessions."
)

/**
 * 1 for the state that this worker is in, 0 for the others. Labels: `worker_id`; `state`, which is `pending`, `ready`,
 * `running`, `suspended` or `stopping`. A worker that has left or was evicted has no series.
 *
 * @category metrics
 * @since 0.1.0
 */
export const workerState = gauge("worker_state", "1 for the state that this worker is in, by state; 0 for the others.")

/**
 * Seconds from the start of the pass in which this worker first read a generation, or formed it, until it worked on its
 * whole assignment.
 *
 * @category metrics
 * @since 0.1.0
 */
export const coordinationDurationSeconds = seconds(
  "coordination_duration_seconds",
  "Seconds from the first read of a generation until this worker works on its whole assignment.",
  [...original, 30, 60]
)

/**
 * Seconds from the release of a range by a live worker until this worker claimed it, by the database's clock.
 *
 * @category metrics
 * @since 0.1.0
 */
export const handOverSeconds = seconds(
  "hand_over_seconds",
  "Seconds from the hand-over of a range by another worker, or from its release, until this worker got it. After a release, this includes the time in which no worker ran. If several workers share the range of a dead worker, the first claims it and hands the other parts over.",
  [...original, 30, 60]
)

/**
 * Seconds from the last heartbeat of a worker that has died until this worker claimed one of its ranges, by the database's
 * clock.
 *
 * @category metrics
 * @since 0.1.0
 */
export const takeoverSeconds = seconds(
  "takeover_seconds",
  "Seconds from the last heartbeat of a dead worker until this worker claimed one of its ranges. Not recorded if the worker's id was registered again before.",
  [...original, 30, 60, 120]
)

/**
 * Seconds per event: the duration of a committed batch divided by its events. One value per batch. Label:
 * `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const eventProcessingDurationSeconds = seconds(
  "event_processing_duration_seconds",
  "Seconds that a committed batch took, divided by the number of its events.",
  [0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, ...original]
)

/**
 * Events of a committed batch. Label: `projection`.
 *
 * @category metrics
 * @since 0.1.0
 */
export const batchEvents = Metric.histogram(name("batch_events"), {
  description: "Events of a committed batch, by projection.",
  boundaries: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000]
})

/**
 * Seconds that a heartbeat's statement took. Failed heartbeats are not included.
 *
 * @category metrics
 * @since 0.1.0
 */
export const heartbeatLatencySeconds = seconds(
  "heartbeat_latency_seconds",
  "Seconds that a heartbeat's statement took.",
  [0.001, ...original]
)
