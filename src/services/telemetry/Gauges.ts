/**
 * The gauges of a worker. They follow from its health as a whole: each activity sets the series that it changes, and
 * removes those that no longer apply.
 */
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Metric from "effect/Metric"
import type { ReplicaSetSample } from "../../schema/Activity.ts"
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
  before: Health.Observed,
  after: Health.Observed,
  context: Context.Context<never>
): void => {
  if (!changesSeries(before, after)) return
  const [old, current] = [seriesOf(replicaSet, before), seriesOf(replicaSet, after)]
  for (const [key, { gauge, labels, value }] of current) {
    if (old.get(key)?.value !== value) Metric.withAttributes(gauge, labels).updateUnsafe(value, context)
  }
  for (const [key, { gauge, labels }] of old) {
    if (!current.has(key)) Metric.removeUnsafe(Metric.withAttributes(gauge, labels), context)
  }
}

/** A heartbeat changes only `beatAt`, whose value is in no series. */
const changesSeries = (before: Health.Observed, after: Health.Observed): boolean =>
  before !== after &&
  (Object.keys(after) as ReadonlyArray<keyof Health.Observed>).some((key) =>
    key === "beatAt" ? (before.beatAt === undefined) !== (after.beatAt === undefined) : before[key] !== after[key]
  )

const states = ["pending", "ready", "running", "suspended", "stopping"] as const

/** The series of a worker, by metric and labels; none unless it is registered. */
const seriesOf = (replicaSet: string, observed: Health.Observed): ReadonlyMap<string, Series> => {
  const { beatAt, connections, isSuspended, members, ranges, sample, state, workerId = "" } = observed
  if (beatAt === undefined) return new Map()
  const worker = { replica_set: replicaSet, worker_id: workerId }
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
  for (const [projection, { halted, owned }] of countRanges(ranges)) {
    const labels = { ...worker, projection }
    series.push(
      { gauge: Metrics.ranges, labels, value: owned },
      { gauge: Metrics.haltedRanges, labels, value: halted }
    )
  }
  return new Map(series.map((one) => [JSON.stringify([one.gauge.id, one.labels]), one]))
}

/** The ranges of each projection, in one pass: a worker can have thousands of projections. */
const countRanges = (
  ranges: Health.Observed["ranges"]
): ReadonlyMap<string, { readonly owned: number; readonly halted: number }> => {
  const counts = new Map<string, { owned: number; halted: number }>()
  for (const { isHalted, projection } of ranges.values()) {
    const { halted, owned } = counts.get(projection) ?? { owned: 0, halted: 0 }
    counts.set(projection, { owned: owned + 1, halted: halted + (isHalted ? 1 : 0) })
  }
  return counts
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
