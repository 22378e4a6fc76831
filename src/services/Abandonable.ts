/**
 * Waiting with a limit for effects that may never end, such as a statement on a dead connection or a handler that
 * ignores its interruption. Such an effect runs in a fiber of its own, which is left behind when the limit is reached.
 *
 * All of this also works in a finalizer, which is uninterruptible and often runs in an interrupted fiber. A fiber that
 * is left behind belongs to no scope: its owner must not depend on what it still does.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"

/**
 * How long to wait for an answer beyond its time limit. If a handler blocks the event loop past the limit, the timer
 * fires before the socket is read, although the answer may already have arrived.
 */
const readingGrace = Duration.millis(50)

interface Options<E2, R2> {
  /** Fails when the caller is to stop waiting, with the error for the caller; see `after`. Default: no limit. */
  readonly limit?: Effect.Effect<never, E2, R2>
  /**
   * With `grace`, the effect is interrupted when it is left behind and when the caller is interrupted, which then waits
   * for the effect at most this long. Without it, the effect always runs to its end: an interrupted caller continues
   * at once, and the limit continues in the background.
   */
  readonly grace?: Duration.Input
  /** Runs when the effect is left behind, for example to close its connection or to release a late result. */
  readonly onAbandoned?: (fiber: Fiber.Fiber<unknown, unknown>) => Effect.Effect<void>
}

/**
 * Runs an effect in a fiber of its own, and waits for it until `limit`. The fiber's children end with it, before this
 * returns. If the effect has ended when the limit is reached, its result counts.
 */
export const run = <A, E, R, E2 = never, R2 = never>(
  self: Effect.Effect<A, E, R>,
  { grace, limit, onAbandoned = () => Effect.void }: Options<E2, R2>
): Effect.Effect<A, E | E2, R | R2> =>
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(start(self), (fiber) => {
      const ended: Effect.Effect<Exit.Exit<A, E | E2>, never, R2> = limit === undefined
        ? Fiber.await(fiber)
        : Effect.raceFirst(Fiber.await(fiber), Effect.exit(limit))
      const abandon = Effect.suspend(() => {
        if (grace !== undefined) fiber.interruptUnsafe()
        return onAbandoned(fiber)
      })
      const abandonUnlessEnded = (exit: Exit.Exit<A, E | E2>) =>
        Effect.suspend(() => fiber.pollUnsafe() ?? Effect.andThen(abandon, exit))
      return restore(ended).pipe(
        Effect.onInterrupt(() =>
          grace === undefined
            ? start(Effect.flatMap(ended, abandonUnlessEnded))
            : Effect.flatMap(interrupt(fiber, grace), (exit) => Option.isNone(exit) ? abandon : Effect.void)
        ),
        Effect.flatMap(abandonUnlessEnded)
      )
    })
  )

/** A limit: fails with `error` after `duration`. */
export const after = <E>(duration: Duration.Input, error: () => E): Effect.Effect<never, E> =>
  Effect.andThen(elapsed(duration), Effect.suspend(() => Effect.fail(error())))

/** Completes when `duration` has passed and answers that arrived while the event loop was blocked have been read. */
export const elapsed = (duration: Duration.Input): Effect.Effect<void> =>
  Effect.andThen(Effect.sleep(duration), Effect.sleep(readingGrace))

/** Starts an effect at once, in a fiber that belongs to no scope and outlives its parent. */
export const start = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<Fiber.Fiber<A, E>, never, R> =>
  Effect.forkDetach(self, { startImmediately: true })

/** Like `start`; `onExit` runs when the effect has ended, even if it was interrupted before its first step. */
export const startWith = <A, E, R, R2>(
  self: Effect.Effect<A, E, R>,
  onExit: (exit: Exit.Exit<A, E>) => Effect.Effect<void, never, R2>
): Effect.Effect<Fiber.Fiber<A, E>, never, R | R2> =>
  Effect.forkDetach(Effect.onExit(Effect.interruptible(self), onExit), {
    startImmediately: true,
    uninterruptible: true
  })

/** Returns how a fiber ended, or none if it is still running after `limit`. */
export const end = <A, E>(
  fiber: Fiber.Fiber<A, E>,
  limit: Duration.Input
): Effect.Effect<Option.Option<Exit.Exit<A, E>>> =>
  Effect.raceFirst(Effect.asSome(Fiber.await(fiber)), Effect.as(elapsed(limit), Option.none()))

/** Interrupts a fiber. Returns how it ended, or none if it is still running after `grace`. */
export const interrupt = <A, E>(
  fiber: Fiber.Fiber<A, E>,
  grace: Duration.Input
): Effect.Effect<Option.Option<Exit.Exit<A, E>>> =>
  Effect.suspend(() => {
    fiber.interruptUnsafe()
    return end(fiber, grace)
  })
