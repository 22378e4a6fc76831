/**
 * The checkpoint store: progress of ranges, written under their fence, in the transaction of the read model.
 *
 * The store does not retry, except to find out whether a write whose answer was lost has committed. `RangeRunner`
 * retries after a `TransientFailure` and after any `StoreError` (`Retries.isRetried`). After `EpochEnded` it reads the
 * events again. After `Fenced`, the runner of the range ends, and the reconciler reads the rows again.
 */
import type * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type { Checkpoint, Held } from "../schema/Checkpoint.ts"
import type { ForeignSqlClient, StoreError } from "../schema/Errors.ts"
import type { Typed } from "../schema/FailurePolicy.ts"
import type { ServerEpoch } from "./EventStore.ts"
import type { Stores } from "./Stores.ts"

/** The caller no longer holds the range, or not at the given position; nothing was written. A retry cannot help. */
export class Fenced extends Data.TaggedError("Fenced")<{ readonly projection: string }> {}

/**
 * The server epoch in which the events were read has ended: the server may have lost them, and may reissue their
 * positions. Nothing was written. A retry cannot help until the events have been read again.
 */
export class EpochEnded extends Data.TaggedError("EpochEnded") {
  override get message(): string {
    return "The database server was restarted or replaced, or the session that read the events was lost"
  }
}

/** The write failed for a transient reason; nothing was written. A retry can help. */
export class TransientFailure extends Data.TaggedError("TransientFailure")<{
  /**
   * - `conflict`: a deadlock, a serialization failure or a lock timeout, caused by another transaction.
   * - `refusal`: a statement timeout, a table that was changed in the meantime, or a server without enough memory or
   *   disk space.
   * - `connection`: the session was lost.
   */
  readonly kind: "conflict" | "refusal" | "connection"
  readonly cause: unknown
}> {}

/** The handler failed or broke the rules of its transaction; nothing was written. */
export class HandlerFailure extends Data.TaggedError("HandlerFailure")<{
  readonly cause: Cause.Cause<unknown>
  /** The typed error with which the handler has failed. Absent for a defect, and for a rule that it has broken. */
  readonly typed?: Typed | undefined
}> {}

/**
 * The isolation level of a batch's transaction; see the option `isolation`.
 *
 * @category models
 * @since 0.1.0
 */
export type Isolation = "read committed" | "repeatable read" | "serializable"

export interface BatchOptions {
  /** The range's position before the batch. */
  readonly from: bigint
  /**
   * How long the transaction may be idle before the database ends it. The store keeps the transaction alive while the
   * process runs, so that the timeout fires only for a process that is dead, frozen, cut off or blocked by a handler.
   */
  readonly idleTimeout: Duration.Duration
  /**
   * The server epoch in which the events were read. In another epoch nothing is written, and the write fails with
   * `EpochEnded`.
   */
  readonly epoch?: ServerEpoch | undefined
  /** Default: that of the client's sessions. Stores whose transactions are always serializable ignore it. */
  readonly isolation?: Isolation | undefined
}

export interface CheckpointStore {
  /**
   * Runs `work` and then moves the range to the position that `work` returns, in one transaction: both commit, or
   * neither does. The transaction is in the context of `work`. If the answer to the commit is lost, this waits
   * until the database is reachable, then looks up the outcome by the position. If `work` does not move the range, the
   * outcome cannot be looked up: once the transaction has ended, this fails with a `TransientFailure`, although `work`
   * may have committed. The caller then reads what `work` changes.
   *
   * If the caller is interrupted, `work` is interrupted and the transaction rolled back, unless it is already being
   * committed. Work that does not stop may be left behind; it cannot commit.
   */
  readonly commit: <E, R>(
    held: Held,
    options: BatchOptions,
    work: Effect.Effect<bigint, E, R>
  ) => Effect.Effect<void, EpochEnded | Fenced | HandlerFailure | StoreError | TransientFailure, R>

  /**
   * Moves the range from one position to another without any work, because no event in between matches the projection.
   * Concurrent calls share one statement. If its answer is lost, this looks up the outcome, like `commit`.
   */
  readonly advance: (
    held: Held,
    options: { readonly from: bigint; readonly to: bigint; readonly epoch?: ServerEpoch | undefined }
  ) => Effect.Effect<void, EpochEnded | Fenced | StoreError | TransientFailure>

  /** Returns the failure of a handler that ran outside of the store's transactions, as `commit` would. */
  readonly classifyHandler: (cause: Cause.Cause<unknown>) => HandlerFailure | StoreError | TransientFailure

  /**
   * Records that the range is halted, and the reason. If the answer is lost, this fails with a `TransientFailure`:
   * recording a halt twice is harmless. A later `commit` or `advance` clears the halt. A requested skip of the same event
   * is kept: it was requested while the event was tried again.
   */
  readonly halt: (
    held: Held,
    halt: {
      /** The range's position. */
      readonly at: bigint
      readonly epoch?: ServerEpoch | undefined
      /** Is shortened or reduced to what the database can store, so that it never prevents the record. */
      readonly error: string
      /** Position and id of the event that could not be handled. */
      readonly position: bigint
      readonly eventId: string
      /**
       * The text of the event's key (`PartitionKey.of`). Absent if it cannot be read. If the range is split, a part may
       * then wrongly lose or keep the halt.
       */
      readonly key?: string | undefined
    }
  ) => Effect.Effect<void, EpochEnded | Fenced | StoreError | TransientFailure>

  /** Returns all rows of a projection in the order of their ranges; none if the projection has never run. */
  readonly rows: (projection: string) => Effect.Effect<ReadonlyArray<Checkpoint>, StoreError>

  /** Returns the texts that the database cannot store, such as those with characters outside its encoding. */
  readonly unstorable: (texts: ReadonlyArray<string>) => Effect.Effect<ReadonlyArray<string>, StoreError>

  /**
   * Fails if handlers that run in `context` would write through a client other than the store's: read model and
   * progress would then commit separately. The developer fixes this; a retry cannot help.
   */
  readonly checkClient: (
    context: Context.Context<never>,
    replicaSet: string
  ) => Effect.Effect<void, ForeignSqlClient>
}

export const CheckpointStore = Context.Service<Stores, CheckpointStore>(
  "pupsourcing-orchestrator/services/CheckpointStore"
)
