/**
 * Decides whether a worker retries a failed store statement or ends, from its first statement on:
 *
 * - A step that has succeeded once is retried after every store error.
 * - A store error with `isRetryable` is retried.
 * - After the registration, `DatabaseUnavailable` and `ReadOnlyDatabase` are retried.
 * - Any other failure ends the worker at once: a statement that has never succeeded does not start to succeed by
 *   itself.
 *
 * Retries are limited to five seconds while the worker has never been registered, and unlimited afterwards.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import { StoreError } from "../../schema/Errors.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"

/** How long a starting worker waits for a server that is starting or not reachable yet. */
const patienceNanos = 5_000_000_000n

/** Half of the attempts are made in the first second, because a server that is starting is usually ready soon. */
const soon = Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("500 millis")])

/** Retries for `patienceNanos` from the start of the first attempt, so that the wait for an answer is included. */
const patiently = <A, E, R>(
  self: Effect.Effect<A, E, R>,
  isRetried: (error: E) => boolean,
  isUnlimited: () => boolean = () => false
): Effect.Effect<A, E, R> =>
  Effect.flatMap(Clock.monotonicTimeNanos, (begun) =>
    Effect.retry(self, {
      while: (error) =>
        isRetried(error)
          ? Effect.map(Clock.monotonicTimeNanos, (now) => isUnlimited() || now - begun < patienceNanos)
          : Effect.succeed(false),
      schedule: soon
    }))

/** Retries store errors with `isRetryable` for five seconds. For statements that run before a worker exists. */
export const waitForServer = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  patiently(self, (error) => error instanceof StoreError && error.isRetryable)

export interface Startup {
  /** Returns whether the failure of a step ends the worker. If not, the step must be retried. */
  readonly isFatal: (step: string, error: StoreError) => boolean
  /** Records that a step has succeeded. */
  readonly worked: (step: string) => void
  /** Runs a step and retries it by the rule above. The name is the subject of log lines such as "… failed". */
  readonly step: (name: string) => <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
}

/** The step that registers the worker. */
export const registering = "Registering"

export const make = (retryLog: RetryLog): Startup => {
  const successes = new Set<string>()

  const isFatal = (step: string, error: StoreError): boolean =>
    !successes.has(step) && !error.isRetryable &&
    // A successful registration proves that the server, the credentials and write access work; it proves no other
    // statement.
    !(successes.has(registering) &&
      (error.reason._tag === "DatabaseUnavailable" || error.reason._tag === "ReadOnlyDatabase"))

  return {
    isFatal,
    worked: (step) => void successes.add(step),
    step: (name) => (self) =>
      Effect.suspend(() => {
        const isRetried = (error: unknown): error is StoreError => error instanceof StoreError && !isFatal(name, error)
        const attempt = Effect.tapError(self, (error) =>
          isRetried(error) ? retryLog.failed(name, error.message) : Effect.void)
        // The worker may become registered while the step is retried.
        return patiently(attempt, isRetried, () =>
          successes.has(registering)).pipe(
            Effect.tap(() => {
              successes.add(name)
              return retryLog.succeeded(name)
            }),
            Effect.ensuring(retryLog.ended(name))
          )
      })
  }
}
