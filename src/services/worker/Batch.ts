/**
 * One batch: a transaction in which the handler runs for each event and which moves the range's position last. `attempt`
 * describes how it ended; `BatchPolicy` decides what follows.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Stream from "effect/Stream"
import * as BatchPolicy from "../../schema/BatchPolicy.ts"
import { HandlerOverran, HandlerResultUnused } from "../../schema/Errors.ts"
import type { Event } from "../../schema/Event.ts"
import { HandledEvent } from "../AppendDefaults.ts"
import { type CheckpointStore, type EpochEnded, type Fenced, HandlerFailure } from "../CheckpointStore.ts"
import { stackText, tryRead } from "../ErrorText.ts"
import * as Spans from "../telemetry/Spans.ts"
import * as BatchContext from "./BatchContext.ts"
import type { BlockingHandlers } from "./BlockingHandlers.ts"
import * as RangeState from "./RangeState.ts"
import * as Retries from "./Retries.ts"

export interface Batch {
  /** At least one event. */
  readonly events: ReadonlyArray<Event>
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

/** How far the handlers of a batch have come, for the code around its transaction. */
interface HandlerProgress {
  /** How many handlers have begun, and how many of them have ended with success. */
  begun: number
  handled: number
  /** When the handler of the current event began. */
  begunAt: bigint
  /** The failure of the handlers, if any. */
  raised: Cause.Cause<unknown> | undefined
}

/** Maximum idle timeout: longer than any handler should hold locks, and within the range of the server's setting. */
const longestIdleTimeout = Duration.hours(1)

/**
 * A batch that takes longer commits the events that it has handled, so that row locks are held briefly and a hand-over
 * waits for one event instead of a whole batch.
 */
const longestBatchNanos = 100_000_000n

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
  const times = blocking.overrunsAt(job.projection.name, batch.events[0]!.globalPosition)
  if (times === 0) return Effect.asSome(run(environment, batch))
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
  const progress: HandlerProgress = { begun: 0, handled: 0, begunAt: 0n, raised: undefined }
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
    return { _tag: "Committed", handled: progress.handled, tookNanos: now - startedAt }
  }
  const { failure } = result
  if (failure._tag === "Fenced" || failure._tag === "EpochEnded") return yield* failure
  const reason = reasonOf(failure)
  if (!BatchPolicy.mayBeOverrun(reason)) clearOverruns(environment, batch, progress)
  return {
    _tag: "Failed",
    reason,
    begun: batch.events.slice(0, progress.begun).map(({ globalPosition }) => globalPosition),
    failedAt: progress.begun > progress.handled ? progress.begun - 1 : undefined,
    failure
  }
})

const commit = (environment: Environment, batch: Batch, progress: HandlerProgress) => {
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
    { from: writtenUpTo, idleTimeout, epoch },
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

/** An optimistic transaction may run this several times before it commits, each time from the start. */
const handleEvents = (
  environment: Environment,
  { events }: Batch,
  progress: HandlerProgress
): Effect.Effect<void, unknown, unknown> => {
  const { clock, job: { draining, projection } } = environment
  const hasTime = (since: bigint) => {
    const now = clock.monotonicTimeNanosUnsafe()
    if (draining.isOpen() || now - since > longestBatchNanos) return false
    progress.begunAt = now
    return true
  }
  return Effect.suspend(() => {
    const since = clock.monotonicTimeNanosUnsafe()
    progress.begun = progress.handled = 0
    progress.begunAt = since
    return Effect.whileLoop({
      while: () => progress.begun < events.length && (progress.begun === 0 || hasTime(since)),
      body: (): Effect.Effect<unknown, unknown, unknown> => {
        const event = events[progress.begun++]!
        const effect: unknown = projection.handle(event)
        return Effect.isEffect(effect)
          ? Effect.provideService(effect, HandledEvent, event)
          : Effect.die(new HandlerResultUnused({ result: "not an Effect" }))
      },
      step: (value) => {
        // A value that throws when it is inspected is accepted.
        const result = tryRead(() => unusedResult(value))
        if (result !== undefined) throw new HandlerResultUnused({ result })
        progress.handled = progress.begun
      }
    })
  }).pipe(Effect.onExit(() => Effect.sync(() => recordOverrun(environment, events, progress))))
}

/** The range's position after the events that were handled. */
const reached = ({ end, events }: Batch, { handled }: HandlerProgress): bigint =>
  handled === events.length ? end : events[handled - 1]!.globalPosition

/**
 * Counts an overrun as soon as the handlers have ended, because the range may be closed before the loss of the batch is
 * detected. A handler that was interrupted because its range drains is not counted.
 */
const recordOverrun = (
  { blocking, clock, idleTimeout, job }: Environment,
  events: Batch["events"],
  progress: HandlerProgress
) => {
  const { begun, begunAt, handled } = progress
  const cutShort = begun > handled && job.draining.isOpen()
  if (begun === 0 || cutShort) return
  if (clock.monotonicTimeNanosUnsafe() - begunAt > Duration.toNanosUnsafe(idleTimeout)) {
    blocking.recordOverrun(job.projection.name, events[begun - 1]!.globalPosition)
  }
}

/** The last event did not lose the batch by taking too long. */
const clearOverruns = ({ blocking, job }: Environment, { events }: Batch, { begun }: HandlerProgress) => {
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

/**
 * Returns the kind of a handler's success value that should have been run, awaited or raised, otherwise `undefined`. An
 * Exit and yieldable errors are Effects too; a successful Exit is harmless. For an array, only the first element is
 * checked.
 */
const unusedResult = (value: unknown): HandlerResultUnused["result"] | undefined => {
  const result: unknown = Array.isArray(value) ? value[0] : value
  if (Exit.isExit(result)) return Exit.isFailure(result) ? "failure" : undefined
  if (Effect.isEffect(result)) return result instanceof Error ? "failure" : "Effect"
  return Stream.isStream(result) ? "Stream" : Predicate.isPromiseLike(result) ? "Promise" : undefined
}
