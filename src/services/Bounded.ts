/**
 * Time limits that hold in finalizers, and where a process was kept busy.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"

/**
 * How long an answer is waited for beyond its time limit. A handler that keeps the process busy lets the limit pass with the
 * answer unread: timers come before sockets, so that after a pause the limit would be the first to be seen.
 *
 * @category constants
 * @since 0.1.0
 */
export const readingGrace = Duration.millis(50)

/**
 * How a fiber ended, unless it has not by then.
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
 * Runs an effect for at most `limit`, in a fiber of its own. A finalizer runs uninterruptibly, and often in a fiber that
 * has been interrupted: there a plain time limit would either wait for what it limits, or end it at once.
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
