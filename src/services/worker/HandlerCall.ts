/** Calls a projection's handler for the events of a batch: for one event after the other, or once for all of them. */
import type * as Array from "effect/Array"
import type * as Cause from "effect/Cause"
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import { HandlerResultUnused } from "../../schema/Errors.ts"
import type { Event } from "../../schema/Event.ts"
import { HandledEvent } from "../AppendDefaults.ts"
import { tryRead } from "../ErrorText.ts"
import * as FailedEvent from "../FailedEvent.ts"
import { effectOf, unusedResult } from "../HandlerResult.ts"
import type * as Projection from "../Projection.ts"

export type Events = Array.NonEmptyReadonlyArray<Event>

/** How far the handler has come with the events of a batch, for the code around its transaction. */
export interface Progress {
  /** How many events the handler has been called with, and how many of them it has handled. */
  begun: number
  handled: number
  /** Index of the first event of the current call, and when the call began. */
  callFrom: number
  callSince: bigint
  /** When the first call began, and when the last one ended. */
  since: bigint
  until: bigint
  /** Index of the event that the handler has named as the cause of its failure. */
  named: number | undefined
  /** The failure of the handler, if any. */
  raised: Cause.Cause<unknown> | undefined
}

export const makeProgress = (): Progress => ({
  begun: 0,
  handled: 0,
  callFrom: 0,
  callSince: 0n,
  since: 0n,
  until: 0n,
  named: undefined,
  raised: undefined
})

/** Resets the progress, which may be that of an earlier run of the same transaction. */
const begin = (progress: Progress, now: bigint): void => {
  Object.assign(progress, makeProgress(), { since: now, callSince: now })
}

/**
 * Returns the events of the current call. If it fails, one of them is the cause.
 */
export const current = (events: Events, { begun, callFrom }: Progress): ReadonlyArray<Event> =>
  events.slice(callFrom, begun)

/**
 * Returns the index of the event in whose handling the batch failed; `"unknown"` if that may be any of several events,
 * and undefined if all of them were handled.
 */
export const failedAt = ({ begun, callFrom, handled, named }: Progress): number | "unknown" | undefined =>
  begun === handled ? undefined : named ?? (begun - callFrom === 1 ? callFrom : "unknown")

/**
 * Handles the events, the first ones at least: between two calls, `mayContinue` decides, with the time since the first.
 * An optimistic transaction may run this several times before it commits, each time from the start.
 */
export const run = (
  handler: Projection.Any["handler"],
  events: Events,
  progress: Progress,
  { clock, mayContinue }: { readonly clock: Clock.Clock; readonly mayContinue: (nanos: bigint) => boolean }
): Effect.Effect<void, unknown, unknown> =>
  Effect.suspend(() => {
    begin(progress, clock.monotonicTimeNanosUnsafe())
    return handler._tag === "Batch"
      ? handleAll(handler.handleBatch, events, progress)
      : handleEach(handler.handle, events, progress, clock, mayContinue)
  }).pipe(
    Effect.onExit((exit) =>
      Effect.sync(() => {
        progress.until = clock.monotonicTimeNanosUnsafe()
        if (Exit.isFailure(exit)) recordFailure(events, progress, exit.cause)
      })
    )
  )

/**
 * How long consecutive calls that need no fiber may run before other fibers get their turn, such as the heartbeat. The
 * scheduler counts the steps of fibers, and these calls have none.
 */
const turnNanos = 10_000_000n

/**
 * Calls the handler for one event after the other. A result that is a successful Exit, such as `Effect.void`, has
 * nothing left to run, so the next call follows at once; every other result is a step of the fiber.
 */
const handleEach = (
  handle: (event: Event) => Effect.Effect<unknown, unknown, unknown>,
  events: Events,
  progress: Progress,
  clock: Clock.Clock,
  mayContinue: (nanos: bigint) => boolean
) => {
  const isNext = () => {
    if (progress.begun >= events.length) return false
    if (progress.begun === 0) return true
    const now = clock.monotonicTimeNanosUnsafe()
    if (!mayContinue(now - progress.since)) return false
    progress.callSince = now
    return true
  }
  const call = () => {
    progress.callFrom = progress.begun
    return effectOf(handle(events[progress.begun++]!))
  }
  return Effect.whileLoop({
    while: isNext,
    body: () => {
      const turnSince = progress.callSince
      let result = call()
      while (Exit.isExit(result) && Exit.isSuccess(result)) {
        ended(progress, result.value)
        if (!isNext()) return Effect.void
        if (progress.callSince - turnSince >= turnNanos) return Effect.yieldNow
        result = call()
      }
      return Effect.provideService(result, HandledEvent, events[progress.callFrom]!)
    },
    step: (value) => ended(progress, value)
  })
}

/**
 * Events that the handler appends have no single cause: a default that is correct for a batch of one event would make
 * them depend on how events are divided into batches.
 */
const handleAll = (
  handleBatch: (events: Events) => Effect.Effect<unknown, unknown, unknown>,
  events: Events,
  progress: Progress
) =>
  Effect.suspend(() => {
    progress.begun = events.length
    return Effect.map(effectOf(handleBatch(events)), (value) => ended(progress, value))
  })

const ended = (progress: Progress, value: unknown): void => {
  // A value that throws when it is inspected is accepted.
  const result = value === undefined ? undefined : tryRead(() => unusedResult(value))
  if (result !== undefined) throw new HandlerResultUnused({ result })
  progress.handled = progress.begun
}

/** An event that is not in the batch is ignored, so that the cause is searched for. */
const recordFailure = (events: Events, progress: Progress, cause: Cause.Cause<unknown>): void => {
  const position = FailedEvent.position(cause)
  const index = position === undefined ? -1 : events.findIndex(({ globalPosition }) => globalPosition === position)
  if (index >= progress.callFrom && index < progress.begun) progress.named = index
}
