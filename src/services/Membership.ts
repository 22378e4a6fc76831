/**
 * Membership: who takes part in a replica set, and who still lives.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import type { StoreError, WorkerEvicted, WorkerIdInUse, WorkerReplaced } from "../schema/Errors.ts"
import type { Generation, Member } from "../schema/Generation.ts"
import type { LivenessRules, Registration, WorkerState } from "../schema/Worker.ts"

/**
 * @category options
 * @since 0.1.0
 */
export interface JoinOptions {
  readonly replicaSet: string
  readonly workerId: string
  readonly projections: ReadonlyArray<string>
  readonly rules: LivenessRules
}

/**
 * @category services
 * @since 0.1.0
 */
export class Membership extends Context.Service<Membership, {
  /**
   * Registers a worker under a new incarnation, present and with a first heartbeat, and wakes the others. The scope
   * ends the presence; it does not unregister (see `Decisions.decide` with `leaving`). A dead earlier registration
   * under the same id is replaced. Otherwise this waits: if the earlier registration sends a heartbeat, it is alive and
   * this fails with `WorkerIdInUse`; without a heartbeat it is replaced when it is stale.
   */
  readonly join: (options: JoinOptions) => Effect.Effect<Registration, StoreError | WorkerIdInUse, Scope.Scope>

  /**
   * Says that the worker lives. Fails with `WorkerEvicted` when it was given up for dead, with `WorkerReplaced` when
   * another process has taken its id since.
   */
  readonly heartbeat: (
    registration: Registration
  ) => Effect.Effect<void, StoreError | WorkerEvicted | WorkerReplaced>

  /**
   * Records where the worker is, for people to read; a generation in which all members are recorded as running becomes
   * active. Nothing decides by it. Where it could not be written, the next decision's `recorded` and `activates` say so.
   */
  readonly report: (
    registration: Registration,
    at: { readonly state: WorkerState; readonly generation: Generation | undefined }
  ) => Effect.Effect<void, StoreError>

  /**
   * Returns the incarnations of the members that have unregistered by themselves. A former member that is not among
   * them was lost: it was evicted, or its row was deleted. Used for log messages only.
   */
  readonly departed: (
    registration: Registration,
    members: ReadonlyArray<Member>
  ) => Effect.Effect<ReadonlySet<bigint>, StoreError>

  /**
   * Wake-ups for the worker's coordination, coalesced: something in its replica set may have changed, the neighbour
   * that it watches may have died, or messages may have been missed. Losing one costs a poll interval, nothing else.
   */
  readonly wakeUps: (registration: Registration) => Effect.Effect<Queue.Dequeue<void>, never, Scope.Scope>

  /** Watches the worker's neighbour in the generation's ring from now on, instead of whom it watched before. */
  readonly watch: (registration: Registration, generation: Generation) => Effect.Effect<void>
}>()("pupsourcing-orchestrator/services/Membership") {}
