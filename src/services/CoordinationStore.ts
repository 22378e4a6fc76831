/**
 * The coordination store: the only place where generations are formed, ranges claimed, released and renewed, and
 * workers evicted.
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
   * of the replica set's other workers. It evicts dead workers, forms the next generation, releases what this worker no
   * longer owns or processes, and claims what is free in its share. Wakes the other workers if something changed. With
   * `leaving`, it also marks the worker as stopped.
   */
  readonly apply: (request: Request) => Effect.Effect<Plan, PlanError | StoreError>
}

export const CoordinationStore = Context.Service<Stores, CoordinationStore>(
  "pupsourcing-orchestrator/services/CoordinationStore"
)
