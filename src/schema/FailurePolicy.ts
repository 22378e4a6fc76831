/** What happens to an event that a projection's handler cannot handle. */
import type { Event } from "./Event.ts"

/**
 * What happens to an event that the handler cannot handle:
 *
 * - `"halt"`: its range is halted at it. Other ranges and projections continue.
 * - `"park"`: it is stored with the parked events, and later events with the same key queue behind it. Other keys
 *   continue.
 * - `"skip"`: it is logged at level Error, and later events continue without its effects.
 *
 * @category models
 * @since 0.1.0
 */
export type FailureDecision = "halt" | "park" | "skip"

/**
 * A decision for every failure, or a function from the handler's typed error and the event to a decision. The function
 * is not called for defects, handlers that take too long, and lost connections: these halt the range.
 *
 * @category models
 * @since 0.1.0
 */
export type OnFailure<E> = FailureDecision | ((error: E, event: Event) => FailureDecision)

/** A typed error of a handler. */
export interface Typed {
  readonly error: unknown
}

/**
 * Decides on an event. `typed` is undefined if the event failed for another reason than a typed error. Throws what the
 * function throws; a value that is not a decision halts the range.
 */
export const decide = (policy: OnFailure<never>, event: Event, typed: Typed | undefined): FailureDecision => {
  if (typeof policy !== "function") return policy
  if (typed === undefined) return "halt"
  const decision = policy(typed.error as never, event)
  return decision === "park" || decision === "skip" ? decision : "halt"
}

/** Whether the projection may park events. */
export const mayPark = (policy: OnFailure<never>): boolean => policy === "park" || typeof policy === "function"
