/**
 * Helpers of the conformance suites. The suite of a service defines its behaviour, and every implementation runs the
 * whole suite. Tests isolate themselves by unique names, because stores are shared and never empty.
 */
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import { scaledMillis } from "../../src/testing/TimeLimits.ts"

/** Controls time for an implementation: virtual or real. */
export interface Time {
  readonly advance: (millis: number) => Effect.Effect<void>
  /** For `it.layer`: real time needs real services. */
  readonly excludeTestServices: boolean
}

export const virtualTime: Time = { advance: (millis) => TestClock.adjust(millis), excludeTestServices: false }

export const realTime: Time = { advance: (millis) => Effect.sleep(millis), excludeTestServices: true }

/** A unique name. */
export const unique = (prefix: string): Effect.Effect<string> =>
  Effect.sync(() => `${prefix}-${globalThis.crypto.randomUUID()}`)

/** Liveness rules under which no worker is declared dead during a test, however slow the machine. */
export const patient = {
  heartbeatIntervalMillis: 20_000,
  staleWorkerTimeoutMillis: 60_000,
  presenceGraceMillis: 60_000
}

/** Liveness rules under which a silent or absent worker is dead after less than `dead` milliseconds. */
export const hasty = {
  heartbeatIntervalMillis: 50,
  staleWorkerTimeoutMillis: scaledMillis(600),
  presenceGraceMillis: scaledMillis(600)
}

/** Milliseconds after which a worker without a heartbeat is dead under the `hasty` rules. */
export const dead = scaledMillis(800)
