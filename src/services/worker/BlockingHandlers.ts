/**
 * The overruns of the handlers in this process: how often a handler took so long at one event that its batch was lost.
 * Either the handler blocked the event loop, or it waited for something longer than the connection lasted.
 *
 * The counts outlive the ranges and registrations in which the overruns occur. A process that cannot send heartbeats
 * loses its ranges to another process, which is blocked next. Only counts that survive an eviction can show that the
 * handler is the cause.
 *
 * A handler that blocks the process also causes concurrent handlers to lose their batches. Such events are therefore
 * handled in turn from then on, in all ranges of the process: alone, only the responsible handler overruns again.
 *
 * If a handler of batches overruns, any of its events may be the cause, or their number. These events are handled in
 * turn and in smaller batches from then on, until one event remains, whose overruns are counted.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Option from "effect/Option"
import type { Held } from "../../schema/Checkpoint.ts"
import * as HashRange from "../../schema/HashRange.ts"

type HeldRange = Pick<Held, "projection" | "range">

/** The overruns of calls with the same last event. */
interface Overruns extends HeldRange {
  /** The position of the last event, and the number of events in a call. */
  readonly last: bigint
  readonly events: number
  readonly times: number
}

export interface BlockingHandlers {
  /** How often the event at this position has overrun alone in this process since its count was last cleared. */
  readonly overrunsAt: (projection: string, position: bigint) => number
  /**
   * The maximum number of events that one call of the handler may get at this position, because a call with more events
   * has overrun, the event at this position among them; otherwise infinite.
   */
  readonly largestBatchAt: (held: HeldRange, position: bigint) => number
  /** A call of the handler with the events at these positions has overrun. */
  readonly recordOverrun: (held: HeldRange, positions: ReadonlyArray<bigint>) => void
  /**
   * Clears the overruns of the call whose last event has this position, because the event was handled or its batch
   * ended for a reason other than time; and those of calls with several events that the range has passed.
   */
  readonly clearOverruns: (held: HeldRange, position: bigint) => void
  /**
   * Runs `self` when no other effect runs in turn. Returns none if `givenUp` ends before the turn of `self`. An effect
   * that does not end delays the others for a limited time only.
   */
  readonly runInTurn: <A, E, R>(self: Effect.Effect<A, E, R>, givenUp: Effect.Effect<void>) => Effect.Effect<
    Option.Option<A>,
    E,
    R
  >
}

/**
 * Maximum number of counts. Counts of events that another process has handled are never cleared, so the oldest go
 * first.
 */
const maxCounts = 1000

/**
 * Wait for the current holder in 250 ms steps, at most 60 (15 s). Counting steps instead of elapsed time does not
 * charge the waiter for a blocked event loop. A step in which a holder ends does not count.
 */
const step = Duration.millis(250)
const maxSteps = 60

/**
 * Divides the number of events after an overrun. Each overrun may cost the worker its registration, so that few steps
 * must lead to a single event.
 */
const divisor = 8

export const make = (): BlockingHandlers => {
  const counts = new Map<string, Overruns>()
  const turn = Latch.makeUnsafe(true)
  return {
    overrunsAt: (projection, position) => {
      const found = counts.size === 0 ? undefined : counts.get(keyOf(projection, position))
      return found?.events === 1 ? found.times : 0
    },
    largestBatchAt: ({ projection, range }, position) => {
      let largest = Infinity
      for (const overruns of counts.values()) {
        const applies = overruns.events > 1 && overruns.projection === projection && position <= overruns.last &&
          HashRange.overlaps(overruns.range, range)
        if (applies) largest = Math.min(largest, Math.ceil(overruns.events / divisor))
      }
      return largest
    },
    recordOverrun: ({ projection, range }, positions) => {
      const last = positions[positions.length - 1]!
      const key = keyOf(projection, last)
      const before = counts.get(key)
      const events = positions.length
      const times = before?.events === events ? before.times + 1 : 1
      // Moves the key to the end: a Map iterates in insertion order, so the first keys are the oldest.
      counts.delete(key)
      counts.set(key, { projection, range, last, events, times })
      for (const oldest of counts.keys()) {
        if (counts.size <= maxCounts) break
        counts.delete(oldest)
      }
    },
    clearOverruns: (held, position) => {
      for (const [key, overruns] of counts) {
        if (overruns.projection !== held.projection) continue
        const isPassed = overruns.events > 1 && overruns.last < position &&
          HashRange.contains(held.range, overruns.range)
        if (overruns.last === position || isPassed) counts.delete(key)
      }
    },
    runInTurn: (self, givenUp) =>
      Effect.acquireUseRelease(
        awaitTurn(turn, givenUp),
        (result) => result === "given up" ? Effect.succeedNone : Effect.asSome(self),
        (result) => result === "taken" ? Effect.asVoid(turn.open) : Effect.void
      )
  }
}

const keyOf = (projection: string, position: bigint): string => `${position} ${projection}`

/** Takes the turn by closing its latch. */
const awaitTurn = Effect.fnUntraced(function*(turn: Latch.Latch, givenUp: Effect.Effect<void>) {
  const wait = Effect.raceFirst(
    Effect.as(givenUp, "given up"),
    Effect.raceFirst(Effect.as(turn.await, "free"), Effect.as(Effect.sleep(step), "waited"))
  )
  let steps = 0
  while (!turn.isOpen() && steps < maxSteps) {
    const outcome = yield* Effect.interruptible(wait)
    if (outcome === "given up") return outcome
    if (outcome === "waited") steps++
  }
  return turn.isOpen() && turn.closeUnsafe() ? "taken" : "not waited for"
})
