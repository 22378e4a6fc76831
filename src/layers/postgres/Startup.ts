/**
 * Waiting for a server that is about to be there.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { DatabaseUnavailable } from "../../schema/Errors.ts"

/** How long the start waits for a server that is starting, or that a network is about to reach. */
const patience = Duration.seconds(5)

const passing: ReadonlySet<DatabaseUnavailable["reason"]> = new Set([
  "refused",
  "unreachable",
  "shutting down",
  "too many connections",
  "connection lost"
])

const isPassing = (error: unknown): boolean => error instanceof DatabaseUnavailable && passing.has(error.reason)

/**
 * Tries again for a bounded time, five seconds, while the server cannot be reached.
 *
 * @category combinators
 * @since 0.1.0
 */
export const waitForServer = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.retry(self, {
    while: isPassing,
    // Half of the attempts in the first second: a server that is starting is mostly there soon.
    schedule: Schedule.max([
      Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("500 millis")]),
      Schedule.during(patience)
    ])
  })
