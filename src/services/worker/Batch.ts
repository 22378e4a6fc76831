/**
 * One batch: a transaction in which the handler handles the events and which moves the range's position last. `attempt`
 * describes how it ended; `BatchPolicy` decides what follows.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Option from "effect/Option"
import * as BatchPolicy from "../../schema/BatchPolicy.ts"
import { HandlerOverran } from "../../schema/Errors.ts"
import { type CheckpointStore, type EpochEnded, type Fenced, HandlerFailure } from "../CheckpointStore.ts"
import { stackText } from "../ErrorText.ts"
import * as Spans from "../telemetry/Spans.ts"
import * as BatchContext from "./BatchContext.ts"
import type { BlockingHandlers } from "./BlockingHandlers.ts"
import * as HandlerCall from "./HandlerCall.ts"
import * as RangeState from "./RangeState.ts"
import * as Retries from "./Retries.ts"

export interface Batch {
  readonly events: HandlerCall.Events
  /** The range's position after the last event. */
  readonly end: bigint
}

/** What the batches of one range have in common. */
export interface Environment {
  readonly job: RangeState.Job
  readonly checkpoints: CheckpointStore
  readonly blocking: BlockingHandlers
  readonly clock: Clock.Clock
  /** The runner's own context, without the services of a batch. */
  readonly base: Context.Context<never>
  readonly idleTimeout: Duration.Duration
  readonly spans: Spans.Batches
}

/** How a batch ended. */
export type Outcome = BatchPolicy.Outcome<Retries.Failure>

/** Maximum idle timeout: longer than any handler should hold locks, and within the range of the server's setting. */
const longestIdleTimeout = Duration.hours(1)

export const makeEnvironment = Effect.fnUntraced(function*(
  job: RangeState.Job,
  checkpoints: CheckpointStore,
  blocking: BlockingHandlers
): Effect.fn.Return<Environment> {
  return {
    job,
    checkpoints,
    blocking,
    clock: yield* Clock.Clock,
    base: yield* Effect.context<never>(),
    // The store keeps the transaction alive while the process runs. Half of the stale timeout ensures that a frozen
    // worker's locks are released before other workers claim its ranges.
    idleTimeout: Duration.min(Duration.times(job.settings.staleWorkerTimeout, 0.5), longestIdleTimeout),
    spans: yield* Spans.makeBatches({
      ...job.registration,
      ...job.state.held,
      generationId: job.state.held.fence.generationId
    })
  }
})

/** Returns how the batch ended; none if the range drained before the batch's turn. */
export const attempt = (
  environment: Environment,
  batch: Batch
): Effect.Effect<Option.Option<Outcome>, EpochEnded | Fenced> => {
  const { blocking, idleTimeout, job } = environment
  const position = batch.events[0].globalPosition
  const times = blocking.overrunsAt(job.projection.name, position)
  if (times === 0 && blocking.largestBatchAt(job.state.held, position) === Infinity) {
    return Effect.asSome(run(environment, batch))
  }
  if (BatchPolicy.isBlocking(times)) {
    return Effect.succeedSome({ _tag: "Overran", failure: new HandlerOverran({ times, longerThan: idleTimeout }) })
  }
  // The event may have been counted because another handler blocked the process. Alone, it does not overrun again.
  return blocking.runInTurn(run(environment, batch), job.draining.await)
}

/**
 * Handles the events until the batch is complete, has taken too long or must drain, then commits the events that were
 * handled.
 */
const run = Effect.fnUntraced(function*(
  environment: Environment,
  batch: Batch
): Effect.fn.Return<Outcome, EpochEnded | Fenced> {
  const { clock, job, spans } = environment
  const progress = HandlerCall.makeProgress()
  const startedAt = clock.monotonicTimeNanosUnsafe()
  job.state.batchSince = startedAt
  const result = yield* Effect.result(spans.span(commit(environment, batch, progress), {
    events: batch.events,
    committed: () => progress.handled,
    describe: describeForSpan
  }))
  job.state.batchSince = undefined
  if (result._tag === "Success") {
    const now = clock.monotonicTimeNanosUnsafe()
    RangeState.write(job.state, reached(batch, progress), now)
    clearOverruns(environment, batch, progress)
    return {
      _tag: "Committed",
      handled: progress.handled,
      handlerNanos: progress.until - progress.since,
      tookNanos: now - startedAt
    }
  }
  const { failure } = result
  if (failure._tag === "Fenced" || failure._tag === "EpochEnded") return yield* failure
  const reason = reasonOf(failure)
  if (!BatchPolicy.mayBeOverrun(reason)) clearOverruns(environment, batch, progress)
  return {
    _tag: "Failed",
    reason,
    begun: batch.events.slice(0, progress.begun).map(({ globalPosition }) => globalPosition),
    failedAt: HandlerCall.failedAt(progress),
    failure
  }
})

const commit = (environment: Environment, batch: Batch, progress: HandlerCall.Progress) => {
  const { base, checkpoints, idleTimeout, job } = environment
  const handling = Effect.scoped(BatchContext.provide(handleEvents(environment, batch, progress), job.captured, base))
    .pipe(
      Effect.tapCause((cause) =>
        Effect.sync(() => {
          progress.raised = cause
        })
      )
    )
  const { epoch, held, writtenUpTo } = job.state
  return checkpoints.commit(
    held,
    { from: writtenUpTo, idleTimeout, epoch, isolation: job.projection.isolation },
    Effect.map(handling, () => reached(batch, progress))
  ).pipe(
    // If a handler's failure makes the store die, it is a handler failure: the handler must not run forever.
    Effect.catchCause((cause) =>
      progress.raised === undefined || Cause.hasFails(cause) || Cause.hasInterrupts(cause)
        ? Effect.failCause(cause)
        : Effect.fail(new HandlerFailure({ cause: progress.raised }))
    )
  )
}

/** Handles the events until none is left, the batch has taken too long, or the range drains. */
const handleEvents = (environment: Environment, { events }: Batch, progress: HandlerCall.Progress) => {
  const { clock, job: { draining, projection } } = environment
  const mayContinue = (nanos: bigint) => !draining.isOpen() && nanos <= BatchPolicy.longestBatchNanos
  return HandlerCall.run(projection.handler, events, progress, { clock, mayContinue }).pipe(
    Effect.onExit(() => Effect.sync(() => recordOverrun(environment, events, progress)))
  )
}

/** The range's position after the events that were handled. */
const reached = ({ end, events }: Batch, { handled }: HandlerCall.Progress): bigint =>
  handled === events.length ? end : events[handled - 1]!.globalPosition

/**
 * Counts an overrun as soon as the handlers have ended, because the range may be closed before the loss of the batch is
 * detected. A handler that was interrupted because its range drains is not counted.
 */
const recordOverrun = (
  { blocking, idleTimeout, job }: Environment,
  events: Batch["events"],
  progress: HandlerCall.Progress
) => {
  const { begun, callSince, handled, until } = progress
  const cutShort = begun > handled && job.draining.isOpen()
  if (begun === 0 || cutShort) return
  if (until - callSince > Duration.toNanosUnsafe(idleTimeout)) {
    const positions = HandlerCall.current(events, progress).map(({ globalPosition }) => globalPosition)
    blocking.recordOverrun(job.state.held, positions)
  }
}

/** The last call did not lose the batch by taking too long. */
const clearOverruns = ({ blocking, job }: Environment, { events }: Batch, { begun }: HandlerCall.Progress) => {
  if (begun > 0) blocking.clearOverruns(job.projection.name, events[begun - 1]!.globalPosition)
}

/** The stack of the handler's failure, without its message, and the same text as in the log. */
const describeForSpan = (failure: EpochEnded | Fenced | HandlerFailure | Retries.Retried) => ({
  type: failure._tag === "StoreError" ? failure.reason._tag : failure._tag,
  text: failure._tag === "Fenced" ? "Another worker owns the range" : Retries.describe(failure),
  stack: failure._tag === "HandlerFailure" ? stackText(failure.cause) : ""
})

const reasonOf = (failure: HandlerFailure | Retries.Retried): BatchPolicy.Reason => {
  switch (failure._tag) {
    case "HandlerFailure":
      return "handler"
    case "TransientFailure":
      return failure.kind
    case "StoreError":
      return failure.reason._tag === "StatementFailed" ? "server fault" : "unavailable"
  }
}
