/**
 * What all conformance suites share. What a service means is said in its suite and nowhere else; each implementation
 * runs all of it. Tests keep apart by names of their own, since stores are shared and never empty.
 */
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import { scaledMillis } from "../support/TimeLimits.ts"

/** How time passes where an implementation runs. */
export interface Time {
  readonly advance: (millis: number) => Effect.Effect<void>
  /** For `it.layer`: real time needs real services. */
  readonly excludeTestServices: boolean
}

export const virtualTime: Time = { advance: (millis) => TestClock.adjust(millis), excludeTestServices: false }

export const realTime: Time = { advance: (millis) => Effect.sleep(millis), excludeTestServices: true }

/** A name that nothing else has. */
export const unique = (prefix: string): Effect.Effect<string> =>
  Effect.sync(() => `${prefix}-${globalThis.crypto.randomUUID()}`)

/** Rules under which nobody dies in a test, however slow the machine. */
export const patient = {
  heartbeatIntervalMillis: 20_000,
  staleWorkerTimeoutMillis: 60_000,
  presenceGraceMillis: 60_000
}

/** Rules under which a worker is dead soon: the rule that is named in the test counts, none of it before `dead`. */
export const hasty = {
  heartbeatIntervalMillis: 50,
  staleWorkerTimeoutMillis: scaledMillis(600),
  presenceGraceMillis: scaledMillis(600)
}

/** Longer than a worker lives in silence under the hasty rules. */
export const dead = scaledMillis(800)
