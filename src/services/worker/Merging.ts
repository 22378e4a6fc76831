/**
 * Closes adjacent ranges of a projection that are at the same position, so that the next plan merges their rows. This
 * undoes the fragmentation caused by many generation switches.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Checkpoint from "../../schema/Checkpoint.ts"
import type { Ranges } from "./Ranges.ts"
import type { RangeState } from "./RangeState.ts"

/** The state of a worker's merges. Times are in nanoseconds of the monotonic clock. */
export interface Merging {
  /** When the last search for ranges that can be merged began. */
  triedAt: bigint
  /** Keys of ranges that were closed to be merged and have not ended. */
  keys: ReadonlySet<string>
}

export const make = (now: bigint): Merging => ({ triedAt: now, keys: new Set() })

/** Minimum time between merges, because a merge pauses the ranges for a moment. */
const interval = Duration.seconds(5)
/** Maximum time for which closed ranges wait for the other ranges of a merge to close. */
const patience = Duration.millis(250)
/** A range is not merged if its batch has been open for this long, because the batch may stay open much longer. */
const slowBatchNanos = 500_000_000n

/** Whether the assignment permits one row for both ranges. */
type CanMerge = (left: Checkpoint.Held, right: Checkpoint.Held) => boolean

/** Closes the ranges that can be merged, if the time for it has come. */
export const closeAdjacent = Effect.fnUntraced(function*(
  merging: Merging,
  ranges: Ranges,
  now: bigint,
  canMerge: CanMerge
) {
  if (!Duration.isGreaterThan(Duration.nanos(now - merging.triedAt), interval)) return
  merging.triedAt = now
  merging.keys = adjacentKeys([...ranges.all.values()], now, canMerge)
  yield* Effect.forEach(merging.keys, (key) => ranges.close(key, "drain"), { discard: true })
})

const adjacentKeys = (
  ranges: ReadonlyArray<Readonly<RangeState>>,
  now: bigint,
  canMerge: CanMerge
): ReadonlySet<string> => {
  // A slow batch is not ended for a merge, because its work would have to start again.
  const idle = ranges.filter(({ batchSince, closing, halt }) =>
    !closing && halt === undefined && (batchSince === undefined || now - batchSince < slowBatchNanos)
  )
  const pairs = idle.flatMap((left) =>
    idle
      .filter(({ handledUpTo, held }) =>
        held.projection === left.held.projection && held.range.start === left.held.range.end &&
        handledUpTo === left.handledUpTo && canMerge(left.held, held)
      )
      .flatMap((right) => [left, right])
  )
  return new Set(pairs.map(({ held }) => Checkpoint.key(held)))
}

/**
 * Forgets the ranges that have ended. The ranges of a merge stay closed until the last of them has ended, because a plan
 * merges only rows that are not active; `patience` limits the wait for a slow handler.
 */
export const forgetEnded = (merging: Merging, activeKeys: ReadonlySet<string>, now: bigint): void => {
  const isTooLate = Duration.isGreaterThan(Duration.nanos(now - merging.triedAt), patience)
  merging.keys = new Set(isTooLate ? [] : [...merging.keys].filter((key) => activeKeys.has(key)))
}

/** The projections whose ranges must not be opened now, because their rows are about to be merged. */
export const projections = ({ keys }: Merging, ranges: Ranges): ReadonlySet<string> =>
  new Set([...keys].flatMap((key) => ranges.all.get(key)?.held.projection ?? []))

/** Milliseconds after which the closed ranges are opened again even if the merge was not possible. */
export const patienceMillis = ({ keys }: Merging): number =>
  keys.size === 0 ? Infinity : Duration.toMillis(patience) + 1
