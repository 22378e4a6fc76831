/**
 * Time limits of tests. A test must not fail because the machine is slow, so a wait ends when its condition holds, or
 * when nothing changes any more ({@link waitUntil}). Settings and limits that must be durations are multiplied by
 * {@link slowness}.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"

/** The environment variable that passes {@link slowness} to test processes and to the processes that they start. */
export const variable = "TEST_SLOWNESS"

/**
 * How many times slower this machine is than the reference machine under the load at the start of the run; at least 1. Measured by
 * `test/support/globalSetup.ts`. It is 1 outside of a test run.
 */
export const slowness: number = Math.max(1, Number(process.env[variable] ?? 1) || 1)

/** A number of milliseconds on the reference machine, as milliseconds on this one. */
export const scaledMillis = (millis: number): number => Math.ceil(millis * slowness)

/** A duration on the reference machine, as a duration on this one. */
export const scaled = (duration: Duration.Input): Duration.Duration =>
  Duration.millis(scaledMillis(Duration.toMillis(Duration.fromInputUnsafe(duration))))

/** A wait fails when nothing has changed for this long. */
export const stalled: Duration.Duration = scaled("60 seconds")

/** A wait also fails after this long, however much changes; below the time limit of a test in `vitest.config.ts`. */
const longest = Duration.min(scaled("5 minutes"), Duration.minutes(25))

/**
 * Decides when a wait has failed. `check` adds the time since the previous check, but at most one second: the time in
 * which the test process was not scheduled does not count, because it could not have noticed anything then.
 */
export const stallWatch = Effect.map(Clock.monotonicTimeNanos, (start) => {
  let checkedAt = start
  let waited = 0
  let last: unknown
  return {
    /** Returns why to give up, or `undefined`; `progress` is compared with that of the previous check. */
    check: (progress: unknown) =>
      Effect.map(Clock.monotonicTimeNanos, (now) => {
        waited += Math.min(Number(now - checkedAt) / 1e6, scaledMillis(1000))
        checkedAt = now
        if (progress !== last) waited = 0
        last = progress
        if (waited > Duration.toMillis(stalled)) return `No progress for ${Duration.format(stalled)}`
        if (Number(now - start) / 1e6 > Duration.toMillis(longest)) return `Not within ${Duration.format(longest)}`
        return undefined
      })
  }
})

/** How {@link waitUntil} polls and when it gives up. */
export interface WaitOptions<A> {
  /**
   * A value that changes while the condition is being approached: a count, a position, joined text. Compared with
   * `===`.
   */
  readonly progress?: ((value: A) => unknown) | undefined
  /** The pause between two polls. Default 20 ms. */
  readonly every?: Duration.Input | undefined
  /** Text for the error, computed when the wait fails. */
  readonly describe?: ((value: A) => string) | undefined
}

/** Repeats `look` until its result satisfies `holds`. Dies when the progress has not changed for {@link stalled}. */
export const waitUntil = <A, E, R>(
  what: string,
  look: Effect.Effect<A, E, R>,
  holds: (value: A) => boolean,
  options: WaitOptions<A> = {}
): Effect.Effect<A, E, R> =>
  Effect.gen(function*() {
    const watch = yield* stallWatch
    while (true) {
      const value = yield* look
      if (holds(value)) return value
      const stalled = yield* watch.check(options.progress?.(value))
      if (stalled !== undefined) {
        return yield* Effect.die(
          new Error(`${stalled} while waiting until ${what}\n${options.describe?.(value) ?? ""}`)
        )
      }
      yield* Effect.sleep(options.every ?? "20 millis")
    }
  })

/**
 * Fails the test when `self` takes far too long: `limit` is multiplied by {@link slowness}. For effects without a
 * condition to poll.
 */
export const within = (limit: Duration.Input) => <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.timeoutOrElse(self, {
    duration: scaled(limit),
    orElse: () => Effect.die(new Error(`Not finished after ${Duration.format(scaled(limit))}`))
  })
