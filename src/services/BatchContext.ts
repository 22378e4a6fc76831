/**
 * What a handler sees in its context: the services that were there when the orchestrator was built, and on top of them
 * only what belongs to the batch (its transaction, scope and span) or to the running fiber (clock, log annotations).
 *
 * The services of whoever calls `run` must not win: a second `SqlClient` there would take the handler's writes out of
 * the batch's transaction.
 *
 * @since 0.1.0
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
  Tracer.ParentSpan.key
])

/**
 * Gives `self` the captured services. `base` is the context of the runner before the batch began: whatever differs from
 * it was put there by the batch, and wins.
 *
 * @category combinators
 * @since 0.1.0
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
