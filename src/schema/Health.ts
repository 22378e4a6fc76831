/**
 * The health of one worker. It is derived from the worker's activities, so `Orchestrator.health` returns it even while the
 * database is unreachable.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as HashMap from "effect/HashMap"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type { Activity, ReplicaSetSample } from "./Activity.ts"
import type * as HashRange from "./HashRange.ts"

/**
 * The health of one worker.
 *
 * @category models
 * @since 0.1.0
 */
export const Health = Schema.Struct({
  replicaSet: Schema.String,
  /** Absent before the first run. */
  workerId: Schema.optionalKey(Schema.String),
  /**
   * `starting`: not registered yet, or registering again after an eviction; `pending`: registered; `ready`: a member of a
   * generation; `running`: works on its whole assignment; `suspended`: could not renew its heartbeat in time; `stopping`: it
   * was asked to stop, its ranges drain, and then it unregisters; `stopped`: not running.
   */
  state: Schema.Literals(["starting", "pending", "ready", "running", "suspended", "stopping", "stopped"]),
  generationId: Schema.optionalKey(Schema.BigInt),
  /** Its partition of the generation; absent if it has none. */
  partition: Schema.optionalKey(Schema.Int),
  /** The ranges that it works on, including halted ones. */
  ranges: Schema.Int,
  haltedRanges: Schema.Int,
  /** Time since its last heartbeat; absent unless it is registered. */
  silentFor: Schema.optionalKey(Schema.Duration),
  /** Why it is not ready for work; absent if it is. */
  problem: Schema.optionalKey(Schema.String)
})

/**
 * @category models
 * @since 0.1.0
 */
export type Health = typeof Health.Type

/**
 * What the activities of a worker have shown so far.
 *
 * @internal
 */
export interface Observed {
  readonly workerId: string | undefined
  readonly state: Exclude<Health["state"], "suspended">
  readonly isSuspended: boolean
  /** Why the last run has failed; undefined if it has not. */
  readonly failure?: string
  readonly generationId: bigint | undefined
  readonly partition: number | undefined
  /** The number of workers of the generation. */
  readonly members: number
  /**
   * Whether each range that it works on is halted, by projection and range. Not a `Map`, which each activity of a range
   * would have to copy: a worker can have thousands of projections.
   */
  readonly ranges: HashMap.HashMap<string, ReadonlyMap<string, boolean>>
  /** The last sample of the replica set; undefined unless the worker has partition 0. */
  readonly sample: ReplicaSetSample | undefined
  readonly connections: { readonly isListening: boolean; readonly sessions: number } | undefined
  /** When the last heartbeat was renewed, in nanoseconds of the monotonic clock. */
  readonly beatAt: bigint | undefined
}

/**
 * Before the first activity.
 *
 * @internal
 */
export const nothing: Observed = {
  workerId: undefined,
  state: "stopped",
  isSuspended: false,
  generationId: undefined,
  partition: undefined,
  members: 0,
  ranges: HashMap.empty(),
  sample: undefined,
  connections: undefined,
  beatAt: undefined
}

/**
 * Whether the worker reports the gauges of its replica set. A suspended worker does not, because the others may form a
 * generation without it, whose partition 0 reports them.
 *
 * @internal
 */
export const isReporter = ({ isSuspended, partition }: Observed): boolean => partition === 0 && !isSuspended

/**
 * Adds an activity, which was recorded at `now` in nanoseconds of the monotonic clock.
 *
 * @internal
 */
export const observe = (self: Observed, activity: Activity, now: bigint): Observed => {
  switch (activity._tag) {
    case "WorkerStarting":
      return { ...nothing, workerId: activity.workerId, state: "starting" }
    case "WorkerRegistered":
      return { ...nothing, workerId: activity.registration.workerId, state: "pending", beatAt: now }
    case "GenerationChanged": {
      const { generation: { generationId, members }, partition } = activity
      return {
        ...self,
        state: "ready",
        generationId,
        partition: partition < 0 ? undefined : partition,
        members: members.length,
        sample: partition === 0 ? self.sample : undefined
      }
    }
    case "AssignmentReached":
      return { ...self, state: "running" }
    case "RangeClaimed":
      return withRange(self, activity, false)
    case "RangeHalted":
      return withRange(self, activity, true)
    case "RangeStopped":
      return withRange(self, activity, undefined)
    case "ReplicaSetSampled":
      return isReporter(self) ? { ...self, sample: activity.sample } : self
    case "ConnectionsChanged": {
      const { isListening, sessions } = activity
      return { ...self, connections: { isListening, sessions } }
    }
    case "HeartbeatRenewed":
      return { ...self, beatAt: now }
    case "Suspended":
      return { ...self, isSuspended: true, sample: undefined }
    case "Resumed":
      return { ...self, isSuspended: false, beatAt: now }
    case "WorkerStopping":
      return { ...self, state: "stopping" }
    case "WorkerEvicted":
      return { ...nothing, workerId: self.workerId, state: "starting" }
    case "WorkerLeft":
      return { ...nothing, workerId: self.workerId }
    case "WorkerStopped": {
      const { failure } = activity
      return { ...nothing, workerId: self.workerId, ...(failure === undefined ? {} : { failure }) }
    }
    default:
      return self
  }
}

/** Sets whether a range is halted, or removes the range. */
const withRange = (
  self: Observed,
  { projection, range }: { readonly projection: string; readonly range: HashRange.HashRange },
  isHalted: boolean | undefined
): Observed => {
  const key = `${range.start} ${range.end}`
  const ofProjection = new Map(Option.getOrUndefined(HashMap.get(self.ranges, projection)))
  if (isHalted === undefined) ofProjection.delete(key)
  else ofProjection.set(key, isHalted)
  const ranges = ofProjection.size === 0
    ? HashMap.remove(self.ranges, projection)
    : HashMap.set(self.ranges, projection, ofProjection)
  return { ...self, ranges }
}

/**
 * The health at `now`. A heartbeat that is two intervals old is late.
 *
 * @internal
 */
export const make = (
  { beatAt, failure, generationId, isSuspended, partition, ranges, state, workerId }: Observed,
  { heartbeatInterval, now, replicaSet }: {
    readonly replicaSet: string
    readonly now: bigint
    readonly heartbeatInterval: Duration.Duration
  }
): Health => {
  const all = [...HashMap.values(ranges)].flatMap((ofProjection) => [...ofProjection.values()])
  const health = {
    replicaSet,
    ...(workerId === undefined ? {} : { workerId }),
    state: isSuspended ? "suspended" as const : state,
    ...(generationId === undefined ? {} : { generationId }),
    ...(partition === undefined ? {} : { partition }),
    ranges: all.length,
    haltedRanges: all.filter((isHalted) => isHalted).length,
    ...(beatAt === undefined ? {} : { silentFor: Duration.nanos(now - beatAt) })
  }
  const problem = failure === undefined
    ? problemOf(health, Duration.times(heartbeatInterval, 2))
    : `The worker has failed: ${failure}`
  return problem === undefined ? health : { ...health, problem }
}

const problemOf = ({ haltedRanges, ranges, silentFor, state }: Health, late: Duration.Duration): string | undefined => {
  switch (state) {
    case "starting":
      return "The worker is not registered yet."
    case "stopped":
      return "The worker is not running."
    case "stopping":
      return "The worker was asked to stop: it finishes its batches and leaves."
    case "suspended":
      return "The worker could not renew its heartbeat in time, so other workers may take over its ranges."
    default:
      return silentFor !== undefined && Duration.isGreaterThan(silentFor, late)
        ? `The last heartbeat was renewed ${
          Duration.format(Duration.seconds(Math.floor(Duration.toSeconds(silentFor))))
        } ago; the database may be unreachable.`
        : ranges > 0 && haltedRanges === ranges
        ? "All ranges of the worker are halted."
        : undefined
  }
}
