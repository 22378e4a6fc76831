/**
 * The checkpoint store: fenced progress that commits in the same transaction as the read model.
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
import type { ServerEpoch } from "./EventStore.ts"

/**
 * The caller no longer owns this range; nothing was committed.
 *
 * @category errors
 * @since 0.1.0
 */
export class Fenced extends Data.TaggedError("Fenced")<{ readonly projection: string }> {}

/**
 * The write failed for a transient reason and can be retried. After a `connection` failure, read the events again
 * first.
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
 * The handler failed or broke the rules of its transaction; nothing was committed.
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
  /** The range's position before the batch. */
  readonly from: bigint
  /**
   * How long the transaction may be idle before the database ends it. The store keeps the transaction alive while the
   * process runs, so that the timeout fires only for a process that is dead, frozen, cut off or blocked by a handler.
   */
  readonly idleTimeout: Duration.Duration
  /**
   * The server epoch in which the events were read. In another epoch nothing is committed, and the batch fails with a
   * `TransientFailure` of kind `connection`.
   */
  readonly epoch?: ServerEpoch | undefined
}

/**
 * @category services
 * @since 0.1.0
 */
export class CheckpointStore extends Context.Service<CheckpointStore, {
  /**
   * Runs `work` and then moves the range to the position that `work` returns, in one transaction: both commit, or
   * neither does. The transaction is in the context of `work`. An unknown commit outcome is resolved before this
   * returns.
   */
  readonly commit: <E, R>(
    held: Held,
    options: BatchOptions,
    work: Effect.Effect<bigint, E, R>
  ) => Effect.Effect<void, Fenced | HandlerFailure | StoreError | TransientFailure, R>

  /**
   * Moves the range's position without any work, because no event in between matched the projection. `epoch` has the
   * same meaning as for a batch.
   */
  readonly advance: (
    held: Held,
    options: { readonly from: bigint; readonly to: bigint; readonly epoch?: ServerEpoch | undefined }
  ) => Effect.Effect<void, Fenced | StoreError | TransientFailure>

  /**
   * Records that the range is halted, and the reason. `epoch` has the same meaning as for a batch. The error's text may
   * be shortened, so that it never prevents the halt from being recorded.
   */
  readonly halt: (
    held: Held,
    halt: {
      readonly at: bigint
      readonly epoch?: ServerEpoch | undefined
      readonly error: string
      readonly position: bigint
      readonly eventId: string
      /** Absent if it cannot be read. If the range is split, a part may then wrongly lose or keep the halt. */
      readonly aggregateId?: string | undefined
    }
  ) => Effect.Effect<void, Fenced | StoreError | TransientFailure>

  /** Returns all rows of a projection in range order; none if the projection has never run. */
  readonly rows: (projection: string) => Effect.Effect<ReadonlyArray<Checkpoint>, StoreError>

  /** Returns the texts that the database cannot store, such as those with characters outside its encoding. */
  readonly unstorable: (texts: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<string>, StoreError>

  /**
   * Fails if handlers that run in `context` would write through a client other than the store's: read model and
   * progress would then commit separately.
   */
  readonly checkClient: (
    context: Context.Context<never>,
    replicaSet: string
  ) => Effect.Effect<void, ForeignSqlClient>
}>()("pupsourcing-orchestrator/services/CheckpointStore") {}
