/**
 * What a fault is to the driver.
 */
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as Harness from "../Harness.ts"
import type { Driver } from "./Driver.ts"
import type { Way } from "./Network.ts"

/** The rows before a fault, and after everything was handled again. */
export interface Course {
  readonly before: Harness.Rows
  readonly after: Harness.Rows
}

/** One kind of fault. */
export interface Fault {
  /** As the report calls it; unique. */
  readonly kind: string
  /** Why it cannot be done on this machine, or nothing. */
  readonly unavailable?: Effect.Effect<string | undefined, never, Driver>
  /**
   * Makes it happen, and ends when it is over: from then on the recovery is timed. What it changes is put back by the
   * scope, which closes at its end.
   */
  readonly inject: Effect.Effect<void, unknown, Driver | Scope.Scope>
  /** Milliseconds after the end within which all must be handled by the living again. Default 30,000. */
  readonly recoversWithin?: number
  /** Milliseconds after the end within which the living must hold every range, in the median of a run. */
  readonly takenWithin?: number
  /** It changes what all see, as a restart of the server does: nothing else is injected at the same time. */
  readonly alone?: boolean
  /**
   * Two on the same are not injected at the same time. Of two that change a way to the server the first to end would end
   * both; a worker whose sessions end while it starts is right to end too.
   */
  readonly on?: Way["kind"] | "start"
  /** What else must hold; gives what does not. Not asked when another fault went on at the same time. */
  readonly judge?: (course: Course) => ReadonlyArray<string>
}

/** A registration that stands before and does not afterwards, by its worker's id. */
export const replaced = ({ after, before }: Course): ReadonlyArray<string> =>
  before.workers.filter((worker) =>
    worker.state !== "stopped" &&
    !after.workers.some((other) => other.incarnation === worker.incarnation && other.state !== "stopped")
  ).map(({ workerId }) => workerId)

/** The workers that were there are there, by the same registrations: nobody was evicted. */
export const nobodyReplaced = (course: Course): ReadonlyArray<string> =>
  replaced(course).map((workerId) => `${workerId} has lost its registration`)
