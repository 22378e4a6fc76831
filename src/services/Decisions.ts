/**
 * Decisions: the only operation that forms generations, claims and releases ranges, and evicts workers.
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
  /** Returns the decision that `decide` would make now if it acquired every lock. Reads only. */
  readonly look: (request: Request) => Effect.Effect<Decision, StoreError>

  /**
   * Makes the decision of `Decision.decide` and applies it in one short transaction, which excludes decisions of the
   * replica set's other workers. Wakes the other workers if something changed. With `leaving`, it also marks the worker
   * as stopped.
   */
  readonly decide: (request: Request) => Effect.Effect<Decision, StoreError>
}>()("pupsourcing-orchestrator/services/Decisions") {}
