/** What wakes a reconciler: other workers, ranges that have ended, and the passing of time. */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"

export interface Alarm {
  readonly latch: Latch.Latch
  /** Whether a wake-up by another worker is pending; these arrive in bursts. */
  isFromOutside: boolean
  /** The number of short waits in a row. */
  rechecks: number
}

export const make = (): Alarm => ({ latch: Latch.makeUnsafe(false), isFromOutside: false, rechecks: 0 })

/** Wakes the reconciler because of a change by another worker. */
export const ringFromOutside = (alarm: Alarm): void => {
  alarm.isFromOutside = true
  alarm.latch.openUnsafe()
}

/** Wake-ups by other workers within this time are handled by one pass. */
const burst = Duration.millis(5)
/** Maximum interval to which repeated rechecks back off. */
const longestRecheckMillis = 250

/** Waits until a burst of wake-ups has passed, and resets the alarm. `passBeganAt` is 0 before the first pass. */
export const letBurstPass = Effect.fnUntraced(function*(alarm: Alarm, passBeganAt: bigint) {
  const sinceLastPass = Duration.nanos((yield* Clock.monotonicTimeNanos) - passBeganAt)
  if (alarm.isFromOutside && passBeganAt > 0n && Duration.isLessThan(sinceLastPass, burst)) {
    yield* Effect.sleep(Duration.subtract(burst, sinceLastPass))
  }
  alarm.isFromOutside = false
  alarm.latch.closeUnsafe()
})

/** Waits for a wake-up, at most `longestMillis`, or until a recheck after `recheckMillis` is due. */
export const wait = Effect.fnUntraced(function*(
  alarm: Alarm,
  { longestMillis, recheckMillis }: { readonly longestMillis: number; readonly recheckMillis: number | undefined }
) {
  // Backs off while a row stays locked, for example by a slow handler or a frozen worker.
  alarm.rechecks = recheckMillis === undefined || recheckMillis > longestRecheckMillis ? 0 : alarm.rechecks + 1
  const recheck = recheckMillis === undefined
    ? Infinity
    : alarm.rechecks === 0
    ? recheckMillis
    : Math.min(recheckMillis * 2 ** (alarm.rechecks - 1), longestRecheckMillis)
  yield* Effect.timeoutOption(alarm.latch.await, Math.min(longestMillis, recheck))
})
