/**
 * Checkpoints: the position up to which a projection has handled a range of the hash space, and the fence under which
 * that position may be advanced.
 *
 * @since 0.1.0
 */
import * as HashRange from "./HashRange.ts"
import type { HaltRequest } from "./ParkedEvent.ts"
import { cut } from "./Text.ts"

/**
 * The registration and generation under which a range was claimed. Every write of progress is conditional on it, and
 * has no effect once the range has been released or claimed by another worker.
 *
 * @category models
 * @since 0.1.0
 */
export interface Fence {
  readonly workerId: string
  readonly incarnation: bigint
  readonly generationId: bigint
}

/**
 * Why a range is halted.
 *
 * @category models
 * @since 0.1.0
 */
export interface Halt {
  /** By the database's clock. */
  readonly since: Date
  /** Type, aggregate and version of the event, and the handler's error; never the payload. */
  readonly error: string
  /** Position, id and hash of the event that could not be handled. */
  readonly position: bigint
  readonly eventId: string
  readonly hash: number
  /**
   * The incarnation of the worker whose handler failed. A worker with a higher one registered later, so it may contain
   * a fix. 0 when it is not recorded.
   */
  readonly incarnation: bigint
  /** The request to the worker that holds the range; absent if there is none. */
  readonly request?: HaltRequest
}

/**
 * Returns a handler's error in the form in which a halt records it: storable, and at most 2000 characters long.
 *
 * @category utils
 * @since 0.1.0
 */
export const haltError = (error: string): string => cut(error, maximumErrorLength)

const maximumErrorLength = 2000

/**
 * A row of progress. The rows of one projection tile the hash space.
 *
 * @category models
 * @since 0.1.0
 */
export interface Checkpoint {
  readonly projection: string
  readonly range: HashRange.HashRange
  /** All events of the range at or below this position have been handled. */
  readonly position: bigint
  readonly replicaSet: string
  /** The fence of the worker that holds the range; undefined when the range is free. */
  readonly fence: Fence | undefined
  /** The filter and partition key under which the position was advanced, in the form of `EventFilter.canonical`. */
  readonly filter: string
  readonly halt: Halt | undefined
}

/**
 * A checkpoint whose range is held by a worker.
 *
 * @category models
 * @since 0.1.0
 */
export interface Held extends Checkpoint {
  readonly fence: Fence
}

/**
 * The key of a row: the projection and the start of its range.
 *
 * @category utils
 * @since 0.1.0
 */
export const key = (row: Pick<Checkpoint, "projection" | "range">): string => `${row.projection}@${row.range.start}`

/**
 * Whether two fences are the same. The fence is compared here and, in the same way, in the SQL of `FencedWrite`.
 *
 * @category guards
 * @since 0.1.0
 */
export const isSameFence = (a: Fence | undefined, b: Fence | undefined): boolean =>
  a?.workerId === b?.workerId && a?.incarnation === b?.incarnation && a?.generationId === b?.generationId

/**
 * Whether the row still has the range and the fence of `held`.
 *
 * @category guards
 * @since 0.1.0
 */
export const isHeldAs = (row: Checkpoint, held: Held): boolean =>
  HashRange.equals(row.range, held.range) && isSameFence(row.fence, held.fence)

/**
 * Whether the row is held by this registration of the worker, in any generation.
 *
 * @category guards
 * @since 0.1.0
 */
export const isHeldBy = (
  row: Checkpoint,
  worker: { readonly workerId: string; readonly incarnation: bigint }
): row is Held =>
  row.fence !== undefined && row.fence.workerId === worker.workerId && row.fence.incarnation === worker.incarnation

/**
 * Whether both rows have the same owner, in any generation, or are both free.
 *
 * @category guards
 * @since 0.1.0
 */
export const hasSameOwner = (a: Checkpoint, b: Checkpoint): boolean =>
  a.fence?.workerId === b.fence?.workerId && a.fence?.incarnation === b.fence?.incarnation
