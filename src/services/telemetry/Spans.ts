/**
 * The spans of a worker and of `append`, each opened here. Without a tracer no span is made: Effect's own tracer exports
 * nothing, and its trace ids lead nowhere.
 */
import type * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Tracer from "effect/Tracer"
import type { Activity } from "../../schema/Activity.ts"
import type { Event } from "../../schema/Event.ts"
import * as HashRange from "../../schema/HashRange.ts"
import * as TraceContext from "../../schema/TraceContext.ts"
import { errorText, stackText } from "../ErrorText.ts"
import * as SpanContract from "./SpanContract.ts"

const { attributes: names, names: spans } = SpanContract

/** Returns whether spans of the current fiber reach a tracing backend. */
const isTraced: Effect.Effect<boolean> = Effect.map(Effect.tracer, (tracer) => tracer !== Tracer.nativeTracer)

/**
 * Runs `self` with the tracer of `captured` if the current fiber has none: the tracing layer may have been provided to
 * the orchestrator's layer, or to its run.
 */
export const withTracerOf =
  (captured: Context.Context<unknown>) => <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
    Effect.flatMap(isTraced, (hasTracer) =>
      hasTracer
        ? self
        : Effect.provideService(self, Tracer.Tracer, Context.get(captured, Tracer.Tracer)))

/** How an operation failed, as its span reports it. Contains no payload. */
interface Failure {
  readonly type: string
  readonly text: string
  /** The frames of a stack, each on a line of its own. */
  readonly stack?: string
}

/** An error as tracers export it: as `exception` event, and as the span's status. */
const toError = ({ stack = "", text, type }: Failure): Error =>
  Object.assign(new Error(text), { name: type, stack: `${type}: ${text}${stack}` })

const endUnsafe = (span: Tracer.Span, now: bigint, exit: Exit.Exit<unknown, unknown>, failure?: Failure) => {
  if (failure !== undefined) span.attribute(names.errorType.name, failure.type)
  span.end(now, failure === undefined ? exit : Exit.fail(toError(failure)))
}

const end = (span: Tracer.Span, exit: Exit.Exit<unknown, unknown>, failure?: Failure): Effect.Effect<void> =>
  Effect.map(Clock.currentTimeNanos, (now) => endUnsafe(span, now, exit, failure))

/** Calls the application's tracer. One that throws must fail neither a batch nor an append. */
export const tryTracer = <A>(call: Effect.Effect<A>): Effect.Effect<A | undefined> =>
  Effect.catchDefect(call, (defect) => Effect.as(Effect.logDebug("The tracer has thrown an error", defect), undefined))

/**
 * Runs `self` in a span, or without one if the tracer makes none. `onEnd` adds the attributes of the result, and describes
 * a failure.
 */
const within = <A, E, R>(
  makeSpan: Effect.Effect<Tracer.Span>,
  self: (span: Tracer.Span | undefined) => Effect.Effect<A, E, R>,
  onEnd: (span: Tracer.Span, exit: Exit.Exit<A, E>) => Failure | undefined
): Effect.Effect<A, E, R> =>
  // An interruption between its start and `self` would leave the span open.
  Effect.uninterruptibleMask((restore) =>
    Effect.flatMap(tryTracer(makeSpan), (span) =>
      span === undefined ? restore(self(undefined)) : Effect.onExit(
        restore(Effect.provideService(self(span), Tracer.ParentSpan, span)),
        (exit) =>
          Effect.flatMap(
            tryTracer(Effect.sync(() => onEnd(span, exit))),
            (failure) => tryTracer(end(span, exit, failure))
          )
      ))
  )

/** The text of a failure of this library or the database; interruptions are reported by the tracer. */
const failureOf = (cause: Cause.Cause<unknown>): Failure | undefined => {
  const reason = cause.reasons.find(({ _tag }) => _tag !== "Interrupt")
  if (reason === undefined) return undefined
  const error: unknown = reason._tag === "Fail" ? reason.error : undefined
  const type = typeof error === "object" && error !== null && "_tag" in error ? String(error._tag) : "Defect"
  return { type, text: errorText(cause), stack: stackText(cause) }
}

// Batches.

/** What the spans of one range have in common. */
export interface Range {
  readonly replicaSet: string
  readonly workerId: string
  readonly generationId: bigint
  readonly projection: string
  readonly range: HashRange.HashRange
}

/** Opens the spans of one range's batches. */
export interface Batches {
  /**
   * Runs an attempt of a batch in a span. `committed` returns the number of events that the attempt has committed, after
   * its success.
   */
  readonly span: <A, E, R>(
    self: Effect.Effect<A, E, R>,
    options: {
      readonly events: ReadonlyArray<Event>
      readonly committed: () => number
      readonly describe: (error: E) => Failure
    }
  ) => Effect.Effect<A, E, R>
}

/** Makes the spans of one range's batches, for the tracer of the current fiber. */
export const makeBatches = (range: Range): Effect.Effect<Batches> =>
  Effect.map(isTraced, (hasTracer) => {
    if (!hasTracer) return { span: (self) => self }
    const common = commonOf(range)
    return {
      span: (self, { committed, describe, events }) =>
        within(makeBatchSpan(range, common, events), () => self, (span, exit) => {
          if (Exit.isSuccess(exit)) {
            span.attribute(names.committed.name, committed())
            return undefined
          }
          const error = Exit.findErrorOption(exit)
          return Option.isSome(error) ? describe(error.value) : failureOf(exit.cause)
        })
    }
  })

const commonOf = ({ generationId, projection, range, replicaSet, workerId }: Range): Record<string, unknown> => ({
  ...SpanContract.messaging("process", "process"),
  [names.consumerGroup.name]: projection,
  [names.partitionId.name]: HashRange.format(range),
  [names.clientId.name]: workerId,
  [names.replicaSet.name]: replicaSet,
  [names.worker.name]: workerId,
  [names.generation.name]: Number(generationId),
  [names.projection.name]: projection,
  [names.range.name]: HashRange.format(range)
})

/** A batch begins a trace of its own: a worker runs for weeks, and a batch has events of many traces. */
const makeBatchSpan = (
  { projection }: Range,
  common: Readonly<Record<string, unknown>>,
  events: ReadonlyArray<Event>
): Effect.Effect<Tracer.Span> =>
  Effect.makeSpan(spans.batch(projection), {
    root: true,
    kind: "consumer",
    links: TraceContext.originsOf(events).map(({ event, ...origin }) => ({
      span: Tracer.externalSpan(origin),
      attributes: { [names.messageId.name]: event.eventId, [names.position.name]: Number(event.globalPosition) }
    })),
    attributes: {
      ...common,
      [names.messageCount.name]: events.length,
      [names.firstPosition.name]: Number(events[0]!.globalPosition),
      [names.lastPosition.name]: Number(events[events.length - 1]!.globalPosition)
    }
  })

// Hand-overs.

/** The span of the hand-over that is in progress, with the numbers of ranges so far. */
interface HandOver {
  readonly span: Tracer.Span
  stopped: number
  claimed: number
}

/** Makes the spans of one worker's hand-overs out of its activities, one at a time. */
export const makeHandOvers = (replicaSet: string): (activity: Activity) => Effect.Effect<void> => {
  let workerId = ""
  let current: HandOver | undefined

  const begin = (name: string, attributes: Readonly<Record<string, unknown>>) =>
    Effect.map(
      Effect.makeSpan(name, {
        root: true,
        attributes: { [names.replicaSet.name]: replicaSet, [names.worker.name]: workerId, ...attributes }
      }),
      (span) => {
        current = { span, stopped: 0, claimed: 0 }
      }
    )
  const finish = (exit: Exit.Exit<unknown>, attributes: Readonly<Record<string, unknown>> = {}, failure?: Failure) =>
    Effect.suspend(() => {
      if (current === undefined) return Effect.void
      const { claimed, span, stopped } = current
      current = undefined
      const all = { ...attributes, [names.stopped.name]: stopped, [names.claimed.name]: claimed }
      for (const [name, value] of Object.entries(all)) span.attribute(name, value)
      return end(span, exit, failure)
    })
  const event = (activity: Extract<Activity, { readonly _tag: "RangeClaimed" | "RangeStopped" }>) =>
    Effect.map(Clock.currentTimeNanos, (now) => {
      if (current === undefined) return
      current[activity._tag === "RangeClaimed" ? "claimed" : "stopped"]++
      current.span.event(activity._tag, now, {
        [names.projection.name]: activity.projection,
        [names.range.name]: HashRange.format(activity.range),
        [names.position.name]: Number(activity.position)
      })
    })

  const observe = (activity: Activity): Effect.Effect<void> => {
    switch (activity._tag) {
      case "WorkerRegistered":
        workerId = activity.registration.workerId
        return Effect.void
      case "GenerationChanged":
        return Effect.andThen(
          finish(Exit.interrupt()),
          begin(spans.switch, {
            [names.generation.name]: Number(activity.generation.generationId),
            [names.members.name]: activity.generation.members.length,
            [names.partition.name]: activity.partition,
            [names.reasons.name]: activity.reasons,
            [names.formed.name]: activity.formedByThisWorker
          })
        )
      case "RangeClaimed":
      case "RangeStopped":
        return current === undefined ? Effect.void : event(activity)
      case "AssignmentReached":
        return finish(Exit.void)
      case "WorkerStopping":
        return Effect.andThen(finish(Exit.interrupt()), begin(spans.leave, {}))
      case "WorkerLeft":
        return finish(Exit.void, { [names.formed.name]: activity.formedGeneration })
      case "WorkerEvicted":
        return finish(Exit.void, {}, { type: activity.error._tag, text: activity.error.message })
      default:
        return Effect.void
    }
  }
  return (activity) => Effect.flatMap(isTraced, (hasTracer) => hasTracer ? tryTracer(observe(activity)) : Effect.void)
}

// Appends.

/**
 * Runs an append in a span, and passes it the trace id to store: that of the span, or without a tracer that of a span
 * outside of this process in which the append runs.
 */
export const append = <A extends { readonly positions: ReadonlyArray<bigint> }, E, R>(
  events: ReadonlyArray<unknown>,
  self: (traceId: string | undefined) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> =>
  Effect.flatMap(isTraced, (hasTracer) => {
    if (!hasTracer) return Effect.flatMap(externalTraceId, self)
    const options = {
      kind: "producer",
      attributes: { ...SpanContract.messaging("append", "send"), [names.messageCount.name]: events.length }
    } as const
    return within(
      Effect.makeSpan(spans.append, options),
      (span) => self(span === undefined ? undefined : TraceContext.traceIdOf(span.traceId)),
      (span, exit) => {
        if (Exit.isFailure(exit)) return failureOf(exit.cause)
        const { positions } = exit.value
        span.attribute(names.firstPosition.name, Number(positions[0]))
        span.attribute(names.lastPosition.name, Number(positions[positions.length - 1]))
        return undefined
      }
    )
  })

const externalTraceId: Effect.Effect<string | undefined> = Effect.map(
  Effect.serviceOption(Tracer.ParentSpan),
  (parent) => {
    let span = Option.getOrUndefined(parent)
    while (span?._tag === "Span") span = Option.getOrUndefined(span.parent)
    return span === undefined ? undefined : TraceContext.traceIdOf(span.traceId)
  }
)
