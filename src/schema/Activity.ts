/**
 * What a worker did and saw.
 *
 * @since 0.1.0
 */
import * as Data from "effect/Data"
import type { Halt } from "./Checkpoint.ts"
import type { Generation } from "./Generation.ts"
import type { HashRange } from "./HashRange.ts"
import type { Registration } from "./Worker.ts"

/**
 * @category models
 * @since 0.1.0
 */
export type Activity = Data.TaggedEnum<{
  /** The worker is registered; it happens again when it was taken for dead and came back. */
  WorkerRegistered: { readonly registration: Registration }
  /** The worker has unregistered. */
  WorkerLeft: { readonly registration: Registration }
  /** The worker was taken for dead by others. It stops, and registers anew unless another process has its id by now. */
  WorkerEvicted: { readonly registration: Registration }
  /** A generation is in force; `partition` is this worker's key in it. */
  GenerationFormed: { readonly generation: Generation; readonly partition: number; readonly byThisWorker: boolean }
  /** The worker works on all of its assignment in the generation. */
  AssignmentReached: { readonly generation: Generation; readonly partition: number; readonly afterMillis: number }
  /** A range's runner starts at a position. */
  RangeTaken: { readonly projection: string; readonly range: HashRange; readonly position: bigint }
  /** A range's runner has ended. */
  RangeGivenUp: { readonly projection: string; readonly range: HashRange; readonly position: bigint }
  /** Read model and progress are committed up to a position. */
  BatchCommitted: {
    readonly projection: string
    readonly range: HashRange
    readonly events: number
    readonly position: bigint
    readonly tookMillis: number
  }
  /** There is nothing more to handle for now: the range has seen all settled events up to a position. */
  CaughtUp: { readonly projection: string; readonly range: HashRange; readonly position: bigint }
  /** A range is halted because its handler failed. */
  RangeHalted: {
    readonly projection: string
    readonly range: HashRange
    readonly halt: Omit<Halt, "since" | "hash" | "incarnation">
  }
  /** A read, a batch or a write of progress failed for a reason that may pass, and is tried again. */
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
  /** The worker could not renew its heartbeat in time and has stopped its projections until it can. */
  Suspended: {}
  /** It can again. */
  Resumed: {}
  /** The subscriber was too slow: this many entries before this one were dropped. */
  Missed: { readonly count: number }
}>

/**
 * @category constructors
 * @since 0.1.0
 */
export const Activity = Data.taggedEnum<Activity>()
