/**
 * The gauges of a worker. They follow from its health as a whole: each activity sets the series that it changes, and
 * removes those that no longer apply.
 */
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as HashMap from "effect/HashMap"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import type { Activity, ReplicaSetSample } from "../../schema/Activity.ts"
import * as Health from "../../schema/Health.ts"
import * as Metrics from "./Metrics.ts"

interface Series {
  readonly gauge: Metric.Gauge<number>
  readonly labels: Readonly<Record<string, string>>
  readonly value: number
}

/**
 * Updates the gauges of a worker whose activity has changed what is known about it. Synchronous, so that the updates of two
 * activities cannot mix.
 */
export const updateUnsafe = (
  replicaSet: string,
  activity: Activity,
  before: Health.Observed,
  after: Health.Observed,
  context: Context.Context<never>
): void => {
  const changed = changedKeys(before, after)
  if (changed.length === 0) return
  // One range is claimed or stopped at a time, and a worker can have thousands of projections.
  const projection = changed.every((key) => key === "ranges") && "projection" in activity
    ? activity.projection
    : undefined
  const [old, current] = [seriesOf(replicaSet, before, projection), seriesOf(replicaSet, after, projection)]
  for (const [key, { gauge, labels, value }] of current) {
    if (old.get(key)?.value !== value) Metric.withAttributes(gauge, labels).updateUnsafe(value, context)
  }
  for (const [key, { gauge, labels }] of old) {
    if (!current.has(key)) Metric.removeUnsafe(Metric.withAttributes(gauge, labels), context)
  }
}

/** What differs. A heartbeat changes only `beatAt`, whose value is in no series. */
const changedKeys = (before: Health.Observed, after: Health.Observed): ReadonlyArray<keyof Health.Observed> =>
  before === after ?
    [] :
    (Object.keys(after) as ReadonlyArray<keyof Health.Observed>).filter((key) =>
      key === "beatAt" ? (before.beatAt === undefined) !== (after.beatAt === undefined) : before[key] !== after[key]
    )

const states = ["pending", "ready", "running", "suspended", "stopping"] as const

/**
 * The series of a worker, or only those of the ranges of one projection, by metric and labels; none unless the worker is
 * registered.
 */
const seriesOf = (
  replicaSet: string,
  observed: Health.Observed,
  projection: string | undefined
): ReadonlyMap<string, Series> => {
  if (observed.beatAt === undefined) return new Map()
  const worker = { replica_set: replicaSet, worker_id: observed.workerId ?? "" }
  const series = projection === undefined
    ? [
      ...seriesOfWorker(observed, worker),
      ...[...HashMap.keys(observed.ranges)].flatMap((projection) => seriesOfRanges(observed, worker, projection))
    ]
    : seriesOfRanges(observed, worker, projection)
  return new Map(series.map((one) => [JSON.stringify([one.gauge.id, one.labels]), one]))
}

const seriesOfWorker = (observed: Health.Observed, worker: Series["labels"]): ReadonlyArray<Series> => {
  const { connections, isSuspended, members, sample, state } = observed
  const shown = isSuspended ? "suspended" : state
  const series: Array<Series> = states.map((state) => ({
    gauge: Metrics.workerState,
    labels: { ...worker, state },
    value: state === shown ? 1 : 0
  }))
  if (connections !== undefined) {
    series.push(
      { gauge: Metrics.listening, labels: worker, value: connections.isListening ? 1 : 0 },
      { gauge: Metrics.sessions, labels: worker, value: connections.sessions }
    )
  }
  if (Health.isReporter(observed)) {
    series.push(
      { gauge: Metrics.activeWorkers, labels: worker, value: members },
      { gauge: Metrics.currentGenerationPartitions, labels: worker, value: members }
    )
    if (sample !== undefined) series.push(...seriesOfSample(sample, worker))
  }
  return series
}

const seriesOfRanges = (
  { ranges }: Health.Observed,
  worker: Series["labels"],
  projection: string
): ReadonlyArray<Series> => {
  const areHalted = [...Option.getOrElse(HashMap.get(ranges, projection), () => new Map<string, boolean>()).values()]
  if (areHalted.length === 0) return []
  const labels = { ...worker, projection }
  return [
    { gauge: Metrics.ranges, labels, value: areHalted.length },
    { gauge: Metrics.haltedRanges, labels, value: areHalted.filter((isHalted) => isHalted).length }
  ]
}

const seriesOfSample = (
  { projections, settledLag }: ReplicaSetSample,
  worker: Series["labels"]
): ReadonlyArray<Series> => [
  { gauge: Metrics.settledLagSeconds, labels: worker, value: Duration.toSeconds(settledLag) },
  ...projections.flatMap((sample): ReadonlyArray<Series> => {
    const labels = { ...worker, projection: sample.projection }
    return [
      { gauge: Metrics.projectionLagEvents, labels, value: Number(sample.lagEvents) },
      { gauge: Metrics.projectionLagSeconds, labels, value: Duration.toSeconds(sample.lag) },
      { gauge: Metrics.projectionStalledSeconds, labels, value: Duration.toSeconds(sample.stalled) },
      { gauge: Metrics.rangesWithoutOwner, labels, value: sample.rangesWithoutOwner },
      { gauge: Metrics.parkedEvents, labels, value: sample.parkedEvents },
      { gauge: Metrics.parkedKeys, labels, value: sample.parkedKeys },
      { gauge: Metrics.parkedOldestSeconds, labels, value: Duration.toSeconds(sample.parkedFor) }
    ]
  })
]
