/**
 * The checkpoint store: progress that commits together with the read model, under a fence.
 *
 * @since 0.1.0
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { Checkpoint, Held } from "../schema/Checkpoint.ts"
import type { ForeignSqlClient, StoreError } from "../schema/Errors.ts"
import type { ServerLife } from "./EventStore.ts"

/**
 * The range no longer belongs to who wrote: nothing was committed.
 *
 * @category errors
 * @since 0.1.0
 */
export class Fenced extends Data.TaggedError("Fenced")<{ readonly projection: string }> {}

/**
 * The batch did not commit for a passing reason; the same batch may be tried again.
 *
 * @category errors
 * @since 0.1.0
 */
export class TransientFailure extends Data.TaggedError("TransientFailure")<{
  /**
   * `conflict`: a deadlock, a serialization failure or a lock timeout, caused by another transaction; `refusal`: a
   * statement timeout, a table that was changed in the meantime, or a server without enough memory or disk space;
   * `connection`: the session was lost, or the events were read in another server epoch.
   */
  readonly kind: "conflict" | "refusal" | "connection"
  readonly cause: unknown
}> {}

/**
 * The handler failed, or broke the rules of its transaction: nothing was committed.
 *
 * @category errors
 * @since 0.1.0
 */
export class HandlerFailure extends Data.TaggedError("HandlerFailure")<{
  readonly cause: Cause.Cause<unknown>
}> {}

/**
 * @category options
 * @since 0.1.0
 */
export interface BatchOptions {
  /** Where the range stands. */
  readonly from: bigint
  /**
   * How long the transaction may stand without a statement before the database ends it. It is kept alive while the
   * process lives, so that it means "process gone" and nothing else.
   */
  readonly idleTimeout: Duration.Duration
  /**
   * In which life of the server the work was read. In another one nothing is committed, and it is a `TransientFailure`
   * of the connection.
   */
  readonly life?: ServerLife | undefined
}

/**
 * @category services
 * @since 0.1.0
 */
export class CheckpointStore extends Context.Service<CheckpointStore, {
  /**
   * Runs `work` and then moves the range to the position that it comes back with, in one transaction: both happen or
   * neither. `work` finds the transaction in its context. A commit whose outcome is unknown is looked up before this
   * returns.
   */
  readonly commit: <E, R>(
    held: Held,
    options: BatchOptions,
    work: Effect.Effect<bigint, E, R>
  ) => Effect.Effect<void, Fenced | HandlerFailure | StoreError | TransientFailure, R>

  /** Moves the range's position without any work: nothing in between concerned the projection. `life` as for a batch. */
  readonly advance: (
    held: Held,
    options: { readonly from: bigint; readonly to: bigint; readonly life?: ServerLife | undefined }
  ) => Effect.Effect<void, Fenced | StoreError | TransientFailure>

  /**
   * Records that the range is halted, and why. `life` has the same meaning as for a batch. The error's text may be
   * shortened, so that it never prevents the halt from being recorded.
   */
  readonly halt: (
    held: Held,
    halt: {
      readonly at: bigint
      readonly life?: ServerLife | undefined
      readonly error: string
      readonly position: bigint
      readonly eventId: string
      /** Absent if it cannot be read: when the range is split, a part may then wrongly lose or keep the halt. */
      readonly aggregateId?: string | undefined
    }
  ) => Effect.Effect<void, Fenced | StoreError | TransientFailure>

  /** All rows of a projection, in range order; none when it has never run. */
  readonly rows: (projection: string) => Effect.Effect<ReadonlyArray<Checkpoint>, StoreError>

  /** Returns the texts that the database cannot store, such as those with characters outside its encoding. */
  readonly unstorable: (texts: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<string>, StoreError>

  /**
   * Fails when handlers that run in `context` would write through another client than the store's, so that read model
   * and progress would commit apart.
   */
  readonly checkClient: (
    context: Context.Context<never>,
    replicaSet: string
  ) => Effect.Effect<void, ForeignSqlClient>
}>()("pupsourcing-orchestrator/services/CheckpointStore") {}
