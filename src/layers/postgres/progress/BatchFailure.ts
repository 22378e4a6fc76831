/**
 * What the failure of a batch means. The functions are pure; `CheckpointStorePostgres.commit` acts on their result.
 */
import * as Cause from "effect/Cause"
import * as Data from "effect/Data"
import * as SqlError from "effect/sql/SqlError"
import { StoreError } from "../../../schema/Errors.ts"
import { type EpochEnded, type Fenced, HandlerFailure, TransientFailure } from "../../../services/CheckpointStore.ts"
import { tryRead } from "../../../services/ErrorText.ts"
import type { Server } from "../connection/Server.ts"
import {
  detailOf,
  isConflict,
  isConnectionLoss,
  isTransient,
  meaningOf,
  sqlErrorIn,
  toStoreError
} from "../connection/SqlErrors.ts"
import type { Transaction } from "./BatchTransaction.ts"

/** Why a batch is rolled back. A `SqlError` means that its connection is lost. */
export type RollBackReason = EpochEnded | Fenced | HandlerFailure | SqlError.SqlError | StoreError | TransientFailure

/** Raised to roll a batch back. The reason is recorded separately, because a failing ROLLBACK would hide it. */
export class RollBack extends Data.TaggedError("RollBack") {}

/** How far a batch had come when it failed. */
export interface Progress {
  /** Its transaction, if its first statement was answered. */
  readonly transaction: Transaction | undefined
  /** Whether its last statement has advanced the position, so that only COMMIT remained. */
  readonly hasAdvanced: boolean
  readonly rollBackReason: RollBackReason | undefined
}

export type BatchFailure = Data.TaggedEnum<{
  /** The connection was lost after the batch had begun: it may have committed. */
  readonly UnknownCommit: { readonly error: SqlError.SqlError }
  /** Nothing was committed. */
  readonly Failed: { readonly failure: EpochEnded | Fenced | HandlerFailure | StoreError | TransientFailure }
  /** The caller was interrupted. Nothing was committed, unless COMMIT had already been sent. */
  readonly Interrupted: { readonly cause: Cause.Cause<never> }
  readonly Died: { readonly defect: unknown }
}>
export const { $match: match, Died, Failed, Interrupted, UnknownCommit } = Data.taggedEnum<BatchFailure>()

const handling = "handle a batch"

/**
 * Classifies the failure of a batch's transaction. If a reason for the ROLLBACK was recorded, an error in the cause can
 * only be that of the ROLLBACK, which is ignored: a transaction without COMMIT is undone in any case. A lost connection
 * has precedence over the recorded reason.
 */
export const classify = (
  server: Server,
  cause: Cause.Cause<RollBack | SqlError.SqlError | StoreError>,
  { hasAdvanced, rollBackReason, transaction }: Progress
): BatchFailure => {
  if (Cause.hasInterrupts(cause)) {
    return Interrupted({ cause: Cause.fromReasons(cause.reasons.filter(Cause.isInterruptReason)) })
  }
  const raised = sqlErrorIn(cause)
  const lost = [rollBackReason, raised].find((error) => SqlError.isSqlError(error) && wasLost(error))
  if (SqlError.isSqlError(lost) && transaction !== undefined) return UnknownCommit({ error: lost })
  if (rollBackReason !== undefined && !SqlError.isSqlError(rollBackReason)) return Failed({ failure: rollBackReason })
  if (raised === undefined) {
    const error = Cause.squash(cause)
    return error instanceof StoreError ? Failed({ failure: error }) : Died({ defect: error })
  }
  if (isTransient(raised)) return Failed({ failure: transient(raised) })
  if (isAbortedTransaction(raised)) return Failed({ failure: ofHandler(texts.ignoredStatement, Cause.fail(raised)) })
  // COMMIT fails because of what the handler wrote, for example a violated deferred constraint.
  if (hasAdvanced && !isServersOwn(raised)) {
    return Failed({ failure: new HandlerFailure({ cause: Cause.fail(raised) }) })
  }
  return Failed({ failure: toStoreError(server, handling)(raised) })
}

/**
 * Classifies a handler's failure, before the state of the connection is determined. A failure that throws when it is
 * inspected is attributed to the handler.
 */
export const classifyHandler = (server: Server, cause: Cause.Cause<unknown>): RollBackReason =>
  tryRead(() => inspect(server, cause)) ?? new HandlerFailure({ cause })

/**
 * The same for a handler outside of a transaction. A lost connection may be one to another database, so it is neither
 * attributed to the stores' server nor counted against the handler.
 */
export const classifyOutside = (
  server: Server,
  cause: Cause.Cause<unknown>
): HandlerFailure | StoreError | TransientFailure => {
  const reason = classifyHandler(server, cause)
  if (SqlError.isSqlError(reason)) return new TransientFailure({ kind: "refusal", cause: reason })
  return reason instanceof HandlerFailure || reason instanceof TransientFailure || reason instanceof StoreError
    ? reason
    : new HandlerFailure({ cause })
}

const inspect = (server: Server, cause: Cause.Cause<unknown>): RollBackReason => {
  if (Cause.hasInterrupts(cause)) return ofHandler(texts.ownInterruption, cause)
  const error = sqlErrorWithin(cause)
  if (error === undefined) return new HandlerFailure({ cause })
  if (isReleasedConnection(error)) return ofHandler(texts.releasedConnection, cause)
  if (isAbortedTransaction(error)) return ofHandler(texts.ignoredStatement, cause)
  if (isTransient(error)) return transient(error)
  // Most other errors of the server recur when the statement is repeated; even a missing file is mostly one that the
  // statement refers to.
  if (meaningOf(error).isDeviceFault === true) return toStoreError(server, handling)(error)
  return wasLost(error) ? error : new HandlerFailure({ cause })
}

/** The handler's failure for an error that `isChangedTransaction` accepts. */
export const changedTransaction = (error: SqlError.SqlError): HandlerFailure =>
  ofHandler(texts.changedTransaction, Cause.fail(error))

/** The advance matched no row because it ran in another transaction than the first statement. */
export const endedTransaction = (): HandlerFailure => ofHandler(texts.endedTransaction, Cause.empty)

/** The transient failure for an error that `isTransient` accepts. */
export const transient = (cause: SqlError.SqlError): TransientFailure =>
  new TransientFailure({ kind: isConflict(cause) ? "conflict" : "refusal", cause })

/** The handler's failure, preceded by a description of what it did wrong. */
const ofHandler = (description: string, cause: Cause.Cause<unknown>): HandlerFailure =>
  // `Cause.combine` would call equality methods of the value that the handler failed with.
  new HandlerFailure({ cause: Cause.fromReasons([...Cause.die(new Error(description)).reasons, ...cause.reasons]) })

const texts = {
  ignoredStatement:
    "A statement of the handler failed and its error was ignored, so that PostgreSQL aborted the whole transaction. Let the error through, or run the statement inside sql.withTransaction, which isolates it in a savepoint.",
  releasedConnection:
    "A statement ran on the connection of a transaction that had ended: something that the handler started outlived its batch. Start it with Effect.forkChild, or wait for it before the handler ends.",
  changedTransaction:
    "The progress could not be written, because the handler changed the role or the access mode of the transaction. Restore them before the handler ends (RESET ROLE).",
  endedTransaction:
    "The handler has ended the transaction that it runs in, so that what it wrote and its progress did not commit together. Leave COMMIT and ROLLBACK to the batch: to undo a part, fail inside sql.withTransaction.",
  ownInterruption:
    "The handler was interrupted, but not because its range was closed: it interrupted itself, or joined a fiber that was interrupted."
}

/**
 * The `SqlError` inside a handler's failure. Handlers wrap database errors in errors of their own; whether the batch
 * can be retried depends on the inner error.
 */
const sqlErrorWithin = (cause: Cause.Cause<unknown>): SqlError.SqlError | undefined => {
  const direct = sqlErrorIn(cause)
  if (direct !== undefined) return direct
  for (const reason of cause.reasons) {
    let error: unknown = Cause.isFailReason(reason)
      ? reason.error
      : Cause.isDieReason(reason)
      ? reason.defect
      : undefined
    for (let depth = 0; depth < 8 && typeof error === "object" && error !== null; depth++) {
      if (SqlError.isSqlError(error)) return error
      error = "cause" in error ? error.cause : undefined
    }
  }
  return undefined
}

const isReleasedConnection = (error: SqlError.SqlError): boolean => detailOf(error) === "Pinned connection was released"

const isAbortedTransaction = (error: SqlError.SqlError): boolean =>
  meaningOf(error).isAborted === true || detailOf(error) === "COMMIT rolled back an aborted transaction"

/**
 * Whether the session is lost or could not be opened. Excludes the error of a statement on a released pinned
 * connection, which the handler caused.
 */
export const wasLost = (error: SqlError.SqlError): boolean => isConnectionLoss(error) && !isReleasedConnection(error)

/** Whether no statement was sent, because no connection could be opened. */
export const neverConnected = (error: SqlError.SqlError): boolean => error.reason.operation === "connect"

/** Whether the error is due to the server's state, not to what the handler wrote. */
const isServersOwn = (error: SqlError.SqlError): boolean =>
  error.reason._tag === "StatementTimeoutError" || meaningOf(error).isServerFault === true

/**
 * Whether an advance failed because the table is no longer visible or may no longer be written. The first statement of
 * the batch was able to read it, so the handler changed the transaction.
 */
export const isChangedTransaction = (error: SqlError.SqlError): boolean => meaningOf(error).isDenied === true
