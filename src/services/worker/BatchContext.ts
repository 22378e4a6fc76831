/**
 * The context of a handler: the services that were captured when the orchestrator was built, plus only the services
 * that belong to the batch (its transaction, scope and span) or to the running fiber (clock, tracer, log annotations).
 *
 * The services of the caller of `run` must not take precedence: a second `SqlClient` there would move the handler's
 * writes out of the batch's transaction.
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as References from "effect/References"
import * as Scheduler from "effect/Scheduler"
import * as Scope from "effect/Scope"
import * as Tracer from "effect/Tracer"

const ambient: ReadonlySet<string> = new Set([
  Clock.Clock.key,
  References.CurrentLogAnnotations.key,
  References.CurrentLogSpans.key,
  Scheduler.Scheduler.key,
  Scope.Scope.key,
  Tracer.ParentSpan.key,
  // The spans of a handler must reach the same backend as that of its batch.
  Tracer.Tracer.key,
  References.TracerEnabled.key
])

/**
 * Provides the captured services to `self`. `base` is the runner's context before the batch began: a service that
 * differs from `base` was added by the batch and takes precedence.
 */
export const provide = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  captured: Context.Context<R>,
  base: Context.Context<never>
): Effect.Effect<A, E, Scope.Scope> =>
  Effect.updateContext(self, (current: Context.Context<Scope.Scope>) => {
    const services = new Map(captured.mapUnsafe)
    for (const key of ambient) services.delete(key)
    for (const [key, service] of current.mapUnsafe) {
      if (ambient.has(key) || base.mapUnsafe.get(key) !== service) services.set(key, service)
    }
    return Context.makeUnsafe<R>(services)
  })
