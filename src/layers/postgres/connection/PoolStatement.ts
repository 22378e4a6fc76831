/** How the library runs single statements of its own on the application's pool. */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as SqlError from "effect/sql/SqlError"
import { connectionLost } from "./SqlErrors.ts"

/** Sends a statement without a span, because it is not a statement of the application. */
export const quietly = Effect.withTracerEnabled(false)

/** Time limit for a statement outside of batches; it may have to wait for a lock that a dead process left behind. */
const statementLimit = Duration.seconds(10)

const noAnswer = connectionLost("no answer in time, or no connection to ask on")

/**
 * Fails after `statementLimit`. The statement is then interrupted: the driver cancels it, and closes the connection if
 * the cancellation is not answered either.
 */
export const inTime = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError.SqlError, R> =>
  Effect.timeoutOrElse(self, { duration: statementLimit, orElse: () => Effect.fail(noAnswer) })
