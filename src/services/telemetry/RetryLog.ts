/**
 * Logs store failures that are retried: one line when the first operation fails, summaries at growing intervals while
 * any operation keeps failing, and one line when all operations succeed again. One line for each attempt of each range
 * would fill the log during an outage of the database.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"

export interface RetryLog {
  /** The operation failed and will be retried. */
  readonly failed: (operation: string, reason: string) => Effect.Effect<void>
  /** The operation succeeded. */
  readonly succeeded: (operation: string) => Effect.Effect<void>
  /** The operation is no longer retried, because its range was closed or its registration has ended. */
  readonly ended: (operation: string) => Effect.Effect<void>
}

/** The first interval between two lines. It doubles with each summary of an outage. */
const shortestInterval = 10_000_000_000n
const longestInterval = 60_000_000_000n

/** The maximum number of failing operations that a summary names. */
const mostNamed = 3

const listed = (operations: ReadonlyArray<string>): string =>
  operations.length <= mostNamed
    ? operations.join(", ")
    : `${operations.slice(0, mostNamed).join(", ")} and ${operations.length - mostNamed} more`

/** Makes a retry log for the operations of one worker. */
export const make = (): RetryLog => {
  const failing = new Set<string>()
  /** Operations that have failed since the outage began, and the total number of failures. */
  const affected = new Set<string>()
  let failures = 0
  let began = 0n
  /** Whether a line was logged for this outage. A short outage soon after another one is not logged. */
  let reported = false
  let nextLineAt = 0n
  let interval = shortestInterval

  const since = (now: bigint): string =>
    Duration.format(Duration.seconds(Math.max(1, Math.round(Number(now - began) / 1_000_000_000))))

  const failed: RetryLog["failed"] = Effect.fnUntraced(function*(operation, reason) {
    const now = yield* Clock.monotonicTimeNanos
    if (failing.size === 0) {
      began = now
      failures = 0
      affected.clear()
      interval = shortestInterval
    }
    failures++
    failing.add(operation)
    affected.add(operation)
    if (now < nextLineAt) return
    if (reported) interval = interval * 2n < longestInterval ? interval * 2n : longestInterval
    nextLineAt = now + interval
    if (!reported) {
      reported = true
      return yield* Effect.logWarning(`${operation} failed and is retried: ${reason}`)
    }
    yield* Effect.logError(
      `Still failing after ${since(now)} and ${failures} attempts: ${listed([...failing])}. Last failure: ${reason}`
    )
  })

  const ended: RetryLog["ended"] = (operation) =>
    Effect.sync(() => {
      // It is unknown whether an operation that has ended would succeed now, so no recovery is logged.
      if (failing.delete(operation) && failing.size === 0) reported = false
    })

  const succeeded: RetryLog["succeeded"] = (operation) =>
    failing.size === 0 ? Effect.void : Effect.gen(function*() {
      failing.delete(operation)
      if (failing.size > 0 || !reported) return
      reported = false
      const now = yield* Clock.monotonicTimeNanos
      nextLineAt = now + shortestInterval
      yield* Effect.logInfo(
        `Recovered after ${since(now)} and ${failures} failed attempts: ${listed([...affected])} ${
          affected.size === 1 ? "works" : "work"
        } again.`
      )
    })

  return { failed, succeeded, ended }
}
