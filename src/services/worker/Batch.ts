/**
 * One batch: a transaction in which the handler handles the events and which moves the range's position last. `attempt`
 * describes how it ended; `BatchPolicy` decides what follows.
 */
import * as Array from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Option from "effect/Option"
import * as BatchPolicy from "../../schema/BatchPolicy.ts"
import type * as Checkpoint from "../../schema/Checkpoint.ts"
import { HandlerOverran } from "../../schema/Errors.ts"
import type { Event } from "../../schema/Event.ts"
import * as Abandonable from "../Abandonable.ts"
import { type CheckpointStore, type EpochEnded, type Fenced, HandlerFailure } from "../CheckpointStore.ts"
import { stackText } from "../ErrorText.ts"
import * as Projection from "../Projection.ts"
import * as Spans from "../telemetry/Spans.ts"
import * as Attempt from "./Attempt.ts"
import * as BatchContext from "./BatchContext.ts"
import type { BlockingHandlers } from "./BlockingHandlers.ts"
import * as HandlerCall from "./HandlerCall.ts"
import * as RangeState from "./RangeState.ts"
import * as Retries from "./Retries.ts"

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
  batch: Attempt.Batch
): Effect.Effect<Option.Option<Outcome>, EpochEnded | Fenced> => {
  const { blocking, idleTimeout, job } = environment
  const attempt = Attempt.make(batch)
  const position = attempt.called[0]?.globalPosition
  if (position === undefined) return Effect.asSome(run(environment, attempt))
  const times = blocking.overrunsAt(job.projection.name, position)
  if (times === 0 && blocking.largestBatchAt(job.state.held, position) === Infinity) {
    return Effect.asSome(run(environment, attempt))
  }
  if (BatchPolicy.isBlocking(times)) {
    return Effect.succeedSome({ _tag: "Overran", failure: new HandlerOverran({ times, longerThan: idleTimeout }) })
  }
  // Another handler that blocked the process may have caused the overruns. Handled in turn, only that one overruns again.
  return blocking.runInTurn(run(environment, attempt), job.draining.await)
}

/**
 * Handles the events until the batch is complete, has taken too long or must drain, then commits the events that were
 * handled.
 */
const run = Effect.fnUntraced(function*(
  environment: Environment,
  attempt: Attempt.Attempt
): Effect.fn.Return<Outcome, EpochEnded | Fenced> {
  const { clock, job, spans } = environment
  const { batch: { events }, called, progress } = attempt
  const startedAt = clock.monotonicTimeNanosUnsafe()
  job.state.batchSince = startedAt
  job.state.attempt = attempt
  const result = yield* Effect.result(spans.span(commit(environment, attempt), {
    events,
    committed: () => Attempt.reachedEvents(attempt),
    describe: describeForSpan
  }))
  job.state.batchSince = job.state.attempt = undefined
  if (result._tag === "Success") {
    const now = clock.monotonicTimeNanosUnsafe()
    if (attempt.isUnwritten) RangeState.passOver(job.state, Attempt.reached(attempt))
    else RangeState.write(job.state, Attempt.reached(attempt), now)
    clearOverruns(environment, called, progress)
    return {
      _tag: "Committed",
      handled: Attempt.reachedEvents(attempt),
      handlerNanos: progress.until - progress.since,
      tookNanos: now - startedAt
    }
  }
  const { failure } = result
  if (failure._tag === "Fenced" || failure._tag === "EpochEnded") return yield* failure
  const reason = reasonOf(failure)
  if (!BatchPolicy.mayBeOverrun(reason)) clearOverruns(environment, called, progress)
  return { _tag: "Failed", reason, ...Attempt.whereFailed(attempt), failure: Attempt.withTyped(attempt, failure) }
})

const commit = (environment: Environment, attempt: Attempt.Attempt) =>
  environment.job.projection.delivery === "at-least-once"
    ? deliver(environment, attempt)
    : commitWith(environment, attempt, handling(environment, attempt))

/** A class, so that its accessor is not made for each batch: see docs/adr/0023-short-lived-events.md. */
class CurrentDelivery {
  readonly fence: Checkpoint.Fence
  readonly #attempt: Attempt.Attempt
  constructor(fence: Checkpoint.Fence, attempt: Attempt.Attempt) {
    this.fence = fence
    this.#attempt = attempt
  }
  get position(): bigint {
    const { called, progress } = this.#attempt
    return called[Math.max(0, progress.begun - 1)]!.globalPosition
  }
}

/** Runs the handlers in the context of a batch. */
const handling = (environment: Environment, attempt: Attempt.Attempt) => {
  const { base, job } = environment
  const { progress } = attempt
  const delivery = Projection.Delivery.of(new CurrentDelivery(job.state.held.fence, attempt))
  return Effect.scoped(BatchContext.provide(handleEvents(environment, attempt), job.captured, base)).pipe(
    Effect.provideService(Projection.Delivery, delivery),
    Effect.tapCause((cause) =>
      Effect.sync(() => {
        progress.raised = cause
      })
    )
  )
}

/** How long an interrupted handler outside of a transaction may take to stop. */
const interruptionGrace = Duration.seconds(4)

/**
 * Runs the handlers outside of a transaction and writes the progress afterwards. The events before one that fails were
 * handled, so their progress is written, and the batch ends before that event.
 */
const deliver = Effect.fnUntraced(function*(environment: Environment, attempt: Attempt.Attempt) {
  const { called, progress } = attempt
  const exit = yield* Effect.exit(Abandonable.run(handling(environment, attempt), { grace: interruptionGrace }))
  const isBegun = progress.handled < called.length && Attempt.reachedEvents(attempt) > 0
  if (Exit.isFailure(exit) && !isBegun) {
    return yield* Effect.fail(environment.checkpoints.classifyHandler(exit.cause))
  }
  if (attempt.batch.instead !== undefined) return yield* commitWith(environment, attempt, Effect.void)
  yield* advance(environment, attempt)
})

/** If the progress cannot be written now, it is written with later progress, so that no handler is called again. */
const advance = ({ checkpoints, job }: Environment, attempt: Attempt.Attempt) => {
  const { epoch, held, writtenUpTo: from } = job.state
  return checkpoints.advance(held, { from, to: Attempt.reached(attempt), epoch }).pipe(
    Effect.catchIf(Retries.isRetried, () =>
      Effect.sync(() => {
        attempt.isUnwritten = true
      }))
  )
}

const commitWith = (
  { checkpoints, idleTimeout, job }: Environment,
  attempt: Attempt.Attempt,
  work: Effect.Effect<void, unknown>
) => {
  const { batch: { instead }, progress } = attempt
  const { epoch, held, writtenUpTo } = job.state
  return checkpoints.commit(
    held,
    { from: writtenUpTo, idleTimeout, epoch, isolation: job.projection.isolation },
    Effect.map(
      instead === undefined ? work : Effect.andThen(work, runInstead(attempt, instead)),
      () => {
        attempt.phase = "end"
        return Attempt.reached(attempt)
      }
    )
  ).pipe(
    // A defect of the store after the handler has failed is the handler's failure: otherwise it would be retried forever.
    Effect.catchCause((cause) =>
      progress.raised === undefined || Cause.hasFails(cause) || Cause.hasInterrupts(cause)
        ? Effect.failCause(cause)
        : Effect.fail(new HandlerFailure({ cause: progress.raised }))
    )
  )
}

/** Handles the events until none is left, the batch has taken too long, or the range drains. */
const handleEvents = (environment: Environment, attempt: Attempt.Attempt) => {
  const { clock, job: { draining, projection } } = environment
  const { called, progress } = attempt
  // The store in memory runs a transaction again after a conflict, so this may run several times before it commits.
  attempt.phase = "handler"
  if (!Array.isReadonlyArrayNonEmpty(called)) return Effect.void
  const mayContinue = (nanos: bigint) => !draining.isOpen() && nanos <= BatchPolicy.longestBatchNanos
  return HandlerCall.run(projection.handler, called, progress, { clock, mayContinue }).pipe(
    Effect.onExit(() => Effect.sync(() => recordOverrun(environment, called, progress)))
  )
}

const runInstead = (attempt: Attempt.Attempt, { of, run }: Attempt.Instead) =>
  Effect.suspend(() => {
    attempt.phase = "instead"
    return run(attempt.batch.events.slice(0, Attempt.reachedEvents(attempt)).filter(of))
  })

/**
 * Counts an overrun as soon as the handlers have ended, because the range may be closed before the loss of the batch is
 * detected. A handler that was interrupted because its range drains is not counted.
 */
const recordOverrun = (
  { blocking, idleTimeout, job }: Environment,
  events: HandlerCall.Events,
  progress: HandlerCall.Progress
) => {
  const { begun, callSince, handled, until } = progress
  const cutShort = begun > handled && job.draining.isOpen()
  // Without a transaction, a handler may take as long as it needs.
  if (begun === 0 || cutShort || job.projection.delivery === "at-least-once") return
  if (until - callSince > Duration.toNanosUnsafe(idleTimeout)) {
    const positions = HandlerCall.current(events, progress).map(({ globalPosition }) => globalPosition)
    blocking.recordOverrun(job.state.held, positions)
  }
}

/** Clears the overruns of the last call: it did not lose the batch by taking too long. */
const clearOverruns = (
  { blocking, job }: Environment,
  events: ReadonlyArray<Event>,
  { begun }: HandlerCall.Progress
) => {
  if (begun > 0) blocking.clearOverruns(job.state.held, events[begun - 1]!.globalPosition)
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
