/** Computes from the delays of events how a fleet gets through a fault. */
import type { Delay } from "./Timeline.ts"

/** The part of the events due in the interval that is committed at its end. */
export const throughputKept = (delays: ReadonlyArray<Delay>, from: number, until: number): number => {
  const due = delays.filter(({ due }) => due >= from && due < until)
  return due.filter(({ due, millis }) => due + millis < until).length / due.length
}

/** The lag is back to normal if it has stayed so for this long. */
const stableMillis = 1000

/**
 * The milliseconds from the end of a fault until the lag is back to normal: no event that is due waits longer than `normal`, for a second
 * at least.
 */
export const recoveryTime = (delays: ReadonlyArray<Delay>, endedAt: number, normal: number): number => {
  // The lag is above normal from when an event has waited that long until it is committed.
  const late = delays
    .filter(({ millis }) => millis > normal)
    .map(({ due, millis }) => ({ from: due + normal, until: due + millis }))
    .sort((a, b) => a.from - b.from)
  return late.reduce(
    (recoveredAt, { from, until }) => from < recoveredAt + stableMillis ? Math.max(recoveredAt, until) : recoveredAt,
    endedAt
  ) - endedAt
}
