/**
 * The coordination store: the only place where generations are formed, ranges claimed, handed over, released and
 * renewed, and workers evicted.
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { StoreError } from "../schema/Errors.ts"
import type { Plan, PlanError, Request } from "../schema/Plan.ts"
import type { Stores } from "./Stores.ts"

export interface CoordinationStore {
  /** Returns the plan that `apply` would apply now if it acquired every lock. Reads only. */
  readonly preview: (request: Request) => Effect.Effect<Plan, PlanError | StoreError>

  /**
   * Makes a decision: computes the plan of `Plan.make` and applies it in one short transaction, which excludes decisions
   * of the replica set's other workers. It evicts dead workers, forms the next generation, and gives every range that no
   * live worker processes to the worker to whose share it belongs. Wakes the workers that are concerned. With `leaving`,
   * it also marks the worker as stopped.
   *
   * `previewed` is a plan for the same request. If it changes only rows of this worker (`Plan.changesOwnRowsOnly`), and
   * none of them has changed or is locked, it is applied without a new plan and without excluding other decisions.
   */
  readonly apply: (request: Request, previewed?: Plan) => Effect.Effect<Plan, PlanError | StoreError>
}

export const CoordinationStore = Context.Service<Stores, CoordinationStore>(
  "pupsourcing-orchestrator/services/CoordinationStore"
)
