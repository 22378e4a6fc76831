/**
 * Metrics, under the names of the Go original, so that its dashboards still work.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import type { Activity } from "../../schema/Activity.ts"

const name = (suffix: string) => `pupsourcing_orchestrator_${suffix}`

const counter = (suffix: string, description: string) =>
  Metric.counter(name(suffix), { description, incremental: true })

const seconds = (suffix: string, description: string, boundaries: ReadonlyArray<number>) =>
  Metric.histogram(name(suffix), { description, boundaries })

/**
 * Generations that this worker formed.
 *
 * @category metrics
 * @since 0.1.0
 */
export const generationsTotal = counter("generations_total", "Generations formed by this worker.")

/**
 * @category metrics
 * @since 0.1.0
 */
export const workersRegisteredTotal = counter("workers_registered_total", "Registrations of this worker.")

/**
 * @category metrics
 * @since 0.1.0
 */
export const partitionAssignmentsTotal = counter("partition_assignments_total", "Ranges claimed by this worker.")

/**
 * @category metrics
 * @since 0.1.0
 */
export const reconfigurationTotal = counter("reconfiguration_total", "Switches of this worker to another generation.")

/**
 * @category metrics
 * @since 0.1.0
 */
export const staleWorkersCleanedTotal = counter("stale_workers_cleaned_total", "Dead workers evicted by this worker.")

/**
 * @category metrics
 * @since 0.1.0
 */
export const eventsProcessedTotal = counter("events_processed_total", "Events handled and committed, by projection.")

/**
 * @category metrics
 * @since 0.1.0
 */
export const projectionErrorsTotal = counter(
  "projection_errors_total",
  "Batches that failed, by projection and whether the range halted."
)

/**
 * @category metrics
 * @since 0.1.0
 */
export const activeWorkers = Metric.gauge(name("active_workers"), {
  description: "Workers in the newest generation that this worker has read."
})

/**
 * @category metrics
 * @since 0.1.0
 */
export const currentGenerationPartitions = Metric.gauge(name("current_generation_partitions"), {
  description: "Partitions of the newest generation that this worker has read."
})

/**
 * @category metrics
 * @since 0.1.0
 */
export const workerState = Metric.gauge(name("worker_state"), {
  description: "1 for the state that this worker is in, by state; 0 for the others."
})

/**
 * @category metrics
 * @since 0.1.0
 */
export const coordinationDurationSeconds = seconds(
  "coordination_duration_seconds",
  "Time from first reading a generation until this worker runs its whole assignment.",
  [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60]
)

/**
 * @category metrics
 * @since 0.1.0
 */
export const eventProcessingDurationSeconds = seconds(
  "event_processing_duration_seconds",
  "Duration of a committed batch divided by its events, by projection.",
  [0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5]
)

/**
 * @category metrics
 * @since 0.1.0
 */
export const heartbeatLatencySeconds = seconds(
  "heartbeat_latency_seconds",
  "Duration of a heartbeat's statement.",
  [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5]
)

const states = ["pending", "ready", "running", "suspended", "stopped"] as const

const setState = (replicaSet: string, current: (typeof states)[number]) =>
  Effect.forEach(states, (state) =>
    Metric.update(
      Metric.withAttributes(workerState, { replica_set: replicaSet, state }),
      state === current ? 1 : 0
    ), { discard: true })

/**
 * Updates the metrics that an activity affects.
 *
 * @category metrics
 * @since 0.1.0
 */
export const record = (replicaSet: string, activity: Activity): Effect.Effect<void> => {
  const set = { replica_set: replicaSet }
  switch (activity._tag) {
    case "WorkerRegistered":
      return Effect.andThen(
        Metric.update(Metric.withAttributes(workersRegisteredTotal, set), 1),
        setState(replicaSet, "pending")
      )
    case "WorkerLeft":
    case "WorkerEvicted":
      return setState(replicaSet, "stopped")
    case "GenerationChanged": {
      const members = activity.generation.members.length
      return Effect.all([
        Metric.update(Metric.withAttributes(activeWorkers, set), members),
        Metric.update(Metric.withAttributes(currentGenerationPartitions, set), members),
        Metric.update(Metric.withAttributes(reconfigurationTotal, set), 1),
        Metric.update(Metric.withAttributes(generationsTotal, set), activity.formedByThisWorker ? 1 : 0),
        setState(replicaSet, "ready")
      ], { discard: true })
    }
    case "AssignmentReached":
      return Effect.andThen(
        Metric.update(Metric.withAttributes(coordinationDurationSeconds, set), activity.afterMillis / 1000),
        setState(replicaSet, "running")
      )
    case "RangeClaimed":
      return Metric.update(
        Metric.withAttributes(partitionAssignmentsTotal, { ...set, projection: activity.projection }),
        1
      )
    case "BatchCommitted": {
      const labels = { ...set, projection: activity.projection }
      return Effect.andThen(
        Metric.update(Metric.withAttributes(eventsProcessedTotal, labels), activity.events),
        Metric.update(
          Metric.withAttributes(eventProcessingDurationSeconds, labels),
          activity.tookMillis / 1000 / Math.max(1, activity.events)
        )
      )
    }
    case "BatchRetried":
      return Metric.update(
        Metric.withAttributes(projectionErrorsTotal, { ...set, projection: activity.projection, halted: "false" }),
        1
      )
    case "RangeHalted":
      return Metric.update(
        Metric.withAttributes(projectionErrorsTotal, { ...set, projection: activity.projection, halted: "true" }),
        1
      )
    case "Suspended":
      return setState(replicaSet, "suspended")
    case "Resumed":
      return setState(replicaSet, "running")
    case "RangeStopped":
    case "ProjectionGivenUp":
    case "CaughtUp":
    case "Missed":
      return Effect.void
  }
}
