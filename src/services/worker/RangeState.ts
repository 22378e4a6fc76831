/**
 * One open range: the job of its runner, and what is known about the range in memory. The runner writes the state,
 * except `closing`, which `Ranges` writes. The reconciler, catch-up and the activity stream read it.
 */
import type * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Latch from "effect/Latch"
import type { Activity } from "../../schema/Activity.ts"
import type * as Checkpoint from "../../schema/Checkpoint.ts"
import type { EventVersionTooNew } from "../../schema/Errors.ts"
import type { Event } from "../../schema/Event.ts"
import type { Settings } from "../../schema/Settings.ts"
import type { Registration } from "../../schema/Worker.ts"
import type { ServerEpoch } from "../EventStore.ts"
import type * as Projection from "../Projection.ts"
import type { Attempt } from "./Attempt.ts"

export interface Job {
  readonly projection: Projection.Any
  /** The worker that runs the range. */
  readonly registration: Pick<Registration, "replicaSet" | "workerId">
  /** Whether the claim of the range reported that it has no parked events. */
  readonly hasNoParked: boolean
  /** The handler's services, captured when the orchestrator was built. */
  readonly captured: Context.Context<unknown>
  readonly settings: Pick<Settings, "batchSize" | "batchBytes" | "pollInterval" | "staleWorkerTimeout">
  readonly state: RangeState
  /** Opened to drain the range: the batch in flight ends, and no other begins. */
  readonly draining: Latch.Latch
  /** Opened when the row shows that the range has handled all settled events. */
  readonly caughtUp: Latch.Latch
  readonly record: (activity: Activity) => Effect.Effect<void>
  /**
   * Gives up the projection, because a worker of a newer version has to handle the next event. Drains the range soon.
   */
  readonly giveUp: (error: EventVersionTooNew) => Effect.Effect<void>
}

/** Waits, but not beyond the time at which the range drains. */
export const sleepUnlessDraining = ({ draining }: Pick<Job, "draining">, time: Duration.Input): Effect.Effect<void> =>
  // `draining` comes first in the race, so that nothing starts once the range is draining.
  Effect.raceFirst(draining.await, Effect.sleep(time))

/** A call of the handler. */
export interface Call {
  /** Its first event. */
  readonly event: Event
  /** How many events it has; one unless the handler is a batch handler. */
  readonly events: number
  /** When it began, in nanoseconds of the monotonic clock. */
  readonly since: bigint
}

export interface RangeState {
  /** The row and its fence, as they were when the range was opened. */
  readonly held: Checkpoint.Held
  /** All matching events of the range up to this position have been handled and committed. */
  handledUpTo: bigint
  /**
   * The server epoch in which everything in memory was read: the page, and the positions between `writtenUpTo` and
   * `handledUpTo`, where no event matches. All of it is dropped when the epoch ends. Undefined before the first read in
   * an epoch.
   */
  epoch: ServerEpoch | undefined
  /** The position in the range's row, and when this worker received the confirmation. */
  writtenUpTo: bigint
  writtenAt: bigint
  /** Why the range is halted; undefined if it is not. It may have been halted before this worker opened it. */
  halt: Omit<Checkpoint.Halt, "since" | "hash" | "incarnation" | "request"> | undefined
  /** When this worker observed the halt, in nanoseconds of the monotonic clock. */
  haltedAt: bigint
  /** When the current batch began, in nanoseconds of the monotonic clock; undefined between batches. */
  batchSince: bigint | undefined
  /** The current batch; undefined between batches. Not a closure over it: see docs/adr/0023-short-lived-events.md. */
  attempt: Attempt | undefined
  /** Whether the range drains or is being interrupted. */
  closing: boolean
}

/** The state of a range that is opened now. */
export const make = (held: Checkpoint.Held, now: bigint): RangeState => ({
  held,
  handledUpTo: held.position,
  epoch: undefined,
  writtenUpTo: held.position,
  writtenAt: now,
  halt: held.halt,
  haltedAt: now,
  batchSince: undefined,
  attempt: undefined,
  closing: false
})

/** Returns whether progress past events that do not match is not written yet. */
export const hasUnwritten = (state: RangeState): boolean => state.handledUpTo !== state.writtenUpTo

/** Records that no event up to `position` matches. This progress is not written yet. */
export const passOver = (state: RangeState, position: bigint): void => {
  state.handledUpTo = position
}

/** Records that progress up to `position` is committed. */
export const write = (state: RangeState, position: bigint, now: bigint): void => {
  state.handledUpTo = state.writtenUpTo = position
  state.writtenAt = now
}

/** Drops unwritten progress, so that those positions are read again. */
export const dropUnwritten = (state: RangeState): void => {
  state.handledUpTo = state.writtenUpTo
}

/** Records that the server epoch has ended, so that everything in memory is invalid. */
export const endEpoch = (state: RangeState): void => {
  dropUnwritten(state)
  state.epoch = undefined
}

/** Records that the range continues with the event at which it was halted. */
export const resume = (state: RangeState): void => {
  state.halt = undefined
  dropUnwritten(state)
}

/** Records that the range is halted. */
export const halt = (state: RangeState, reason: RangeState["halt"], now: bigint): void => {
  state.halt = reason
  state.haltedAt = now
}
