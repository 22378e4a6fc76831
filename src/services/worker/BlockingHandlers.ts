/**
 * Counts overruns: how often a handler took so long at one event that its batch was lost. Either the handler blocked
 * the event loop, or it waited for something longer than the connection lasted.
 *
 * The counts outlive the ranges and registrations in which the overruns occur. A process that cannot send heartbeats
 * loses its ranges to another process, which is blocked next. Only counts that survive an eviction can show that the
 * handler is the cause.
 *
 * A handler that blocks the process also causes concurrent handlers to lose their batches. Such events are therefore
 * handled one at a time from then on, in all ranges of the process: alone, only the responsible handler overruns again.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Option from "effect/Option"

/**
 * @category models
 * @since 0.1.0
 */
export interface BlockingHandlers {
  /** How often the event at this position has overrun in this process since its count was last cleared. */
  readonly count: (projection: string, position: bigint) => number
  readonly note: (projection: string, position: bigint) => void
  /** Clears the count, because the event was handled or its batch ended for a reason other than time. */
  readonly forget: (projection: string, position: bigint) => void
  /**
   * Runs `self` while no other effect runs through `alone`. Returns none if `givenUp` ends before the turn of `self`.
   * An effect that does not end delays the others for a limited time only.
   */
  readonly alone: <A, E, R>(self: Effect.Effect<A, E, R>, givenUp: Effect.Effect<void>) => Effect.Effect<
    Option.Option<A>,
    E,
    R
  >
}

/**
 * Maximum number of counts. Counts of events that another process has handled are never cleared, so the oldest go
 * first.
 */
const mostKept = 1000

/**
 * Wait for the current holder in 250 ms steps, at most 60 (15 s). Counting steps instead of elapsed time does not
 * charge the waiter for a blocked event loop. A step in which a holder ends does not count.
 */
const step = Duration.millis(250)
const mostSteps = 60

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = (): BlockingHandlers => {
  const counts = new Map<string, number>()
  const key = (projection: string, position: bigint) => `${position} ${projection}`
  const count: BlockingHandlers["count"] = (projection, position) =>
    counts.size === 0 ? 0 : counts.get(key(projection, position)) ?? 0

  const free = Latch.makeUnsafe(true)
  const take = (givenUp: Effect.Effect<void>) =>
    Effect.gen(function*() {
      const wait = Effect.raceFirst(
        Effect.as(givenUp, "given up"),
        Effect.raceFirst(Effect.as(free.await, "freed"), Effect.as(Effect.sleep(step), "waited"))
      )
      let steps = 0
      while (!free.isOpen() && steps < mostSteps) {
        const outcome = yield* Effect.interruptible(wait)
        if (outcome === "given up") return outcome
        if (outcome === "waited") steps++
      }
      return free.isOpen() && free.closeUnsafe() ? "taken" : "not waited for"
    })
  const alone: BlockingHandlers["alone"] = (self, givenUp) =>
    Effect.acquireUseRelease(
      take(givenUp),
      (turn) => turn === "given up" ? Effect.succeedNone : Effect.asSome(self),
      (turn) => turn === "taken" ? Effect.asVoid(free.open) : Effect.void
    )

  return {
    count,
    alone,
    note: (projection, position) => {
      const times = count(projection, position) + 1
      // Moves the key to the end: a Map iterates in insertion order, so the first keys are the oldest.
      counts.delete(key(projection, position))
      counts.set(key(projection, position), times)
      for (const oldest of counts.keys()) {
        if (counts.size <= mostKept) break
        counts.delete(oldest)
      }
    },
    forget: (projection, position) => {
      if (counts.size > 0) counts.delete(key(projection, position))
    }
  }
}
