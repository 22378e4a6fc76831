/**
 * Decisions: the one door through which generations, the holding of ranges and evictions change.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { Decision, Request } from "../schema/Decision.ts"
import type { StoreError } from "../schema/Errors.ts"

/**
 * @category services
 * @since 0.1.0
 */
export class Decisions extends Context.Service<Decisions, {
  /** What `decide` would do now, if it got every lock. Reads only. */
  readonly look: (request: Request) => Effect.Effect<Decision, StoreError>

  /**
   * Takes the decision of `Decision.decide` and carries it out, alone among the workers of the replica set, in one
   * short transaction; wakes the others when something changed. With `leaving` it also marks the worker as stopped.
   */
  readonly decide: (request: Request) => Effect.Effect<Decision, StoreError>
}>()("pupsourcing-orchestrator/services/Decisions") {}
