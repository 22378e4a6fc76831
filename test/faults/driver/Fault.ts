/** The interface of a fault. */
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as Harness from "../Harness.ts"
import type { Driver } from "./Driver.ts"
import type { Way } from "./Network.ts"

/** The rows before a fault, and after every event was handled again. */
export interface Course {
  readonly before: Harness.Rows
  readonly after: Harness.Rows
}

/** One kind of fault. */
export interface Fault {
  /** The name in the report; unique. */
  readonly kind: string
  /** Why this machine cannot run it, or undefined. */
  readonly unavailable?: Effect.Effect<string | undefined, never, Driver>
  /**
   * Injects the fault and returns when it has ended; the recovery is timed from that moment. The scope, which closes when
   * this effect ends, undoes its changes.
   */
  readonly inject: Effect.Effect<void, unknown, Driver | Scope.Scope>
  /** Milliseconds after the fault within which the live workers must have handled every event. Default 30,000. */
  readonly recoversWithin?: number
  /** Milliseconds after the fault within which the live workers must hold every range, as the median of a run. */
  readonly takenWithin?: number
  /** It affects all workers, as a restart of the server does, so no other fault is injected at the same time. */
  readonly alone?: boolean
  /**
   * Two faults on the same resource are not injected at the same time. The first to end would undo the other's changes
   * to a network path, and a worker whose sessions end while it starts may exit.
   */
  readonly on?: Way["kind"] | "start"
  /** Checks further conditions and returns the violations. Skipped if another fault was injected at the same time. */
  readonly judge?: (course: Course) => ReadonlyArray<string>
}

/** Returns the ids of the workers whose registration existed before and is stopped or gone afterwards. */
export const replaced = ({ after, before }: Course): ReadonlyArray<string> =>
  before.workers.filter((worker) =>
    worker.state !== "stopped" &&
    !after.workers.some((other) => other.incarnation === worker.incarnation && other.state !== "stopped")
  ).map(({ workerId }) => workerId)

/** All workers kept their registrations: none was evicted. */
export const nobodyReplaced = (course: Course): ReadonlyArray<string> =>
  replaced(course).map((workerId) => `${workerId} has lost its registration`)
