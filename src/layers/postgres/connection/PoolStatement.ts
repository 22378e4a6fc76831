/** How the library runs single statements of its own on the application's pool. */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import type * as SqlError from "effect/sql/SqlError"
import * as Tracer from "effect/Tracer"
import { connectionLost } from "./SqlErrors.ts"

/** Sends a statement without a span, because it is not a statement of the application. */
export const quietly = Effect.withTracerEnabled(false)

/** Runs `wrap(self)` without the spans of `wrap`: those of `self` are children of the present span. */
export const quietlyAround =
  <E2>(wrap: <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E | E2, R>) =>
  <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | E2, R> =>
    Effect.contextWith((outer: Context.Context<never>) =>
      quietly(wrap(Effect.updateContext(self, (inner: Context.Context<R>) =>
        Context.merge(
          Context.omit(Tracer.ParentSpan, References.TracerEnabled)(inner) as Context.Context<R>,
          Context.pick(Tracer.ParentSpan, References.TracerEnabled)(outer)
        ))))
    )

/** Time limit for a statement outside of batches; it may have to wait for a lock that a dead process left behind. */
const statementLimit = Duration.seconds(10)

const noAnswer = connectionLost("no answer in time, or no connection to ask on")

/**
 * Fails after `statementLimit`. The statement is then interrupted: the driver cancels it, and closes the connection if
 * the cancellation is not answered either.
 */
export const inTime = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError.SqlError, R> =>
  Effect.timeoutOrElse(self, { duration: statementLimit, orElse: () => Effect.fail(noAnswer) })
