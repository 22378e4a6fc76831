/**
 * What happens to an event that cannot be handled: further attempts by the projection's schedule, then a halt, parking
 * or skipping. Each function returns the events of the page that remain.
 */
import type * as Array from "effect/Array"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Activity } from "../../schema/Activity.ts"
import * as BatchPolicy from "../../schema/BatchPolicy.ts"
import { EventVersionTooNew } from "../../schema/Errors.ts"
import type { Event } from "../../schema/Event.ts"
import type * as FailurePolicy from "../../schema/FailurePolicy.ts"
import * as PartitionKey from "../../schema/PartitionKey.ts"
import type { EpochEnded, Fenced } from "../CheckpointStore.ts"
import type * as Attempt from "./Attempt.ts"
import * as Batch from "./Batch.ts"
import * as FailingEvent from "./FailingEvent.ts"
import * as Halting from "./Halting.ts"
import * as HaltReason from "./HaltReason.ts"
import * as Parking from "./Parking.ts"
import * as RangeState from "./RangeState.ts"
import type * as Retries from "./Retries.ts"
import * as Runner from "./Runner.ts"

type Result = Effect.Effect<ReadonlyArray<Event>, EpochEnded | Fenced>

/** Gives up the first event, or waits for another attempt. */
export const giveUp = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  rest: Runner.Rest,
  { circumstance, failure }: { readonly circumstance: string; readonly failure: Retries.Failure }
): Effect.fn.Return<ReadonlyArray<Event>, EpochEnded | Fenced> {
  const { job: { projection }, parking } = runner
  const newer = findNewerVersion(failure)
  if (newer !== undefined) return yield* Effect.as(leaveProjection(runner, newer), rest.events)
  const [event] = rest.events
  const reason = HaltReason.ofFailure(event, failure, circumstance)
  // Its handler was not called, but parking it behind the events of its key has failed. Only a halt keeps the order.
  if (Parking.isQueued(parking, rest.hashOf, event)) return yield* haltAtFirst(runner, rest, reason)
  const typed = failure._tag === "HandlerFailure" ? failure.typed : undefined
  if (typed !== undefined && (yield* waitForSchedule(runner, event, failure, typed))) return rest.events
  const decision = yield* FailingEvent.decide(event, projection, typed)
  const verdict: FailingEvent.Verdict = { decision, reason }
  const failing = yield* FailingEvent.of(runner.failing, event)
  if (circumstance !== "") failing.verdict = verdict
  runner.failing = failing
  return yield* execute(runner, rest, verdict)
})

/** Returns the failure of a handler that has met an event of a newer version of the application. */
export const findNewerVersion = (failure: Retries.Failure): EventVersionTooNew | undefined =>
  failure._tag === "HandlerFailure"
    ? failure.cause.reasons.filter(Cause.isFailReason).map(({ error }) => error)
      .find((error) => error instanceof EventVersionTooNew)
    : undefined

/** Leaves the range to a worker of the newer version: a halt would last beyond the deployment. */
export const leaveProjection = Effect.fnUntraced(function*({ job }: Runner.Runner, newer: EventVersionTooNew) {
  yield* job.giveUp(new EventVersionTooNew({ ...newer, projection: job.projection.name }))
  yield* job.draining.await
})

/** Waits as long as the schedule of the projection requires; returns false if it has ended. */
const waitForSchedule = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  event: Event,
  failure: Retries.Failure,
  typed: FailurePolicy.Typed
) {
  const { job, retries } = runner
  const failing = runner.failing = yield* FailingEvent.of(runner.failing, event)
  const delay = yield* FailingEvent.delay(failing, job.projection, typed)
  if (Option.isNone(delay)) return false
  yield* retries.failed("A batch", failing.attempts, failure)
  yield* RangeState.sleepUnlessDraining(job, delay.value)
  return true
})

/** Executes a verdict about the first event. */
export const execute = (
  runner: Runner.Runner,
  rest: Runner.Rest,
  { decision, reason }: FailingEvent.Verdict
): Result => {
  switch (decision) {
    case "halt":
      return haltAtFirst(runner, rest, reason)
    case "park":
      return parkFirst(runner, rest, reason)
    case "skip":
      return skipFirst(runner, rest, reason)
  }
}

/** Halts at the first event. No event remains unless this could not be recorded. */
const haltAtFirst = Effect.fnUntraced(
  function*(runner: Runner.Runner, { events }: Runner.Rest, reason: HaltReason.HaltReason) {
    const { eventId, globalPosition: position } = events[0]
    const key = PartitionKey.of(runner.job.projection.partitionBy, events[0])
    yield* Halting.halt(runner, { eventId, position, key }, reason)
    return runner.job.state.halt === undefined ? events : []
  }
)

const parkFirst = Effect.fnUntraced(
  function*(runner: Runner.Runner, rest: Runner.Rest, reason: HaltReason.HaltReason) {
    const { job, parking } = runner
    const [event] = rest.events
    const failure = yield* FailingEvent.describe(runner.failing, event, reason)
    return yield* passFirst(runner, rest, {
      run: (events) => Parking.park(parking, events, failure),
      report: Effect.andThen(
        Parking.added(parking),
        job.record(Activity.EventParked(describe(runner, event, reason)))
      )
    })
  }
)

const skipFirst = (runner: Runner.Runner, rest: Runner.Rest, reason: HaltReason.HaltReason): Result =>
  passFirst(runner, rest, {
    run: () => Effect.void,
    report: runner.job.record(Activity.EventSkipped({ ...describe(runner, rest.events[0], reason), requested: false }))
  })

const describe = ({ job }: Runner.Runner, event: Event, { error, stack }: HaltReason.HaltReason) => {
  const { projection, range } = job.state.held
  return { projection, range, position: event.globalPosition, eventId: event.eventId, error, stack }
}

/**
 * Advances past the first event in a batch that does not call the handler. All events remain if the range drains before
 * that; if the batch cannot be committed either, the range is halted.
 */
const passFirst = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  rest: Runner.Rest,
  { report, run }: { readonly run: Attempt.Instead["run"]; readonly report: Effect.Effect<void> }
): Effect.fn.Return<ReadonlyArray<Event>, EpochEnded | Fenced> {
  const [event] = rest.events
  const events: Array.NonEmptyReadonlyArray<Event> = [event]
  while (!runner.job.draining.isOpen()) {
    const outcome = yield* Batch.attempt(runner.batches, {
      events,
      end: Runner.endOf(rest, 1),
      instead: { of: () => true, run }
    })
    if (Option.isNone(outcome)) return rest.events
    const { action, state } = BatchPolicy.next(runner.policy, outcome.value)
    runner.policy = state
    switch (action._tag) {
      case "Continue":
        // A retry of a parked event calls the handler again.
        runner.shared.blocking.clearOverruns(runner.job.state.held, event.globalPosition)
        yield* Runner.committed(runner, 0, action.tookNanos)
        yield* report
        return rest.events.slice(1)
      case "BackOff":
        yield* Runner.retry(runner, "A batch", action.attempt, action.failure)
        break
      case "GiveUp": {
        const reason = HaltReason.ofFailure(event, action.failure, action.circumstance)
        const remaining = yield* haltAtFirst(runner, rest, reason)
        if (remaining.length === 0) return remaining
        break
      }
      case "Isolate":
        // The batch has only one event.
        break
    }
  }
  return rest.events
})
