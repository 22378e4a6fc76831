/** Halts a range at an event, and waits for a request about it. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import { Activity } from "../../schema/Activity.ts"
import type { Fenced } from "../CheckpointStore.ts"
import type { Requests } from "../ParkedEvents.ts"
import type * as HaltReason from "./HaltReason.ts"
import * as Parking from "./Parking.ts"
import * as RangeState from "./RangeState.ts"
import * as Retries from "./Retries.ts"
import * as Runner from "./Runner.ts"

/**
 * Records a halt. If it cannot be recorded, returns after a pause; the event is then tried again, unless there is a
 * verdict about it.
 */
export const halt = Effect.fnUntraced(function*(
  runner: Runner.Runner,
  event: { readonly position: bigint; readonly eventId?: string; readonly key: string | undefined },
  { error, stack }: HaltReason.HaltReason
) {
  const { job, retries, shared } = runner
  const { epoch, held, writtenUpTo: at } = job.state
  const { eventId = "id unreadable", key, position } = event
  const result = yield* Effect.result(
    shared.checkpoints.halt(held, { at, epoch, error, position, eventId, key })
  )
  if (result._tag === "Failure") {
    if (!Retries.isRetried(result.failure)) return yield* result.failure
    return yield* Runner.retry(runner, "The record of a halt", ++runner.failures, result.failure)
  }
  const { projection, range } = held
  yield* retries.allSucceeded
  RangeState.halt(job.state, { error, position, eventId }, yield* Clock.monotonicTimeNanos)
  yield* job.record(Activity.RangeHalted({ projection, range, halt: { error, position, eventId }, stack }))
})

/**
 * Waits until the range drains, or until it continues because of a request: about the event at which it is halted, or
 * about parked events, whose limits may have caused the halt. Nothing else is written, not even empty progress, because
 * it would clear the halt.
 */
export const waitWhileHalted = Effect.fnUntraced(function*(runner: Runner.Runner) {
  const { job, job: { state }, parking, retries } = runner
  while (state.halt !== undefined) {
    yield* RangeState.sleepUnlessDraining(job, job.settings.pollInterval)
    if (job.draining.isOpen()) return
    const result = yield* Effect.result(parking.store.requests(state.held))
    if (result._tag === "Failure") {
      yield* retries.failed("Reading parked events", ++runner.failures, result.failure)
      continue
    }
    yield* retries.succeeded("Reading parked events")
    yield* execute(runner, state.halt, result.success)
  }
})

type Halt = NonNullable<RangeState.RangeState["halt"]>

const execute = (runner: Runner.Runner, halt: Halt, { halt: requested, parked }: Requests) =>
  requested?.request === "skip" && requested.eventId === halt.eventId
    ? skip(runner, halt)
    : requested === undefined && parked.length === 0
    ? Effect.void
    : resume(runner, halt)

/** Continues with the event at which the range is halted. Its halt is cleared with the next commit. */
const resume = (runner: Runner.Runner, halt: Halt) =>
  Effect.sync(() => {
    forgetFailures(runner, halt)
    RangeState.resume(runner.job.state)
    Parking.lookNow(runner.parking)
  })

/** Forgets what has led to the halt. */
const forgetFailures = (runner: Runner.Runner, { position }: Halt): void => {
  runner.shared.blocking.clearOverruns(runner.job.state.held, position)
  runner.failing = undefined
  runner.caughtUp = "never"
}

/** Advances past the event, if the range is still halted at it. */
const skip = Effect.fnUntraced(function*(runner: Runner.Runner, halt: Halt): Effect.fn.Return<void, Fenced> {
  const { batches: { idleTimeout }, job, parking, retries, shared } = runner
  const { held, writtenUpTo: from } = job.state
  const isRequested = parking.store.isSkipRequested(held, halt.eventId)
  // Not halted while the row is written: to other fibers, a row without the halt means that the server has lost it.
  job.state.halt = undefined
  const result = yield* Effect.result(shared.checkpoints.commit(
    held,
    { from, idleTimeout },
    Effect.flatMap(isRequested, (is) => is ? Effect.succeed(halt.position) : Effect.fail(new Parking.Withdrawn()))
  ))
  if (result._tag === "Success") {
    const { projection, range } = held
    forgetFailures(runner, halt)
    RangeState.write(job.state, halt.position, yield* Clock.monotonicTimeNanos)
    yield* retries.allSucceeded
    return yield* job.record(Activity.EventSkipped({ projection, range, ...halt, stack: "", requested: true }))
  }
  job.state.halt = halt
  const { failure } = result
  if (failure._tag === "Fenced") return yield* failure
  // Another server epoch cannot be reported, because none was given.
  if (failure._tag === "EpochEnded" || Parking.isWithdrawn(failure)) return
  yield* retries.failed("Progress", ++runner.failures, failure)
})
