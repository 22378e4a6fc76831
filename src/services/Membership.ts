/** Membership: which workers belong to a replica set, and which of them are alive. */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import type { StoreError, WorkerEvicted, WorkerIdInUse, WorkerReplaced } from "../schema/Errors.ts"
import type { Generation, Member } from "../schema/Generation.ts"
import type { Displayed, LivenessRules, Registration } from "../schema/Worker.ts"
import type { Stores } from "./Stores.ts"

/** The registration that a worker asks for. */
export interface JoinOptions {
  readonly replicaSet: string
  /** Unique among the live workers of the replica set. */
  readonly workerId: string
  /** Names of the projections that the worker carries. */
  readonly projections: ReadonlyArray<string>
  /** Determine when an earlier registration under the id can be replaced. */
  readonly rules: LivenessRules
}

/** How a worker's process is connected to the database. */
export interface Connections {
  /** Whether notifications arrive. While they do not, changes are found by polling. */
  readonly isListening: boolean
  /**
   * The number of sessions that the stores have opened for themselves, including lost ones whose loss has not been
   * detected yet. The pool of the application's client is not included.
   */
  readonly sessions: number
}

/**
 * Registers workers, keeps them alive, and wakes them when another worker of their replica set joins, leaves or dies.
 *
 * A `StoreError` can be retried if its `isRetryable` is true.
 */
export interface Membership {
  /**
   * Registers a worker under a new incarnation, with its presence and a first heartbeat. The generation that it forms
   * next wakes the other workers (`CoordinationStore.apply`).
   * The end of the scope ends the presence but does not unregister the worker (see `CoordinationStore.apply` with
   * `leaving`).
   *
   * **Gotchas**
   *
   * An earlier registration under the same id is replaced once `Worker.isReplaceable`; until then `join` waits. If the
   * earlier registration sends a heartbeat meanwhile, it is alive, and `join` fails with `WorkerIdInUse`; a retry does
   * not help until that worker has ended.
   */
  readonly join: (options: JoinOptions) => Effect.Effect<Registration, StoreError | WorkerIdInUse, Scope.Scope>

  /**
   * Renews the registration, and records what operators read about the worker if that has changed. A generation becomes
   * active once all its members are recorded as running in it. A row that another session has locked is not waited for,
   * and a record that cannot be written does not fail the heartbeat; a later one corrects it.
   *
   * Fails with `WorkerEvicted` if the registration was stopped or its row is missing: the worker has to register again.
   * Fails with `WorkerReplaced` if another process has registered under the same id since: the worker has to end.
   */
  readonly heartbeat: (
    registration: Registration,
    displayed?: Displayed
  ) => Effect.Effect<void, StoreError | WorkerEvicted | WorkerReplaced>

  /**
   * Returns the incarnations of the members that have unregistered themselves. Any other former member was lost: it was
   * evicted, or its row was deleted. Used for log messages only.
   */
  readonly departed: (
    registration: Registration,
    members: ReadonlyArray<Member>
  ) => Effect.Effect<ReadonlySet<bigint>, StoreError>

  /**
   * Coalesced wake-ups for the worker's coordination: something in its replica set may have changed, the neighbour that
   * it watches may have died, or notifications may have been missed. A lost wake-up costs one interval between the
   * reconciler's polls and nothing else.
   */
  readonly wakeUps: (registration: Registration) => Effect.Effect<Queue.Dequeue<void>, never, Scope.Scope>

  /** Watches the worker's neighbour in the generation's ring from now on, instead of the previous neighbour. */
  readonly watch: (registration: Registration, generation: Generation) => Effect.Effect<void>

  /** The process's connections, from memory. */
  readonly connections: Effect.Effect<Connections>
}

export const Membership = Context.Service<Stores, Membership>("pupsourcing-orchestrator/services/Membership")
