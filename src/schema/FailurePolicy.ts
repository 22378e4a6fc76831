/** What happens to an event that a projection's handler cannot handle. */
import * as Predicate from "effect/Predicate"
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
 * A decision for each typed error of the handler, by tag. An error whose tag is not listed halts the range.
 *
 * @category models
 * @since 0.1.0
 */
export type FailureDecisions<E> = { readonly [Tag in TagOf<E>]?: FailureDecision | undefined }

/** Without errors, a key that cannot be a tag: a type without keys would accept any value. */
type TagOf<E> = [E] extends [never] ? "~none" : E extends { readonly _tag: infer Tag extends string } ? Tag : never

/**
 * A decision for every failure, decisions by the tag of the handler's typed error, or a function from that error and the
 * event to a decision. Decisions by tag and functions do not apply to defects, handlers that take too long, and lost
 * connections: these halt the range.
 *
 * @category models
 * @since 0.1.0
 */
export type OnFailure<E> =
  | FailureDecision
  | FailureDecisions<E>
  | ((error: E, event: Event) => FailureDecision)

/** The policy of any projection. */
export type Any = FailureDecision | Decisions | ((error: never, event: Event) => FailureDecision)

type Decisions = Readonly<Record<string, FailureDecision | undefined>>

/** A typed error of a handler. */
export interface Typed {
  readonly error: unknown
}

/**
 * Decides on an event. `typed` is undefined if the event failed for another reason than a typed error. Throws what the
 * function throws; a value that is not a decision halts the range.
 */
export const decide = (policy: Any, event: Event, typed: Typed | undefined): FailureDecision => {
  if (typeof policy === "string") return policy
  if (typed === undefined) return "halt"
  const decision = typeof policy === "function" ? policy(typed.error as never, event) : byTag(policy, typed.error)
  return decision === "park" || decision === "skip" ? decision : "halt"
}

const byTag = (decisions: Decisions, error: unknown): FailureDecision | undefined =>
  Predicate.hasProperty(error, "_tag") && typeof error._tag === "string" && Object.hasOwn(decisions, error._tag)
    ? decisions[error._tag]
    : undefined

/** Whether the projection may park events. */
export const mayPark = (policy: Any): boolean =>
  typeof policy === "object"
    ? Object.values(policy).includes("park")
    : policy === "park" || typeof policy === "function"

/** Whether the value is a policy. Only JavaScript code can pass another value. */
export const isPolicy = (value: unknown): value is Any =>
  typeof value === "function" || isDecision(value)
  || (Predicate.isObject(value) && Object.values(value).every((one) => one === undefined || isDecision(one)))

const isDecision = (value: unknown): boolean => value === "halt" || value === "park" || value === "skip"
