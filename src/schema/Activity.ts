/**
 * The activity of a worker: what it did and observed, as `Orchestrator.activity` publishes it. The log lines and metrics
 * that each activity produces are in `services/telemetry/Telemetry.ts`.
 *
 * **Example** (Report halted ranges)
 *
 * ```ts
 * import { Console, Effect, Stream } from "effect"
 * import { Orchestrator } from "pupsourcing-orchestrator"
 *
 * export const reportHalts = Effect.gen(function*() {
 *   const orchestrator = yield* Orchestrator.Orchestrator
 *   yield* Stream.runForEach(orchestrator.activity, (activity) =>
 *     activity._tag === "RangeHalted" ? Console.error(activity.projection, activity.halt.error) : Effect.void)
 * })
 * ```
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import type { Halt } from "./Checkpoint.ts"
import type { GivenUp, WorkerEvicted, WorkerReplaced } from "./Errors.ts"
import type { Generation } from "./Generation.ts"
import type { HashRange } from "./HashRange.ts"
import type { Request } from "./ParkedEvent.ts"
import type { Registration } from "./Worker.ts"

/**
 * Why a generation replaced another one. `ProjectionsChanged`: the workers are the same, but carry other projections, or
 * have claimed one from another replica set.
 *
 * @category models
 * @since 0.1.0
 */
export type ChangeReason = "WorkerJoined" | "WorkerLeft" | "WorkerLost" | "ProjectionsChanged"

/**
 * What `Projections.status` shows of a replica set, as the metrics report it.
 *
 * @category models
 * @since 0.1.0
 */
export interface ReplicaSetSample {
  /**
   * Time since the oldest transaction for which readers wait began, or since it was first observed if the role may not
   * read that; zero if there is none.
   */
  readonly settledLag: Duration.Duration
  readonly projections: ReadonlyArray<{
    readonly projection: string
    /** The number of matching events that are not handled yet; an estimate where `Lag.isEstimate`. */
    readonly lagEvents: bigint
    /** Time since the earliest `Lag.oldest` of its ranges; zero if there is none. */
    readonly lag: Duration.Duration
    /** For how long the range that has waited longest has had events to handle and made no progress. */
    readonly stalled: Duration.Duration
    readonly rangesWithoutOwner: number
    readonly parkedEvents: number
    readonly parkedKeys: number
    /** Time since the oldest parked event was parked; zero if there is none. */
    readonly parkedFor: Duration.Duration
  }>
}

/**
 * An event that a projection could not handle.
 *
 * @category models
 * @since 0.1.0
 */
export interface FailedEvent {
  readonly projection: string
  readonly range: HashRange
  readonly position: bigint
  readonly eventId: string
  /** Type, aggregate and version of the event, and the error. */
  readonly error: string
  /** Where the handler threw: the frames of its stack, without its message. Empty if nothing was thrown. */
  readonly stack: string
}

/**
 * An entry of a worker's activity.
 *
 * @category models
 * @since 0.1.0
 */
export type Activity = Data.TaggedEnum<{
  /** A run begins: the worker checks its projections and is about to register. */
  WorkerStarting: { readonly workerId: string; readonly projections: ReadonlyArray<string> }
  /** The worker has registered. Recorded again when it registers after an eviction. */
  WorkerRegistered: { readonly registration: Registration }
  /** A generation is in effect. */
  GenerationChanged: {
    readonly generation: Generation
    /** This worker's key in the generation, -1 if it is not a member. */
    readonly partition: number
    readonly formedByThisWorker: boolean
    /** Why it differs from the generation before it; empty for the first one of a registration. */
    readonly reasons: ReadonlyArray<ChangeReason>
  }
  /** The worker runs all of its assignment in the generation. */
  AssignmentReached: {
    readonly generation: Generation
    readonly partition: number
    /** Time since the start of the pass in which the worker first read the generation, or formed it. */
    readonly after: Duration.Duration
    /** Whether the worker is the only member, and the generation before this one had others. */
    readonly isLeftAlone: boolean
  }
  /** The worker has got a range that another worker has handed over or released. `after`: the time since then. */
  RangeHandedOver: { readonly projection: string; readonly range: HashRange; readonly after: Duration.Duration }
  /** The worker has claimed a range of a dead worker. `after`: the time since the last heartbeat of that worker. */
  RangeTakenOver: { readonly projection: string; readonly range: HashRange; readonly after: Duration.Duration }
  /** A range's runner starts at `position`: after a claim, or again after it had to stop. */
  RangeClaimed: { readonly projection: string; readonly range: HashRange; readonly position: bigint }
  /** A batch has committed: read model and progress, up to `position`. */
  BatchCommitted: {
    readonly projection: string
    readonly range: HashRange
    /** Number of events that the batch handled. */
    readonly events: number
    readonly position: bigint
    /** Time from the start of the transaction until the confirmation of its commit. */
    readonly took: Duration.Duration
  }
  /** A read, a batch, or a write of progress or of a halt failed and is retried. */
  BatchRetried: {
    readonly projection: string
    readonly range: HashRange
    readonly position: bigint
    readonly attempt: number
    readonly reason: string
  }
  /** A call of a handler has run for 30 seconds or longer. The event is the first one of the call. */
  HandlerRunsLong: {
    readonly projection: string
    readonly range: HashRange
    readonly position: bigint
    readonly eventId: string
    readonly eventType: string
    /** The number of events of the call; one unless the handler is a batch handler. */
    readonly events: number
    /** By the worker's clock. */
    readonly startedAt: Date
    readonly runsFor: Duration.Duration
  }
  /** A range is halted because its handler failed, or because an event cannot be received or read. */
  RangeHalted: {
    readonly projection: string
    readonly range: HashRange
    readonly halt: Omit<Halt, "since" | "hash" | "incarnation" | "request">
    /** As in `FailedEvent`. */
    readonly stack: string
  }
  /**
   * An event is skipped, because of the projection's `onFailure`, or as requested for a halted range: its
   * effects are missing from the read model.
   */
  EventSkipped: FailedEvent & {
    /** Whether an operator requested the skip of a halted range. `RangeHalted` has then reported the failure. */
    readonly requested: boolean
  }
  /** The handler has failed at an event, which is parked. Later events with its key queue behind it. */
  EventParked: FailedEvent
  /** Events are parked behind earlier events with their keys. */
  EventsQueued: { readonly projection: string; readonly range: HashRange; readonly events: number }
  /**
   * An event is no longer parked. `request` is `"retry"` if its handler was called, and `"drop"` if it was not: because
   * a drop was requested, or a retry of an event that the projection no longer selects.
   */
  ParkedEventRemoved: {
    readonly projection: string
    readonly range: HashRange
    readonly position: bigint
    readonly eventId: string
    readonly request: Request
  }
  /** The requested retry of a parked event has failed. The event stays parked. */
  ParkedEventFailed: FailedEvent
  /** No more events are available for now: the range has handled all events that are settled, up to `position`. */
  CaughtUp: { readonly projection: string; readonly range: HashRange; readonly position: bigint }
  /** A range's runner has ended, or is left behind because its handler does not stop before the registration ends. */
  RangeStopped: { readonly projection: string; readonly range: HashRange; readonly position: bigint }
  /**
   * A newer version has changed a projection's filter or partition key, or has appended an event in a version that this
   * worker's event set does not declare: this worker has given up the projection and continues with the remaining ones.
   */
  ProjectionGivenUp: {
    readonly projection: string
    readonly error: GivenUp
    readonly remaining: ReadonlyArray<string>
  }
  /**
   * The worker with partition 0 has sampled the status of its replica set; without a sample, it has failed to four
   * times in a row.
   */
  ReplicaSetSampled: { readonly sample: ReplicaSetSample | undefined }
  /** LISTEN became active or inactive, or the library opened or lost a session of its own. */
  ConnectionsChanged: { readonly isListening: boolean; readonly sessions: number }
  /** The worker has renewed its heartbeat. */
  HeartbeatRenewed: { readonly took: Duration.Duration }
  /** The worker could not renew its heartbeat in time. Its projections are stopped until it can. */
  Suspended: {}
  /** The heartbeat is renewed again and the projections resume. */
  Resumed: {}
  /** This worker has evicted dead workers of its replica set. */
  DeadWorkersEvicted: { readonly workers: ReadonlyArray<Pick<Registration, "workerId" | "incarnation">> }
  /**
   * The worker has lost its registration: it was evicted, or another process has registered under its id. It stops its
   * ranges and, after an eviction, registers again unless another process has the id.
   */
  WorkerEvicted: { readonly registration: Registration; readonly error: WorkerEvicted | WorkerReplaced }
  /** The worker was asked to stop: it begins no other batch, and its ranges drain. */
  WorkerStopping: { readonly registration: Registration }
  /** The worker's ranges have ended, and it is about to unregister. */
  WorkerLeaving: { readonly registration: Registration }
  /** The worker has unregistered, or has failed to; then other workers evict it later. */
  WorkerLeft: {
    readonly registration: Registration
    /** Whether it has formed a generation of the remaining workers; false if it was the last worker. */
    readonly formedGeneration: boolean
  }
  /** The run has ended, with `failure` if it has failed. */
  WorkerStopped: { readonly failure?: string }
  /** The subscriber lagged: `count` entries before this one were dropped. */
  Missed: { readonly count: number }
}>

/**
 * Constructors and matchers of the activities, by tag.
 *
 * @category constructors
 * @since 0.1.0
 */
export const Activity = Data.taggedEnum<Activity>()
