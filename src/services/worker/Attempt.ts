/** One run of a batch: how far it has come, and where it has failed. */
import * as Cause from "effect/Cause"
import type * as Effect from "effect/Effect"
import type * as BatchPolicy from "../../schema/BatchPolicy.ts"
import type { Event } from "../../schema/Event.ts"
import { HandlerFailure } from "../CheckpointStore.ts"
import * as HandlerCall from "./HandlerCall.ts"
import type * as RangeState from "./RangeState.ts"
import type * as Retries from "./Retries.ts"

export interface Batch {
  readonly events: HandlerCall.Events
  /** The range's position after the last event. */
  readonly end: bigint
  readonly instead?: Instead | undefined
}

/** Work in the transaction of a batch that replaces calls of the handler, or is added to them. */
export interface Instead {
  /** Whether the handler is not called for the event. */
  readonly of: (event: Event) => boolean
  /** Runs when the handler has ended, with those of these events that the batch has reached, possibly none. */
  readonly run: (events: ReadonlyArray<Event>) => Effect.Effect<void, unknown>
}

/** One run of a batch. */
export interface Attempt {
  readonly batch: Batch
  /** The events for which the handler is called. */
  readonly called: ReadonlyArray<Event>
  readonly progress: HandlerCall.Progress
  phase: "handler" | "instead" | "end"
  /** Whether the handler ran outside of a transaction, and its progress could not be written yet. */
  isUnwritten: boolean
}

export const make = (batch: Batch): Attempt => ({
  batch,
  called: batch.instead === undefined ? batch.events : batch.events.filter((event) => !batch.instead!.of(event)),
  progress: HandlerCall.makeProgress(),
  phase: "handler",
  isUnwritten: false
})

/** How many events the batch has reached: all before the first event that was not handled. */
export const reachedEvents = ({ batch: { events }, called, progress: { handled } }: Attempt): number =>
  handled === called.length ? events.length : events.indexOf(called[handled]!)

/** The range's position after the events that the batch has reached. */
export const reached = (attempt: Attempt): bigint => {
  const { batch: { end, events } } = attempt
  const count = reachedEvents(attempt)
  return count === events.length ? end : events[count - 1]!.globalPosition
}

/** The call of the handler that has not ended, if any. */
export const currentCall = (
  { called, progress: { begun, callFrom, callSince, handled, raised } }: Attempt
): RangeState.Call | undefined =>
  begun > handled && raised === undefined
    ? { event: called[callFrom]!, events: begun - callFrom, since: callSince }
    : undefined

/** Which events of the batch had begun, and at which of them it failed. */
export const whereFailed = (attempt: Attempt): Pick<BatchPolicy.Failed<unknown>, "begun" | "failedAt"> => {
  const { batch: { events, instead }, called, phase, progress } = attempt
  const positions = (count: number) => events.slice(0, count).map(({ globalPosition }) => globalPosition)
  if (phase === "instead") {
    const count = reachedEvents(attempt)
    const parked = events.slice(0, count).flatMap((event, index) => instead!.of(event) ? [index] : [])
    // Several events may exceed a limit only together.
    return { begun: positions(count), failedAt: parked.length > 1 ? "unknown" : parked[0] ?? 0 }
  }
  const failedAt = HandlerCall.failedAt(progress)
  if (failedAt === undefined) {
    // Without a call, the transaction has failed to begin. After the last one, a finalizer of the batch's scope may fail.
    return { begun: positions(phase === "end" || progress.begun > 0 ? reachedEvents(attempt) : 0), failedAt }
  }
  return {
    begun: positions(events.indexOf(called[progress.begun - 1]!) + 1),
    failedAt: failedAt === "unknown" ? failedAt : events.indexOf(called[failedAt]!)
  }
}

/** Adds the handler's typed error, if it is the first reason of the failure. */
export const withTyped = <F extends HandlerFailure | Retries.Retried>({ phase, progress }: Attempt, failure: F) => {
  if (failure._tag !== "HandlerFailure" || phase !== "handler") return failure
  const raised = progress.raised?.reasons.find(Cause.isFailReason)
  const [first] = failure.cause.reasons
  return raised !== undefined && first !== undefined && Cause.isFailReason(first) && first.error === raised.error
    ? new HandlerFailure({ cause: failure.cause, typed: { error: raised.error } })
    : failure
}
