/** The defaults of an append, from the context in which it runs. */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type { Defaults } from "../schema/Append.ts"
import type { Event } from "../schema/Event.ts"
import * as Spans from "./telemetry/Spans.ts"

/** The event that the current handler handles; undefined outside of a handler. */
export const HandledEvent = Context.Reference<Event | undefined>("pupsourcing-orchestrator/HandledEvent", {
  defaultValue: () => undefined
})

/**
 * Runs an append in its span, with the trace id of the context, and in a handler with the handled event as the cause.
 *
 * The statements of `self` are not traced: the span stands for them.
 */
export const run = <A extends { readonly positions: ReadonlyArray<bigint> }, E, R>(
  events: ReadonlyArray<unknown>,
  self: (defaults: Defaults) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.flatMap(HandledEvent, (handled) =>
    Spans.append(events, (traceId) =>
      Effect.withTracerEnabled(
        self({
          traceId: traceId ?? null,
          correlationId: handled === undefined ? null : handled.correlationId ?? handled.eventId,
          causationId: handled === undefined ? null : handled.eventId
        }),
        false
      )))
