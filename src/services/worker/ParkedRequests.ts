/**
 * Executes the requests about parked events of a range, each in a batch of its own under the range's fence, which does
 * not change the position. The commit outcome of such a batch cannot be looked up by the position, so after each
 * failure the table is read again: a request that is no longer in it has been executed.
 */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Activity } from "../../schema/Activity.ts"
import * as BatchPolicy from "../../schema/BatchPolicy.ts"
import type { Event } from "../../schema/Event.ts"
import type { Request } from "../../schema/ParkedEvent.ts"
import type { EpochEnded, Fenced } from "../CheckpointStore.ts"
import type { ServerEpoch } from "../EventStore.ts"
import type { Requests } from "../ParkedEvents.ts"
import * as Batch from "./Batch.ts"
import * as GivingUp from "./GivingUp.ts"
import * as HaltReason from "./HaltReason.ts"
import type { PageError } from "./PageSource.ts"
import * as Parking from "./Parking.ts"
import * as Runner from "./Runner.ts"

type ParkedRequest = Requests["parked"][number]

/** Executes the requests that can be executed now, until none is left, one fails, or the range drains. */
export const execute = Effect.fnUntraced(function*(
  runner: Runner.Runner
): Effect.fn.Return<void, EpochEnded | Fenced | PageError> {
  const { job: { draining, state }, parking, retries } = runner
  yield* Parking.looked(parking)
  while (!draining.isOpen()) {
    const result = yield* Effect.result(parking.store.requests(state.held))
    if (result._tag === "Failure") {
      return yield* Runner.retry(runner, "Reading parked events", ++runner.failures, result.failure)
    }
    yield* retries.succeeded("Reading parked events")
    if (result.success.parked.length === 0) return
    for (const request of result.success.parked) {
      if (draining.isOpen()) return
      if (!(yield* executeOne(runner, request))) {
        // The table shows the outcome for the event, and for other requests about its key.
        Parking.forget(parking)
        return
      }
    }
  }
})

/** Returns whether the event is no longer parked. */
const executeOne = (
  runner: Runner.Runner,
  request: ParkedRequest
): Effect.Effect<boolean, EpochEnded | Fenced | PageError> =>
  request.request === "drop" ? drop(runner, request, undefined) : retry(runner, request)

/** Removes the event without a call. */
const drop = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  request: ParkedRequest,
  epoch: ServerEpoch | undefined
) {
  const isOver = yield* write(runner, removing(runner, request), epoch)
  if (isOver) yield* removed(runner, request, "drop")
  return isOver
})

/** Calls the handler for the event. */
const retry = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  request: ParkedRequest
): Effect.fn.Return<boolean, EpochEnded | Fenced | PageError> {
  forgetIfRequestedAgain(runner, request)
  const reason = retriedOf(runner, request)?.reason
  if (reason !== undefined) return yield* recordFailure(runner, request, reason)
  const next = yield* runner.pages.at(request.position)
  switch (next._tag) {
    case "Unreadable":
      return yield* recordFailure(runner, request, HaltReason.ofUnreadable(next.error), next.error.epoch)
    case "Page": {
      const [event] = next.page.events
      // The projection no longer selects the event.
      return event === undefined
        ? yield* drop(runner, request, next.page.epoch)
        : yield* handle(runner, request, event)
    }
    default:
      return false
  }
})

const handle = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  request: ParkedRequest,
  event: Event
): Effect.fn.Return<boolean, EpochEnded | Fenced> {
  const { job, retries } = runner
  const policy = retriedOf(runner, request)?.policy ?? BatchPolicy.initial(1, job.projection.handler._tag)
  const outcome = yield* Batch.attempt(runner.batches, {
    events: [event],
    end: job.state.handledUpTo,
    instead: { of: () => false, run: () => removing(runner, request) }
  })
  if (Option.isNone(outcome)) return false
  if (outcome.value._tag === "Failed" && outcome.value.reason === "handler") yield* retries.succeeded("A batch")
  const { action, state } = BatchPolicy.next(policy, outcome.value)
  const { eventId, requestedAt } = request
  runner.retried = { eventId, requestedAt, policy: state, reason: undefined }
  switch (action._tag) {
    case "Continue":
      // The batch has also written progress that was due.
      if (runner.caughtUp === "now") job.caughtUp.openUnsafe()
      yield* removed(runner, request, "retry")
      yield* Runner.committed(runner, 1, action.tookNanos)
      return true
    case "BackOff":
      yield* Runner.retry(runner, "A batch", action.attempt, action.failure)
      return false
    case "Isolate":
      return false
    case "GiveUp": {
      const newer = GivingUp.findNewerVersion(action.failure)
      if (newer !== undefined) yield* GivingUp.leaveProjection(runner, newer)
      if (newer !== undefined || Parking.isWithdrawn(action.failure)) return false
      const reason = HaltReason.ofFailure(event, action.failure, action.circumstance)
      runner.retried = { eventId, requestedAt, policy: state, reason }
      return yield* recordFailure(runner, request, reason)
    }
  }
})

const retriedOf = ({ retried }: Runner.Runner, { eventId }: ParkedRequest): Runner.Retried | undefined =>
  retried?.eventId === eventId ? retried : undefined

/**
 * Forgets a retry that has failed if it was requested again since: the failure may be recorded although the answer was
 * lost.
 */
const forgetIfRequestedAgain = (runner: Runner.Runner, request: ParkedRequest): void => {
  const retried = retriedOf(runner, request)
  if (retried?.reason === undefined || retried.requestedAt?.getTime() === request.requestedAt?.getTime()) return
  runner.retried = undefined
  runner.shared.blocking.clearOverruns(runner.job.state.held, request.position)
}

/** Removes the row, in the transaction of a batch. */
const removing = ({ job, parking }: Runner.Runner, { position, request }: ParkedRequest) =>
  Effect.flatMap(
    parking.store.remove(job.state.held, { position, request }),
    (isRemoved) => isRemoved ? Effect.void : Effect.fail(new Parking.Withdrawn())
  )

const removed = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  { eventId, keyHash, position }: ParkedRequest,
  request: Request
) {
  const { job, parking } = runner
  const { projection, range } = job.state.held
  runner.retried = undefined
  Parking.removed(parking, keyHash)
  yield* job.record(Activity.ParkedEventRemoved({ projection, range, position, eventId, request }))
})

/** Records the failure of a retry with the parked event, which stays parked. */
const recordFailure = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  { eventId, position }: ParkedRequest,
  { error, stack, tag }: HaltReason.HaltReason,
  epoch?: ServerEpoch
): Effect.fn.Return<false, EpochEnded | Fenced> {
  const { job, parking, shared } = runner
  const { projection, range } = job.state.held
  const failure = { position, errorTag: tag, errorMessage: error }
  const isRecorded = yield* write(runner, parking.store.recordFailure(job.state.held, failure), epoch)
  if (isRecorded) {
    runner.retried = undefined
    shared.blocking.clearOverruns(job.state.held, position)
    yield* job.record(Activity.ParkedEventFailed({ projection, range, position, eventId, error, stack }))
  }
  return false
})

/**
 * Commits a change of parked events under the fence of the range. Returns whether it has succeeded.
 *
 * `epoch` is the server epoch of the read that the change depends on; undefined if it depends on nothing but the table,
 * because a range that has only such requests reads nothing in a new epoch.
 */
const write = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  work: Effect.Effect<void, unknown>,
  epoch: ServerEpoch | undefined
): Effect.fn.Return<boolean, EpochEnded | Fenced> {
  const { batches: { idleTimeout }, job, retries, shared } = runner
  const { held, writtenUpTo: from } = job.state
  const result = yield* Effect.result(
    shared.checkpoints.commit(held, { from, idleTimeout, epoch }, Effect.as(work, from))
  )
  if (result._tag === "Success") {
    runner.failures = 0
    yield* retries.allSucceeded
    return true
  }
  const { failure } = result
  if (failure._tag === "Fenced" || failure._tag === "EpochEnded") return yield* failure
  if (!Parking.isWithdrawn(failure)) yield* Runner.retry(runner, "Progress", ++runner.failures, failure)
  return false
})
