/**
 * Works on one range until it is drained or lost: reads a page, handles it batch by batch, and does what `BatchPolicy`
 * decides after each batch. This module does not depend on SQL: the checkpoint store defines what a transaction is and
 * which failures are transient.
 */
import * as Array from "effect/Array"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Activity } from "../../schema/Activity.ts"
import * as BatchPolicy from "../../schema/BatchPolicy.ts"
import { type EventError, EventVersionTooNew } from "../../schema/Errors.ts"
import type { Event } from "../../schema/Event.ts"
import * as HashRange from "../../schema/HashRange.ts"
import * as PartitionKey from "../../schema/PartitionKey.ts"
import { CheckpointStore, type EpochEnded, type Fenced } from "../CheckpointStore.ts"
import { EventStore, type Page } from "../EventStore.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"
import * as Batch from "./Batch.ts"
import * as BlockingHandlers from "./BlockingHandlers.ts"
import * as HaltReason from "./HaltReason.ts"
import * as PageSource from "./PageSource.ts"
import * as RangeState from "./RangeState.ts"
import * as Retries from "./Retries.ts"
import type { Startup } from "./Startup.ts"

/** How a runner ended: `drained` as requested, or `fenced` because the worker no longer owns the range. */
export type RunnerResult = "drained" | "fenced"

/** Errors that neither a retry nor another worker can fix. */
export type RunnerError = PageSource.PageError

export class RangeRunner extends Context.Service<RangeRunner, {
  /**
   * Works until `draining` opens or the range is lost. Transient failures of the stores are retried without a limit. A
   * handler that fails halts the range: the preceding events commit, the failure is recorded, and the runner waits
   * until it is drained. Fails if the database cannot return events in order, or if it refuses reads before any read
   * has succeeded (a missing privilege).
   */
  readonly run: (job: RangeState.Job) => Effect.Effect<RunnerResult, RunnerError>
}>()("pupsourcing-orchestrator/services/RangeRunner") {}

/** What the runners of a process share. */
interface Shared {
  readonly events: EventStore["Service"]
  readonly checkpoints: CheckpointStore
  readonly startup: Startup
  readonly retryLog: RetryLog
  readonly blocking: BlockingHandlers.BlockingHandlers
  /** The time until which no further conflict warning is logged for a projection, in any of its ranges. */
  readonly conflictsQuietUntil: Map<string, bigint>
}

/** One runner. */
interface Runner {
  readonly shared: Shared
  readonly job: RangeState.Job
  readonly retries: Retries.Retries
  readonly pages: PageSource.PageSource
  readonly batches: Batch.Environment
  policy: BatchPolicy.State
  /** Failures since the row was last written, except those of batches, which `policy` counts. */
  failures: number
  /** `never`: not caught up since the runner last began with the row. `before`: it was, but events have followed. */
  caughtUp: "never" | "before" | "now"
  /** The event whose handler lost the connection too often, and why: the halt to record without calling it again. */
  pendingHalt: { readonly eventId: string; readonly reason: HaltReason.HaltReason } | undefined
}

/** Minimum time between two warnings about one projection's conflicts. */
const conflictWarningNanos = 600_000_000_000n

export const make = Effect.fnUntraced(function*(startup: Startup, retryLog: RetryLog) {
  const shared: Shared = {
    events: yield* EventStore,
    checkpoints: yield* CheckpointStore,
    startup,
    retryLog,
    blocking: BlockingHandlers.make(),
    conflictsQuietUntil: new Map()
  }
  return RangeRunner.of({ run: (job) => Effect.flatMap(makeRunner(shared, job), runToEnd) })
})

const makeRunner = Effect.fnUntraced(function*(shared: Shared, job: RangeState.Job): Effect.fn.Return<Runner> {
  const retries = Retries.make(job, shared.retryLog)
  return {
    shared,
    job,
    retries,
    pages: PageSource.make({ ...shared, job, retries }),
    batches: yield* Batch.makeEnvironment(job, shared.checkpoints, shared.blocking),
    policy: BatchPolicy.initial(job.settings.batchSize, job.projection.handler._tag),
    failures: 0,
    caughtUp: "never",
    pendingHalt: undefined
  }
})

const runToEnd = (runner: Runner): Effect.Effect<RunnerResult, RunnerError> =>
  Effect.as(workUntilDrained(runner), "drained" as const).pipe(
    Effect.catchTag("Fenced", () => Effect.succeed("fenced" as const)),
    Effect.ensuring(runner.retries.ended)
  )

const workUntilDrained = Effect.fnUntraced(function*(runner: Runner): Effect.fn.Return<void, Fenced | RunnerError> {
  const { job } = runner
  if (job.state.held.halt !== undefined) {
    yield* Effect.logWarning(HaltReason.message(job.state.held, job.state.held.halt))
    return yield* job.draining.await
  }
  let isDrained = false
  // After a halt nothing is written, not even empty progress: it would clear the halt.
  while (!isDrained && job.state.halt === undefined) {
    isDrained = yield* Effect.catchTag(step(runner), "EpochEnded", (ended) => beginAgain(runner, ended))
  }
})

/** Works on what comes next. Returns whether the range has drained. */
const step = Effect.fnUntraced(function*(runner: Runner): Effect.fn.Return<boolean, EpochEnded | Fenced | RunnerError> {
  const next = yield* runner.pages.next
  switch (next._tag) {
    case "Drained":
    case "ProgressDue":
      yield* writeProgress(runner)
      return next._tag === "Drained"
    case "Unreadable":
      yield* writeProgress(runner)
      yield* halt(
        runner,
        { ...next.error, key: keyOfUnreadable(runner, next.error) },
        HaltReason.ofUnreadable(next.error)
      )
      return false
    case "Page":
      if (next.page.events.length === 0) yield* passOver(runner, next.page, next.isComplete)
      else yield* handlePage(runner, next.page, next.isComplete)
      return false
  }
})

/**
 * Begins with the range again from its row, in the next server epoch. If the server has lost the commit that wrote the
 * row, the next write finds another position and is fenced.
 *
 * The pauses grow until a write succeeds, because reader and writer may be connected to two servers for a while.
 * `policy` keeps its counts, so that the range is still halted at an event whose handler crashes the server.
 */
const beginAgain = Effect.fnUntraced(function*(runner: Runner, ended: EpochEnded) {
  const { job: { state }, shared } = runner
  if (state.epoch !== undefined) yield* shared.events.endEpoch(state.epoch)
  RangeState.dropUnwritten(state)
  runner.caughtUp = "never"
  yield* retry(runner, "Progress", ++runner.failures, ended)
  return false
})

/**
 * Advances past positions where no event matches. `writeProgress` writes this later, together with that of other
 * ranges; at once only when the range is first caught up, because catch-up waits for the row.
 */
const passOver = Effect.fnUntraced(function*(runner: Runner, { position }: Page, isComplete: boolean) {
  const { job, retries } = runner
  RangeState.passOver(job.state, position)
  if (!isComplete) return
  // Nothing is left to retry: the events of a failed batch may be lost if the server epoch has ended.
  yield* retries.succeeded("A batch")
  yield* retries.succeeded("The record of a halt")
  if (runner.caughtUp === "now") return
  const isFirst = runner.caughtUp === "never"
  runner.caughtUp = "now"
  if (isFirst) yield* writeProgress(runner)
  const { projection, range } = job.state.held
  yield* job.record(Activity.CaughtUp({ projection, range, position }))
})

/**
 * Writes empty progress, so that the range's next owner does not read those positions again. After a failure it is
 * written together with later progress.
 */
const writeProgress = Effect.fnUntraced(function*(runner: Runner) {
  const { job, shared, retries } = runner
  const { epoch, handledUpTo: to, held, writtenUpTo: from } = job.state
  if (!RangeState.hasUnwritten(job.state)) return
  const result = yield* Effect.result(shared.checkpoints.advance(held, { from, to, epoch }))
  if (result._tag === "Success") {
    runner.failures = 0
    RangeState.write(job.state, to, yield* Clock.monotonicTimeNanos)
    if (runner.caughtUp === "now") job.caughtUp.openUnsafe()
    return yield* retries.succeeded("Progress")
  }
  if (!Retries.isRetried(result.failure)) return yield* result.failure
  yield* retries.failed("Progress", ++runner.failures, result.failure)
})

/** Handles the events of a page, batch by batch, until none is left or the range drains. */
const handlePage = Effect.fnUntraced(function*(runner: Runner, page: Page, isComplete: boolean) {
  const { caughtUp, draining, state } = runner.job
  if (runner.caughtUp === "now") runner.caughtUp = "before"
  let rest: ReadonlyArray<Event> = page.events
  while (Array.isReadonlyArrayNonEmpty(rest) && !draining.isOpen()) {
    rest = yield* handleBatch(runner, page, rest)
  }
  if (isComplete && state.handledUpTo === page.position) caughtUp.openUnsafe()
})

/** Handles one batch and does what the policy decides. Returns the events that remain. */
const handleBatch = Effect.fnUntraced(function*(
  runner: Runner,
  page: Page,
  rest: Array.NonEmptyReadonlyArray<Event>
): Effect.fn.Return<ReadonlyArray<Event>, EpochEnded | Fenced> {
  const { job, shared: { blocking }, retries } = runner
  // Its handler may crash the server, and so end the epoch in which the halt has to be recorded.
  if (runner.pendingHalt?.eventId === rest[0].eventId) {
    return yield* haltAtFirst(runner, rest, runner.pendingHalt.reason)
  }
  const hasOverrun = (position: bigint) => blocking.overrunsAt(job.projection.name, position) > 0
  const largest = blocking.largestBatchAt(job.state.held, rest[0].globalPosition)
  const events = BatchPolicy.select(runner.policy, rest, hasOverrun, largest)
  const end = events.length === rest.length ? page.position : events[events.length - 1]!.globalPosition
  const outcome = yield* Batch.attempt(runner.batches, { events, end })
  if (Option.isNone(outcome)) return rest
  // A handler that fails shows that the database works.
  if (outcome.value._tag === "Failed" && outcome.value.reason === "handler") yield* retries.succeeded("A batch")
  const { action, state } = BatchPolicy.next(runner.policy, outcome.value)
  runner.policy = state
  switch (action._tag) {
    case "Continue":
      yield* committed(runner, action.handled, action.tookNanos)
      return rest.slice(action.handled)
    case "Isolate":
      return rest
    case "BackOff":
      yield* warnIfContended(runner, action.failure)
      yield* retry(runner, "A batch", action.attempt, action.failure)
      return rest
    case "Halt": {
      const newer = findNewerVersion(action.failure)
      if (newer !== undefined) return yield* giveUp(runner, rest, newer)
      const [event] = rest
      const reason = HaltReason.ofFailure(event, action.failure, action.circumstance)
      if (action.circumstance !== "") runner.pendingHalt = { eventId: event.eventId, reason }
      return yield* haltAtFirst(runner, rest, reason)
    }
  }
})

/** The key of an event that cannot be received or read; undefined if it cannot be read either. */
const keyOfUnreadable = ({ job }: Runner, error: EventError): string | undefined =>
  PartitionKey.isDefault(job.projection.partitionBy) ? error.aggregateId : error.key

/** Returns the failure of a handler that has met an event of a newer version of the application. */
const findNewerVersion = (failure: Retries.Failure): EventVersionTooNew | undefined =>
  failure._tag === "HandlerFailure"
    ? failure.cause.reasons.filter(Cause.isFailReason).map(({ error }) => error)
      .find((error) => error instanceof EventVersionTooNew)
    : undefined

/** Leaves the range at its first event to a worker of the newer version: a halt would last beyond the deployment. */
const giveUp = Effect.fnUntraced(function*<A>({ job }: Runner, rest: A, newer: EventVersionTooNew) {
  yield* job.giveUp(new EventVersionTooNew({ ...newer, projection: job.projection.name }))
  yield* job.draining.await
  return rest
})

/** Halts at the first event. Returns the events that remain if this could not be recorded. */
const haltAtFirst = Effect.fnUntraced(
  function*(runner: Runner, rest: Array.NonEmptyReadonlyArray<Event>, reason: HaltReason.HaltReason) {
    const { eventId, globalPosition: position } = rest[0]
    const key = PartitionKey.of(runner.job.projection.partitionBy, rest[0])
    yield* halt(runner, { eventId, position, key }, reason)
    return runner.job.state.halt === undefined ? rest : []
  }
)

const committed = Effect.fnUntraced(function*(runner: Runner, events: number, tookNanos: bigint) {
  const { job, retries } = runner
  runner.failures = 0
  const { handledUpTo: position, held: { projection, range } } = job.state
  yield* retries.allSucceeded
  yield* job.record(
    Activity.BatchCommitted({ projection, range, events, position, took: Duration.nanos(tookNanos) })
  )
})

const retry = Effect.fnUntraced(
  function*({ retries }: Runner, operation: Retries.Operation, attempt: number, failure: EpochEnded | Retries.Failure) {
    yield* retries.failed(operation, attempt, failure)
    yield* retries.backOff(attempt)
  }
)

/**
 * Records a halt and waits until the range drains. If the halt cannot be recorded, returns after a pause; the event is
 * then tried again, unless it has a `pendingHalt`.
 */
const halt = Effect.fnUntraced(function*(
  runner: Runner,
  event: { readonly position: bigint; readonly eventId?: string; readonly key: string | undefined },
  { error, stack }: HaltReason.HaltReason
) {
  const { job, shared, retries } = runner
  const { epoch, held, writtenUpTo: at } = job.state
  const { eventId = "id unreadable", key, position } = event
  const result = yield* Effect.result(
    shared.checkpoints.halt(held, { at, epoch, error, position, eventId, key })
  )
  if (result._tag === "Failure") {
    if (!Retries.isRetried(result.failure)) return yield* result.failure
    return yield* retry(runner, "The record of a halt", ++runner.failures, result.failure)
  }
  const { projection, range } = held
  yield* retries.allSucceeded
  RangeState.halt(job.state, { error, position, eventId }, yield* Clock.monotonicTimeNanos)
  yield* job.record(Activity.RangeHalted({ projection, range, halt: { error, position, eventId }, stack }))
  yield* job.draining.await
})

/** Warns if a range loses many batches to conflicts; once per `conflictWarningNanos` and projection. */
const warnIfContended = Effect.fnUntraced(function*({ job, policy, shared }: Runner, failure: Retries.Failure) {
  const { projection, range } = job.state.held
  const isConflict = failure._tag === "TransientFailure" && failure.kind === "conflict"
  if (!isConflict || !BatchPolicy.isContended(policy)) return
  const now = yield* Clock.monotonicTimeNanos
  if (now < (shared.conflictsQuietUntil.get(projection) ?? now)) return
  shared.conflictsQuietUntil.set(projection, now + conflictWarningNanos)
  yield* Effect.logWarning(
    `Projection "${projection}" in range ${
      HashRange.format(range)
    } lost ${policy.conflicts} batches to conflicts with other transactions, although it reduced the size of its batches. The last conflict: ${
      Retries.describe(failure)
    }. The batches are retried, but ranges that write the same rows wait for each other, so additional workers slow them down. Write one row for each aggregate and sum the rows up when reading, or give the projection a replica set with a single worker: see "Rows that several aggregates share" in docs/concepts.md.`
  )
})
