/**
 * Time limits that hold in finalizers.
 *
 * @since 0.1.0
 */
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Option from "effect/Option"

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
