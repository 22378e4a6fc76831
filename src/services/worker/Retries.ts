/** The retries of one range's operations: their log lines, their activity, and the pause before the next attempt. */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { Activity } from "../../schema/Activity.ts"
import * as BatchPolicy from "../../schema/BatchPolicy.ts"
import { type HandlerOverran, StoreError } from "../../schema/Errors.ts"
import * as HashRange from "../../schema/HashRange.ts"
import { type EpochEnded, type HandlerFailure, TransientFailure } from "../CheckpointStore.ts"
import { errorText } from "../ErrorText.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"
import * as RangeState from "./RangeState.ts"

const operations = ["Reading", "A batch", "Progress", "The record of a halt", "Reading parked events"] as const
export type Operation = (typeof operations)[number]

/** A failure of the stores after which the runner of a range retries. */
export type Retried = StoreError | TransientFailure

/** A failure of any operation. */
export type Failure = HandlerFailure | HandlerOverran | Retried

export const isRetried = (failure: unknown): failure is Retried =>
  failure instanceof TransientFailure || failure instanceof StoreError

/** Whether the server cannot be reached or does not accept the operation. */
const isUnavailable = (failure: EpochEnded | Failure): boolean =>
  failure._tag === "StoreError" && failure.reason._tag !== "StatementFailed"

export const describe = (failure: EpochEnded | Failure): string => {
  switch (failure._tag) {
    case "HandlerFailure":
      return errorText(failure.cause)
    case "TransientFailure":
      return errorText(Cause.fail(failure.cause))
    default:
      return failure.message
  }
}

export interface Retries {
  /** The operation failed and will be retried. */
  readonly failed: (operation: Operation, attempt: number, failure: EpochEnded | Failure) => Effect.Effect<void>
  readonly succeeded: (operation: Operation) => Effect.Effect<void>
  /** A write has succeeded, or nothing is left to retry, which ends the retries of all operations. */
  readonly allSucceeded: Effect.Effect<void>
  /** Whether an operation has failed since `allSucceeded`. */
  readonly haveFailed: () => boolean
  /** The range is closed, so nothing is retried any more. */
  readonly ended: Effect.Effect<void>
  /** Waits before an attempt is repeated, or until the range drains. */
  readonly backOff: (attempt: number, failure: EpochEnded | Failure) => Effect.Effect<void>
}

/**
 * Conflicts and refusals are logged as errors at every multiple of this number of attempts, otherwise as debug lines.
 */
const attemptsBeforeError = 5

export const make = (job: RangeState.Job, retryLog: RetryLog): Retries => {
  const { held: { projection, range } } = job.state
  // Formatted once, because every batch reports the success of all operations.
  const subject = `of projection "${projection}" in range ${HashRange.format(range)}`
  const nameOf = (operation: Operation): string => `${operation} ${subject}`

  const logFailure = (operation: Operation, attempt: number, failure: EpochEnded | Failure, reason: string) => {
    // All ranges fail at once while the database is unavailable, but each has its own conflicts.
    if (failure._tag !== "TransientFailure" || failure.kind === "connection") {
      return retryLog.failed(nameOf(operation), reason)
    }
    const log = attempt % attemptsBeforeError === 0 ? Effect.logError : Effect.logDebug
    return log(
      `${nameOf(operation)} at position ${job.state.handledUpTo} failed ${attempt} times and is retried: ${reason}`
    )
  }

  let haveFailed = false
  return {
    failed: (operation, attempt, failure) => {
      haveFailed = true
      const reason = describe(failure)
      return Effect.andThen(
        logFailure(operation, attempt, failure, reason),
        job.record(Activity.BatchRetried({ projection, range, position: job.state.handledUpTo, attempt, reason }))
      )
    },
    succeeded: (operation) => retryLog.succeeded(nameOf(operation)),
    allSucceeded: Effect.suspend(() => {
      haveFailed = false
      return Effect.forEach(operations, (operation) => retryLog.succeeded(nameOf(operation)), { discard: true })
    }),
    haveFailed: () => haveFailed,
    ended: Effect.forEach(operations, (operation) => retryLog.ended(nameOf(operation)), { discard: true }),
    backOff: (attempt, failure) =>
      Effect.flatMap(
        Random.next,
        (random) =>
          RangeState.sleepUnlessDraining(job, BatchPolicy.backoffMillis(attempt, isUnavailable(failure), random))
      )
  }
}
