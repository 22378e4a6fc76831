/**
 * Decides, without effects, how a range continues after a batch: with the next events, with another attempt, or by
 * giving up an event, to which the failure policy of the projection then applies. `next` is the one place for these
 * rules; `select` chooses the events of the next batch.
 *
 * A range must not be halted because of the network, of another transaction or of another event: transient failures are
 * retried, and an event is given up only if it was the first of its batch, after the events before it have committed.
 */
import type * as Array from "effect/Array"
import type { Event } from "./Event.ts"

/** What a range keeps between batches. */
export interface State {
  /** Failures since the last commit. */
  readonly attempts: number
  /** How often in a row the connection was lost in the handler of the event at `position`, since the last commit. */
  readonly lostInHandler: { readonly position: bigint; readonly times: number } | undefined
  /** How often the connection was lost after all handlers had ended, since the last commit. */
  readonly lostAfterHandlers: number
  /** The full size of a batch. */
  readonly batchSize: number
  /** Whether the handler gets all events of a batch at once, so that a batch cannot end before its last event. */
  readonly isWhole: boolean
  /**
   * Maximum number of events in the next batch: halved after a conflict, doubled after a commit. Ranges whose batches
   * lock the same rows in different orders get through with small batches. If batches are whole, the limit is also
   * the number of events that the handler handles in time.
   */
  readonly limit: number
  /** Batches that conflicts have rolled back since `limit` was last at its full size. */
  readonly conflicts: number
  /**
   * The positions of events that presumably include the one that makes batches fail. No batch contains them together
   * with earlier or later events, and they are divided into halves until that event is the first of a batch.
   */
  readonly suspects: { readonly first: bigint; readonly last: bigint } | undefined
}

/**
 * A batch that takes longer commits the events that it has handled, so that row locks are held briefly and a hand-over
 * waits for one event instead of a whole batch. A whole batch gets as many events as its handler handles in this time.
 */
export const longestBatchNanos = 100_000_000n

/**
 * A whole batch with at most this many events may take ten times as long: its handler probably takes long for a reason
 * other than their number. The first batch of a range has this size: no call of its handler is measured yet.
 */
const smallBatch = 100

export const initial = (batchSize: number, handler: "Batch" | "One"): State => ({
  attempts: 0,
  lostInHandler: undefined,
  lostAfterHandlers: 0,
  batchSize,
  isWhole: handler === "Batch",
  limit: handler === "Batch" ? Math.min(batchSize, smallBatch) : batchSize,
  conflicts: 0,
  suspects: undefined
})

/** Why a batch was rolled back. */
export type Reason =
  /** The handler failed or broke the rules of its transaction. */
  | "handler"
  /** A deadlock, a serialization failure or a lock timeout, caused by another transaction. */
  | "conflict"
  /** The server refused a statement for a reason that passes, such as a statement timeout or a lack of memory. */
  | "refusal"
  /** The session was lost. */
  | "connection"
  /** The server refused a statement for any other reason, such as a damaged page. */
  | "server fault"
  /** The server cannot be reached or does not accept writes. */
  | "unavailable"

/** Returns whether the batch may have failed because its handler blocked the process for too long. */
export const mayBeOverrun = (reason: Reason): boolean =>
  reason === "connection" || reason === "server fault" || reason === "unavailable"

/** A batch that was rolled back. */
export interface Failed<F> {
  readonly _tag: "Failed"
  readonly reason: Reason
  /** Positions of the events that had begun to be handled, or to be parked. */
  readonly begun: ReadonlyArray<bigint>
  /**
   * Index of the event in whose handler the batch failed; `"unknown"` if the handler had begun with several events, and
   * undefined if all events were handled.
   */
  readonly failedAt: number | "unknown" | undefined
  /** The failure itself. It has no influence on the decision and is contained in the action. */
  readonly failure: F
}

/** The first `handled` events are committed. */
export interface Committed {
  readonly _tag: "Committed"
  readonly handled: number
  /** How long the batch took, and how long its handler. */
  readonly tookNanos: bigint
  readonly handlerNanos: bigint
}

/** How a batch ended. */
export type Outcome<F> =
  | Committed
  | Failed<F>
  /** No handler was called, because the first event has overrun too often (`isBlocking`). */
  | { readonly _tag: "Overran"; readonly failure: F }

/** What the runner has to do next. */
export type Action<F> =
  /** Continue with the events after the first `handled`, which are committed. */
  | { readonly _tag: "Continue"; readonly handled: number; readonly tookNanos: bigint }
  /** Commit the events before the suspects first, and find the one that fails among them. */
  | { readonly _tag: "Isolate" }
  /** Wait, then try the same events again. */
  | { readonly _tag: "BackOff"; readonly attempt: number; readonly failure: F }
  /**
   * Give up the first event: it cannot be handled. `circumstance` introduces the error; it is empty if nothing has to
   * be added.
   */
  | { readonly _tag: "GiveUp"; readonly failure: F; readonly circumstance: string }

/** The state after an outcome, and what follows from it. */
export interface Decision<F> {
  readonly state: State
  readonly action: Action<F>
}

/**
 * A handler that loses its connection this many times in a row at one position is treated as the cause. The back-off in
 * between takes about five seconds, in which an unreliable network loses connections at other events, too.
 */
const maxLossesInHandler = 10
/**
 * The limit for connections that are lost after the handlers have ended, which is usually caused by the network. The
 * back-off in between takes almost two minutes.
 */
const maxLossesAfterHandlers = 30
/** A single overrun may be caused by a stopped process or an unreachable network. */
const maxOverruns = 3
/** A few conflicts of a range are normal; many mean that ranges often write the same rows at the same time. */
const conflictsBeforeWarning = 3

/** Returns whether a handler that has overrun this often at one event is not called for that event again. */
export const isBlocking = (overruns: number): boolean => overruns >= maxOverruns

/** Returns whether the range loses so many batches to conflicts that an operator should know. */
export const isContended = ({ conflicts }: State): boolean => conflicts >= conflictsBeforeWarning

/**
 * Returns the events of the next batch, at least one and at most `largest`. The batch ends before suspects, between
 * them, and before an event that has overrun; such an event is handled alone.
 */
export const select = <E extends Pick<Event, "globalPosition">>(
  state: State,
  events: Array.NonEmptyReadonlyArray<E>,
  hasOverrun: (position: bigint) => boolean,
  largest = Infinity
): Array.NonEmptyReadonlyArray<E> => {
  const overran = events.findIndex(({ globalPosition }) => hasOverrun(globalPosition))
  const end = overran < 0 ? events.length : Math.max(1, overran)
  const count = Math.min(end, state.limit, largest, beforeSuspects(state, events))
  if (count >= events.length) return events
  const [first, ...rest] = events.slice(0, count)
  return [first ?? events[0], ...rest]
}

/** Returns how many events precede the suspects, or half of them if they come first. */
const beforeSuspects = ({ suspects }: State, events: Array.NonEmptyReadonlyArray<Pick<Event, "globalPosition">>) => {
  if (suspects === undefined || events[0].globalPosition > suspects.last) return Infinity
  const { first, last } = suspects
  const preceding = countUntil(events, ({ globalPosition }) => globalPosition >= first)
  return preceding > 0 ? preceding : Math.max(1, countUntil(events, ({ globalPosition }) => globalPosition > last) >> 1)
}

const countUntil = <E>(events: ReadonlyArray<E>, isEnd: (event: E) => boolean): number => {
  const end = events.findIndex(isEnd)
  return end < 0 ? events.length : end
}

/** Decides between continuing, isolating, retrying and giving up. */
export const next = <F>(state: State, outcome: Outcome<F>): Decision<F> => {
  switch (outcome._tag) {
    case "Committed":
      return { state: afterCommit(state, outcome), action: { ...outcome, _tag: "Continue" } }
    case "Overran":
      return { state, action: { _tag: "GiveUp", failure: outcome.failure, circumstance: "" } }
    case "Failed":
      return outcome.reason === "handler"
        ? isolateOrGiveUp(state, outcome, "")
        : afterTransientFailure(state, outcome)
  }
}

const afterCommit = (state: State, { handled, handlerNanos }: Committed): State => {
  const most = state.isWhole ? handledInTime(handled, handlerNanos) : Infinity
  const limit = Math.max(1, Math.min(state.batchSize, state.limit * 2, most))
  return {
    ...state,
    attempts: 0,
    lostInHandler: undefined,
    lostAfterHandlers: 0,
    limit,
    conflicts: limit >= Math.min(state.batchSize, most) ? 0 : state.conflicts
  }
}

/** Returns how many events the handler of whole batches handles in time, judging from a batch. */
const handledInTime = (handled: number, nanos: bigint): number => {
  const inTime = handled * Number(longestBatchNanos) / Math.max(1, Number(nanos))
  return Math.floor(Math.max(inTime, Math.min(smallBatch, inTime * 10)))
}

const afterTransientFailure = <F>(before: State, failed: Failed<F>): Decision<F> => {
  const { failure, reason } = failed
  const limit = isAvoidedBySmallerBatches(before, failed) ? Math.max(1, failed.begun.length >> 1) : before.limit
  const conflicts = before.conflicts + (reason === "conflict" ? 1 : 0)
  const counted = countLoss({ ...before, limit, conflicts }, failed)
  const circumstance = lostTooOften(counted, failed)
  if (circumstance !== undefined) {
    return isolateOrGiveUp({ ...counted, lostInHandler: undefined, lostAfterHandlers: 0 }, failed, circumstance)
  }
  const attempt = counted.attempts + 1
  return { state: { ...counted, attempts: attempt }, action: { _tag: "BackOff", attempt, failure } }
}

/** A smaller batch locks fewer rows, ends earlier, and keeps fewer events from being committed. */
const isAvoidedBySmallerBatches = ({ lostInHandler }: State, { begun, failedAt, reason }: Failed<unknown>): boolean => {
  if (reason === "conflict" || reason === "refusal") return true
  if (failedAt === undefined) return false
  // Repeated failures leave a single event, so the event that fails is found.
  if (failedAt === "unknown") return reason !== "unavailable"
  // A server-side transaction timeout hits a different event each time; smaller batches finish before it fires.
  const wanders = lostInHandler !== undefined && lostInHandler.position !== begun[failedAt]
  // A statement that the server refuses for one event must not keep the preceding events from committing.
  return wanders || reason === "server fault"
}

/** A loss counts for the event in whose handler it occurred, or for the end of the batch. */
const countLoss = (state: State, { begun, failedAt, reason }: Failed<unknown>): State => {
  if (reason !== "connection" || begun.length === 0) return state
  if (failedAt === "unknown") return state
  if (failedAt === undefined) return { ...state, lostAfterHandlers: state.lostAfterHandlers + 1 }
  const position = begun[failedAt]!
  const times = state.lostInHandler?.position === position ? state.lostInHandler.times + 1 : 1
  return { ...state, lostInHandler: { position, times } }
}

/** Returns in words that the loss that was just counted is one too many; undefined if it is not. */
const lostTooOften = ({ lostAfterHandlers, lostInHandler }: State, { begun, failedAt, reason }: Failed<unknown>) => {
  if (reason !== "connection" || begun.length === 0 || failedAt === "unknown") return undefined
  const isInHandler = failedAt !== undefined
  const losses = isInHandler ? lostInHandler?.times ?? 0 : lostAfterHandlers
  if (losses < (isInHandler ? maxLossesInHandler : maxLossesAfterHandlers)) return undefined
  const where = isInHandler ? "in the handler" : "after the handler had ended"
  return `the connection was lost ${losses} times in a row ${where}: `
}

const isolateOrGiveUp = <F>(
  state: State,
  { begun, failedAt, failure }: Failed<F>,
  circumstance: string
): Decision<F> => {
  const isKnown = typeof failedAt === "number"
  if (isKnown ? failedAt === 0 : begun.length <= 1) {
    return { state, action: { _tag: "GiveUp", failure, circumstance } }
  }
  const first = begun[isKnown ? failedAt : 0]!
  const last = isKnown ? first : begun[begun.length - 1]!
  return { state: { ...state, suspects: { first, last } }, action: { _tag: "Isolate" } }
}

const firstBackoffMillis = 10
const longestBackoffMillis = 5_000
/** Shorter while the server is unavailable, so that a range continues soon after the server does. */
const longestUnavailableMillis = 1_000

/** Returns the wait before an attempt is repeated; `random` is from 0 to 1. */
export const backoffMillis = (attempt: number, isUnavailable: boolean, random: number): number =>
  Math.min(firstBackoffMillis * 2 ** (attempt - 1), isUnavailable ? longestUnavailableMillis : longestBackoffMillis) *
  (0.8 + 0.4 * random)
