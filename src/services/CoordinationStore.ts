/**
 * Decisions: the only operation that forms generations, claims and releases ranges, and evicts workers.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { StoreError } from "../schema/Errors.ts"
import type { Plan, Request } from "../schema/Plan.ts"

/**
 * @category services
 * @since 0.1.0
 */
export class CoordinationStore extends Context.Service<CoordinationStore, {
  /** Returns the decision that `decide` would make now if it acquired every lock. Reads only. */
  readonly preview: (request: Request) => Effect.Effect<Plan, StoreError>

  /**
   * Computes the plan of `Plan.make` and applies it in one short transaction, which excludes decisions of the
   * replica set's other workers. Wakes the other workers if something changed. With `leaving`, it also marks the worker
   * as stopped.
   */
  readonly apply: (request: Request) => Effect.Effect<Plan, StoreError>
}>()("pupsourcing-orchestrator/services/CoordinationStore") {}
