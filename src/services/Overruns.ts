/**
 * Handlers that took so long at one event that their batch was lost: because they kept the process from everything else
 * it has to do, or because what they waited for outlived the connection.
 *
 * It outlives the ranges in which that happens. A process that is kept from its heartbeats loses its ranges to another,
 * which is kept from them next: only who remembers across its own evictions can tell that it is the handler.
 *
 * Whoever keeps the process busy has the others that were at work lose their batches too. So such events are handled one
 * at a time from then on, in all ranges of the process: alone, only the one that is to blame overruns again.
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
export interface Overruns {
  /** How often that happened at the event of this position, which has not been handled here since. */
  readonly count: (projection: string, position: bigint) => number
  readonly note: (projection: string, position: bigint) => void
  /** The event was handled. */
  readonly forget: (projection: string, position: bigint) => void
  /**
   * Runs it while nothing else runs so. Nothing, when `givenUp` came before its turn. What does not end holds the others
   * up for a while, not for ever.
   */
  readonly alone: <A, E, R>(self: Effect.Effect<A, E, R>, givenUp: Effect.Effect<void>) => Effect.Effect<
    Option.Option<A>,
    E,
    R
  >
}

/** What others have handled since stays; the oldest makes room. */
const mostKept = 1000

/**
 * Whoever has the turn is waited for in small steps, and these are counted, so that a process that was kept busy
 * meanwhile has not waited: fifteen seconds in all. While turns are taken and ended, there is nobody to give up.
 */
const step = Duration.millis(250)
const mostSteps = 60

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = (): Overruns => {
  const counts = new Map<string, number>()
  const key = (projection: string, position: bigint) => `${position} ${projection}`
  const count: Overruns["count"] = (projection, position) =>
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
  const alone: Overruns["alone"] = (self, givenUp) =>
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
      // The newest is the last.
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
