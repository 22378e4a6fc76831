/**
 * Checkpoints: how far a projection has seen a range of the hash space, and who may move that mark.
 *
 * @since 0.1.0
 */
import type * as HashRange from "./HashRange.ts"
import { cut } from "./Text.ts"

/**
 * Under which registration and which decision a range was taken. Every write of progress names it, and finds no row
 * once the range belongs to somebody else.
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
}

/**
 * The text of a halt's error as it is recorded.
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
  /** All events of the range at or below it have been handled. */
  readonly position: bigint
  readonly replicaSet: string
  /** The holder; absent when the range is free. */
  readonly fence: Fence | undefined
  /** The filter it was advanced under, as `EventFilter.canonical` writes it. */
  readonly filter: string
  readonly halt: Halt | undefined
}

/**
 * A checkpoint that this worker holds.
 *
 * @category models
 * @since 0.1.0
 */
export interface Held extends Checkpoint {
  readonly fence: Fence
}

/**
 * The key of a row: the projection and where its range starts.
 *
 * @category utils
 * @since 0.1.0
 */
export const key = (row: Pick<Checkpoint, "projection" | "range">): string => `${row.projection}@${row.range.start}`

/**
 * @category guards
 * @since 0.1.0
 */
export const isHeldBy = (
  row: Checkpoint,
  worker: { readonly workerId: string; readonly incarnation: bigint }
): row is Held =>
  row.fence !== undefined && row.fence.workerId === worker.workerId && row.fence.incarnation === worker.incarnation
