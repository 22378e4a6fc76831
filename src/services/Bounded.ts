/**
 * Time limits that also work in finalizers and after the event loop was blocked.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"

/**
 * How long to wait for an answer beyond its time limit. If a handler blocks the event loop past the limit, the timer
 * fires before the socket is read, although the answer may already have arrived.
 *
 * @category constants
 * @since 0.1.0
 */
export const readingGrace = Duration.millis(50)

/**
 * Returns how a fiber ended, or none if it is still running after `limit` and `readingGrace`.
 *
 * @category combinators
 * @since 0.1.0
 */
export const endOf = <A, E>(
  fiber: Fiber.Fiber<A, E>,
  limit: Duration.Input
): Effect.Effect<Option.Option<Exit.Exit<A, E>>> =>
  Effect.flatMap(
    Effect.timeoutOption(Fiber.await(fiber), limit),
    Option.match({
      onNone: () => Effect.timeoutOption(Fiber.await(fiber), readingGrace),
      onSome: Effect.succeedSome
    })
  )

/**
 * Runs an effect for at most `limit`, in a separate fiber; returns none if the limit is exceeded. A finalizer runs
 * uninterruptibly, and often in a fiber that has been interrupted: there a plain timeout would either wait for the
 * effect to end, or end it at once.
 *
 * @category combinators
 * @since 0.1.0
 */
export const within = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  limit: Duration.Input
): Effect.Effect<Option.Option<A>, E, R> =>
  Effect.flatMap(
    Effect.forkDetach(Effect.interruptible(Effect.timeoutOption(self, limit)), { startImmediately: true }),
    Fiber.join
  )
