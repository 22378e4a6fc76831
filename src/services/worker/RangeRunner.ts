/**
 * Works on one range until it is drained or lost: reads a page, handles it batch by batch, and does what `BatchPolicy`
 * decides after each batch. This module does not depend on SQL: the checkpoint store defines what a transaction is and
 * which failures are transient.
 */
import * as Array from "effect/Array"
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Activity } from "../../schema/Activity.ts"
import * as BatchPolicy from "../../schema/BatchPolicy.ts"
import type { EventError } from "../../schema/Errors.ts"
import type { Event } from "../../schema/Event.ts"
import * as HashRange from "../../schema/HashRange.ts"
import * as PartitionKey from "../../schema/PartitionKey.ts"
import { CheckpointStore, type EpochEnded, type Fenced } from "../CheckpointStore.ts"
import { EventStore, type Page } from "../EventStore.ts"
import { ParkedEvents } from "../ParkedEvents.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"
import * as Batch from "./Batch.ts"
import * as BlockingHandlers from "./BlockingHandlers.ts"
import * as FailingEvent from "./FailingEvent.ts"
import * as Feed from "./Feed.ts"
import * as GivingUp from "./GivingUp.ts"
import * as Halting from "./Halting.ts"
import * as HaltReason from "./HaltReason.ts"
import * as PageSource from "./PageSource.ts"
import * as ParkedRequests from "./ParkedRequests.ts"
import * as Parking from "./Parking.ts"
import * as RangeState from "./RangeState.ts"
import * as Retries from "./Retries.ts"
import * as Runner from "./Runner.ts"
import type { Startup } from "./Startup.ts"

/** How a runner ended: `drained` as requested, or `fenced` because the worker no longer owns the range. */
export type RunnerResult = "drained" | "fenced"

/** Errors that neither a retry nor another worker can fix. */
export type RunnerError = PageSource.PageError

export class RangeRunner extends Context.Service<RangeRunner, {
  /**
   * Works until `draining` opens or the range is lost. Transient failures of the stores are retried without a limit. At
   * an event that cannot be handled, the preceding events commit, then the failure policy of the projection applies. A
   * range that is halted waits for a request, or until it is drained. Fails if the database cannot return events in
   * order, or if it refuses reads before any read has succeeded (a missing privilege).
   */
  readonly run: (job: RangeState.Job) => Effect.Effect<RunnerResult, RunnerError>
}>()("pupsourcing-orchestrator/services/RangeRunner") {}

/** Minimum time between two warnings about one projection's conflicts. */
const conflictWarningNanos = 600_000_000_000n

export const make = Effect.fnUntraced(function*(startup: Startup, retryLog: RetryLog) {
  const events = yield* EventStore
  const shared: Runner.Shared = {
    events,
    feed: Feed.make(events),
    checkpoints: yield* CheckpointStore,
    parkedEvents: yield* ParkedEvents,
    startup,
    retryLog,
    blocking: BlockingHandlers.make(),
    conflictsQuietUntil: new Map()
  }
  return RangeRunner.of({ run: (job) => run(shared, job) })
})

const run = (shared: Runner.Shared, job: RangeState.Job) =>
  Effect.acquireUseRelease(
    Effect.sync(() => Feed.join(shared.feed, job)),
    (member) => Effect.flatMap(makeRunner(shared, job, member), runToEnd),
    (member) => Effect.sync(() => Feed.leave(shared.feed, member))
  )

const makeRunner = Effect.fnUntraced(function*(
  shared: Runner.Shared,
  job: RangeState.Job,
  member: Feed.Member
): Effect.fn.Return<Runner.Runner> {
  const retries = Retries.make(job, shared.retryLog)
  const parking = Parking.make(shared.parkedEvents, job)
  return {
    shared,
    job,
    retries,
    pages: PageSource.make({ ...shared, job, member, retries, parking }),
    batches: yield* Batch.makeEnvironment(job, shared.checkpoints, shared.blocking),
    policy: BatchPolicy.initial(job.settings.batchSize, job.projection.handler._tag),
    failures: 0,
    caughtUp: "never",
    parking,
    retried: undefined,
    failing: undefined
  }
})

const runToEnd = (runner: Runner.Runner): Effect.Effect<RunnerResult, RunnerError> =>
  Effect.as(workUntilDrained(runner), "drained" as const).pipe(
    Effect.catchTag("Fenced", () => Effect.succeed("fenced" as const)),
    Effect.ensuring(runner.retries.ended)
  )

const workUntilDrained = Effect.fnUntraced(function*(
  runner: Runner.Runner
): Effect.fn.Return<void, Fenced | RunnerError> {
  const { job } = runner
  if (job.state.held.halt !== undefined) {
    yield* Effect.logWarning(HaltReason.message(job.state.held, job.state.held.halt))
  }
  let isDrained = false
  while (!isDrained) {
    isDrained = yield* Effect.catchTag(step(runner), "EpochEnded", (ended) => beginAgain(runner, ended))
  }
})

/** Works on what comes next. Returns whether the range has drained. */
const step = Effect.fnUntraced(
  function*(runner: Runner.Runner): Effect.fn.Return<boolean, EpochEnded | Fenced | RunnerError> {
    if (runner.job.state.halt !== undefined) {
      yield* Halting.waitWhileHalted(runner)
      return runner.job.draining.isOpen()
    }
    yield* Parking.load(runner.parking, runner)
    const next = yield* runner.pages.next
    switch (next._tag) {
      case "Drained":
      case "ProgressDue":
        yield* writeProgress(runner)
        return next._tag === "Drained"
      case "RequestsDue":
        yield* ParkedRequests.execute(runner)
        return false
      case "Unreadable":
        yield* writeProgress(runner)
        yield* Halting.halt(
          runner,
          { ...next.error, key: keyOfUnreadable(runner, next.error) },
          HaltReason.ofUnreadable(next.error)
        )
        return false
      case "Page":
        if (!(yield* Parking.prepare(runner.parking, next.page, runner))) return false
        if (next.page.events.length === 0) yield* passOver(runner, next.page, next.isComplete)
        else yield* handlePage(runner, next.page, next.isComplete)
        return false
    }
  }
)

/**
 * Begins with the range again from its row, in the next server epoch. If the server has lost the commit that wrote the
 * row, the next write finds another position and is fenced.
 *
 * The pauses grow until a write succeeds, because reader and writer may be connected to two servers for a while.
 * `policy` keeps its counts, so that the range is still halted at an event whose handler crashes the server.
 */
const beginAgain = Effect.fnUntraced(function*(runner: Runner.Runner, ended: EpochEnded) {
  const { job: { state }, shared } = runner
  if (state.epoch !== undefined) yield* Feed.endEpoch(shared.feed, state.epoch)
  RangeState.endEpoch(state)
  runner.caughtUp = "never"
  Parking.forget(runner.parking)
  yield* Runner.retry(runner, "Progress", ++runner.failures, ended)
  return false
})

/**
 * Advances past positions where no event matches. `writeProgress` writes this later, together with that of other
 * ranges; at once only when the range is first caught up, because catch-up waits for the row.
 */
const passOver = Effect.fnUntraced(function*(runner: Runner.Runner, { position }: Page, isComplete: boolean) {
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
const writeProgress = Effect.fnUntraced(function*(runner: Runner.Runner) {
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

/** Handles the events of a page, batch by batch, until none is left, the range drains, or it is halted. */
const handlePage = Effect.fnUntraced(function*(runner: Runner.Runner, page: Page, isComplete: boolean) {
  const { caughtUp, draining, state } = runner.job
  if (runner.caughtUp === "now") runner.caughtUp = "before"
  const hashOf = Parking.hashesOf(page)
  let events: ReadonlyArray<Event> = page.events
  while (Array.isReadonlyArrayNonEmpty(events) && !draining.isOpen()) {
    events = yield* handleBatch(runner, { page, events, hashOf })
  }
  if (isComplete && state.handledUpTo === page.position) caughtUp.openUnsafe()
})

/** Handles one batch and does what the policy decides. Returns the events that remain. */
const handleBatch = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  rest: Runner.Rest
): Effect.fn.Return<ReadonlyArray<Event>, EpochEnded | Fenced> {
  const { failing, parking } = runner
  if (failing?.verdict !== undefined && FailingEvent.isOf(failing, rest.events[0])) {
    return yield* GivingUp.execute(runner, rest, failing.verdict)
  }
  const events = selectBatch(runner, rest)
  const instead = Parking.queue(parking, rest, events)
  const outcome = yield* Batch.attempt(runner.batches, { events, end: Runner.endOf(rest, events.length), instead })
  if (Option.isNone(outcome)) return rest.events
  if (outcome.value._tag === "Failed") yield* noteFailure(runner, events, outcome.value)
  const { action, state } = BatchPolicy.next(runner.policy, outcome.value)
  runner.policy = state
  switch (action._tag) {
    case "Continue": {
      const queued = instead === undefined ? 0 : events.slice(0, action.handled).filter(instead.of).length
      yield* Runner.committed(runner, action.handled - queued, action.tookNanos)
      if (queued > 0) yield* reportQueued(runner, queued)
      return rest.events.slice(action.handled)
    }
    case "Isolate":
      return rest.events
    case "BackOff":
      yield* warnIfContended(runner, action.failure)
      yield* Runner.retry(runner, "A batch", action.attempt, action.failure)
      return rest.events
    case "GiveUp":
      return yield* GivingUp.giveUp(runner, rest, action)
  }
})

const selectBatch = ({ job, policy, shared: { blocking } }: Runner.Runner, { events }: Runner.Rest) => {
  const hasOverrun = (position: bigint) => blocking.overrunsAt(job.projection.name, position) > 0
  return BatchPolicy.select(
    policy,
    events,
    hasOverrun,
    blocking.largestBatchAt(job.state.held, events[0].globalPosition)
  )
}

const noteFailure = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  events: ReadonlyArray<Event>,
  { failedAt, reason }: BatchPolicy.Failed<Retries.Failure>
) {
  if (reason !== "handler") return
  // A failure of the handler implies that the database works.
  yield* runner.retries.succeeded("A batch")
  if (typeof failedAt === "number") {
    runner.failing = yield* FailingEvent.failed(runner.failing, events[failedAt]!)
  }
})

const reportQueued = Effect.fnUntraced(function*({ job, parking }: Runner.Runner, events: number) {
  const { projection, range } = job.state.held
  yield* Parking.added(parking)
  yield* job.record(Activity.EventsQueued({ projection, range, events }))
})

/** The key of an event that cannot be received or read; undefined if it cannot be read either. */
const keyOfUnreadable = ({ job }: Runner.Runner, error: EventError): string | undefined =>
  PartitionKey.isDefault(job.projection.partitionBy) ? error.aggregateId : error.key

/** Warns if a range loses many batches to conflicts; once per `conflictWarningNanos` and projection. */
const warnIfContended = Effect.fnUntraced(function*({ job, policy, shared }: Runner.Runner, failure: Retries.Failure) {
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
