/**
 * The lag of a range, estimated from the events that follow its position. Reading all of them could take minutes, so
 * only a window is read.
 */
import type { Lag } from "./Status.ts"

/** The number of events in a window, if few ranges lag. */
export const largest = 10_000

/** The number of events in a window, however many ranges lag. */
export const smallest = 100

/** The number of events in the windows of all lagging ranges together, unless each has the smallest one. */
export const budget = 1_000_000

/** What was read of the events that follow a range's position. */
export interface LagWindow {
  /** The number of events that were read, and the limit of that number. */
  readonly read: number
  readonly limit: number
  /** How many of them match the projection and belong to the range, and when the first of these was appended. */
  readonly matching: number
  readonly oldest?: Date | undefined
  /** If none of them matches and further events follow: when the last of them was appended. */
  readonly end?: Date | undefined
}

/** The lag of a range at `position`, while the highest visible position is `head`. */
export const lag = ({ end, limit, matching, oldest = end, read }: LagWindow, position: bigint, head: bigint): Lag => {
  const isEstimate = read >= limit
  const share = BigInt(Math.round(1e6 * matching / Math.max(1, read)))
  return {
    events: isEstimate ? (head - position) * share / 1_000_000n : BigInt(matching),
    isEstimate,
    // JSON cannot contain an invalid date.
    ...(oldest === undefined || Number.isNaN(oldest.getTime()) ? {} : { oldest })
  }
}
