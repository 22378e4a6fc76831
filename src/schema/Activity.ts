/**
 * The activity of a worker: what it did and observed.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import type { Halt } from "./Checkpoint.ts"
import type { Generation } from "./Generation.ts"
import type { HashRange } from "./HashRange.ts"
import type { Registration } from "./Worker.ts"

/**
 * An entry of a worker's activity.
 *
 * @category models
 * @since 0.1.0
 */
export type Activity = Data.TaggedEnum<{
  /** The worker has registered. Recorded again when it registers after an eviction. */
  WorkerRegistered: { readonly registration: Registration }
  /** The worker has unregistered. */
  WorkerLeft: { readonly registration: Registration }
  /**
   * The worker has lost its registration: it was evicted, or another process has registered under its id. It stops its
   * ranges and, after an eviction, registers again unless another process has the id.
   */
  WorkerEvicted: { readonly registration: Registration }
  /** A generation is in effect. `partition` is this worker's key in it, -1 if it is not a member. */
  GenerationChanged: {
    readonly generation: Generation
    readonly partition: number
    readonly formedByThisWorker: boolean
  }
  /** The worker runs all of its assignment in the generation. */
  AssignmentReached: { readonly generation: Generation; readonly partition: number; readonly afterMillis: number }
  /** A range's runner starts at `position`. */
  RangeClaimed: { readonly projection: string; readonly range: HashRange; readonly position: bigint }
  /** A range's runner has ended. */
  RangeStopped: { readonly projection: string; readonly range: HashRange; readonly position: bigint }
  /** A batch has committed: read model and progress, up to `position`. */
  BatchCommitted: {
    readonly projection: string
    readonly range: HashRange
    readonly events: number
    readonly position: bigint
    readonly tookMillis: number
  }
  /** No more events are available for now: the range has handled all events that are settled, up to `position`. */
  CaughtUp: { readonly projection: string; readonly range: HashRange; readonly position: bigint }
  /** A range is halted because its handler failed, or because an event cannot be received or read. */
  RangeHalted: {
    readonly projection: string
    readonly range: HashRange
    readonly halt: Omit<Halt, "since" | "hash" | "incarnation">
  }
  /** A read, a batch, or a write of progress or of a halt failed and is retried. */
  BatchRetried: {
    readonly projection: string
    readonly range: HashRange
    readonly position: bigint
    readonly attempt: number
    readonly reason: string
  }
  /**
   * A newer version has changed a projection's filter: this worker has given up the projection and continues with its
   * others. Both filters have the form of `EventFilter.canonical`.
   */
  ProjectionGivenUp: { readonly projection: string; readonly recorded: string; readonly given: string }
  /** The worker could not renew its heartbeat in time. Its projections are stopped until it can. */
  Suspended: {}
  /** The heartbeat is renewed again and the projections resume. */
  Resumed: {}
  /** The subscriber lagged: `count` entries before this one were dropped. */
  Missed: { readonly count: number }
}>

/**
 * @category constructors
 * @since 0.1.0
 */
export const Activity = Data.taggedEnum<Activity>()
