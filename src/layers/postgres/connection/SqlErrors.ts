/**
 * Classifies the driver's errors and converts them into store errors. The driver classifies lost connections, conflicts
 * and timeouts by itself; the table below states what other codes mean.
 */
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Predicate from "effect/Predicate"
import * as SqlError from "effect/sql/SqlError"
import {
  DatabaseUnavailable,
  ReadOnlyDatabase,
  StatementFailed,
  StoreError,
  UnsupportedDatabase
} from "../../../schema/Errors.ts"
import type { Server } from "./Server.ts"

type Condition = DatabaseUnavailable["condition"]

interface Meaning {
  /** There is no session. */
  readonly unavailable?: Condition
  /** The session is lost or could not be opened; a retry on a new session may succeed. */
  readonly isLost?: true
  /** The server lacks memory or disk space, usually not because of the statement that fails. */
  readonly isShortage?: true
  /** The error is due to the server's state, not to the statement: exhausted resources, an operator, a system error. */
  readonly isServerFault?: true
  /** A disk cannot be read or written. It may recover, and it fails other rows as well. */
  readonly isDeviceFault?: true
  /** A stored value cannot be read: it is damaged, in a missing file, invalid, or beyond a limit. */
  readonly isUnreadable?: true
  /** A text cannot be stored: the encoding cannot represent a character, or the text is too long for its column. */
  readonly isUnstorable?: true
  readonly isReadOnly?: true
  /** The table is no longer visible, or may no longer be written. */
  readonly isDenied?: true
  /** An earlier statement of the transaction has failed. */
  readonly isAborted?: true
  /** The queue of notifications, which all databases of a server share. */
  readonly isQueueFull?: true
}

const lost: Meaning = { unavailable: "connection lost", isLost: true }

/** By SQLSTATE, by class of SQLSTATEs (two characters), or by Node's code of a socket's error. */
const meanings: Readonly<Record<string, Meaning>> = {
  "22": { isUnreadable: true },
  "22001": { isUnstorable: true },
  "22021": { isUnstorable: true },
  "22P05": { isUnstorable: true },
  "25006": { isReadOnly: true, isDenied: true },
  "25P02": { isAborted: true },
  "25P03": lost,
  "25P04": lost,
  "28000": { unavailable: "not admitted" },
  "28P01": { unavailable: "wrong password" },
  "3D000": { unavailable: "unknown database" },
  "42501": { isDenied: true },
  "42P01": { isDenied: true },
  "53": { isServerFault: true },
  "53000": { isShortage: true },
  "53100": { isShortage: true },
  "53200": { isShortage: true },
  "53300": { unavailable: "too many connections", isLost: true },
  "54": { isUnreadable: true },
  "54000": { isQueueFull: true },
  "57": { isServerFault: true },
  "57P01": lost,
  "57P02": lost,
  "57P03": { unavailable: "shutting down", isLost: true },
  "57P04": lost,
  "57P05": lost,
  "58": { isServerFault: true },
  "58000": { isDeviceFault: true },
  "58030": { isDeviceFault: true },
  "58P01": { isUnreadable: true },
  "XX": { isServerFault: true, isUnreadable: true },
  EAI_AGAIN: { unavailable: "unknown host" },
  ECONNREFUSED: { unavailable: "refused" },
  EHOSTUNREACH: { unavailable: "unreachable" },
  ENETUNREACH: { unavailable: "unreachable" },
  ENOENT: { unavailable: "refused" },
  ENOTFOUND: { unavailable: "unknown host" },
  ETIMEDOUT: { unavailable: "unreachable" }
}

/** What the code of an error means; an empty record if it has none, or one that is not in the table. */
export const meaningOf = (error: SqlError.SqlError): Meaning => {
  const code = codeOf(error) ?? ""
  return { ...meanings[code.slice(0, 2)], ...meanings[code] }
}

/** The SQLSTATE, or the code of a socket error such as `ECONNREFUSED`. */
export const codeOf = (error: SqlError.SqlError): string | undefined => {
  const { cause } = error.reason
  return cause instanceof AggregateError
    ? cause.errors.map((error) => textOf(error, "code")).find((code) => code !== undefined)
    : textOf(cause, "code")
}

/** A field of the server's error message, for example its constraint. */
export const fieldOf = (error: SqlError.SqlError, name: string): string | undefined => textOf(error.reason.cause, name)

const textOf = (value: unknown, name: string): string | undefined =>
  Predicate.hasProperty(value, name) && typeof value[name] === "string" ? value[name] : undefined

/** The message of the server, the socket or the driver. */
export const detailOf = (error: SqlError.SqlError): string => {
  const { cause } = error.reason
  return cause instanceof Error ? cause.message : error.reason.message ?? error.message
}

/** The error of a connection that is considered lost. */
export const connectionLost = (message: string): SqlError.SqlError =>
  new SqlError.SqlError({
    reason: new SqlError.ConnectionError({ cause: new Error(message), message, operation: "query" })
  })

/** The error of a statement that took too long. */
export const statementTimeout = (message: string): SqlError.SqlError =>
  new SqlError.SqlError({
    reason: new SqlError.StatementTimeoutError({ cause: new Error(message), message, operation: "query" })
  })

/** Whether the session is lost or could not be opened; a retry on a new session may succeed. */
export const isConnectionLoss = (error: SqlError.SqlError): boolean =>
  error.reason._tag === "ConnectionError" || meaningOf(error).isLost === true

/** Whether the transaction failed in a conflict with another one; a retry may succeed. */
export const isConflict = (error: SqlError.SqlError): boolean =>
  error.reason._tag === "DeadlockError" || error.reason._tag === "SerializationError" ||
  error.reason._tag === "LockTimeoutError"

/**
 * Whether a retry may succeed, on this session or another: after a conflict, a timeout, a change of a table, or a
 * shortage of a server's resource.
 */
export const isTransient = (error: SqlError.SqlError): boolean =>
  isConflict(error) || error.reason._tag === "StatementTimeoutError" || meaningOf(error).isShortage === true ||
  isStalePlan(error)

/** Matches the names of the driver's prepared statements. */
const driversStatement = /"effect_/

/**
 * Whether a prepared statement no longer exists, or no longer fits a table that was changed since. The driver prepares
 * it again, but that is too late for the current transaction.
 */
const isStalePlan = (error: SqlError.SqlError): boolean =>
  codeOf(error) === "26000" && driversStatement.test(detailOf(error)) ||
  codeOf(error) === "0A000" && fieldOf(error, "routine") === "RevalidateCachedQuery"

/** Whether a stored value cannot be read. */
export const cannotBeRead = (error: SqlError.SqlError): boolean =>
  meaningOf(error).isUnreadable === true || error.reason.message === "PgConnection: Failed to decode row"

/** Whether the connection was lost while it was used. */
export const hasLostConnection = (error: unknown): boolean =>
  error instanceof StoreError && error.reason._tag === "DatabaseUnavailable" &&
  error.reason.condition === "connection lost"

/** Whether `cannotBeRead` holds for the cause of a failed statement. */
export const isUnreadable = (error: unknown): error is StoreError & { readonly reason: StatementFailed } =>
  error instanceof StoreError && error.reason._tag === "StatementFailed" && SqlError.isSqlError(error.reason.cause) &&
  cannotBeRead(error.reason.cause)

/**
 * Returns the `SqlError` in a cause, whether it is a failure or a defect: the driver turns a failure into a defect when
 * the ROLLBACK after it fails too. Of several, a connection loss has precedence, because the session is lost regardless
 * of earlier errors. Returns undefined if the cause contains an interruption.
 */
export const sqlErrorIn = (cause: Cause.Cause<unknown>): SqlError.SqlError | undefined => {
  if (Cause.hasInterrupts(cause)) return undefined
  const errors = cause.reasons
    .map((reason) => Cause.isFailReason(reason) ? reason.error : Cause.isDieReason(reason) ? reason.defect : undefined)
    .filter((error) => SqlError.isSqlError(error))
  return errors.find(isConnectionLoss) ?? errors[0]
}

/** Why the database is unavailable, if that is what the error means. */
const conditionOf = (error: SqlError.SqlError): Condition | undefined => {
  const { _tag: tag, operation } = error.reason
  const condition = meaningOf(error).unavailable
  if (condition !== undefined) return condition
  // A protocol violation: a pooler's reason for rejecting the connection, which only its own message describes.
  if (codeOf(error) === "08P01") return undefined
  if (tag === "AuthenticationError") return "wrong password"
  if (isTlsFailure(error)) return "TLS failed"
  if (tag === "StatementTimeoutError" || tag === "LockTimeoutError") return "no answer in time"
  if (tag !== "ConnectionError") return undefined
  return operation === "connect" ? "unreachable" : "connection lost"
}

/** Errors of untrusted certificates have Node's codes; earlier TLS errors have the driver's own messages. */
const isTlsFailure = (error: SqlError.SqlError): boolean =>
  /CERT|^ERR_(TLS|SSL)|^EPROTO$|^UNABLE_TO_(GET|VERIFY)/.test(codeOf(error) ?? "") ||
  error.reason.message === "PgConnection: Server refused TLS"

/**
 * Whether a statement that commits by itself may have committed although it failed. It has not if the server reported
 * an error and kept the session, or if there was no connection on which to send it.
 */
const mayHaveCommitted = (error: SqlError.SqlError): boolean => {
  const isRefused = fieldOf(error, "severityUnlocalized") === "ERROR"
  return !isRefused && error.reason.operation !== "connect"
}

/** The error of a database that is unavailable for another reason than an error of the driver. */
export const unavailable = (server: Server, condition: Condition, cause: Error): StoreError =>
  new StoreError({ reason: new DatabaseUnavailable({ ...server, condition, cause }) })

export const readOnly = ({ server }: Server): StoreError => new StoreError({ reason: new ReadOnlyDatabase({ server }) })

export const unsupported = (fields: { readonly problem: string; readonly advice: string }): StoreError =>
  new StoreError({ reason: new UnsupportedDatabase(fields) })

/**
 * Returns a function that converts the driver's error into this library's. `autocommit`: the statement changes data and
 * commits by itself, so its outcome is unknown when its answer is lost.
 */
export const toStoreError = (
  server: Server,
  operation: string,
  options?: { readonly autocommit?: boolean }
) =>
(error: SqlError.SqlError): StoreError => {
  const condition = conditionOf(error)
  const outcome = options?.autocommit === true && mayHaveCommitted(error) ? { mayHaveCommitted: true as const } : {}
  if (condition !== undefined) {
    return new StoreError({
      reason: new DatabaseUnavailable({ ...server, condition, detail: detailOf(error), cause: error, ...outcome })
    })
  }
  if (meaningOf(error).isReadOnly === true) return readOnly(server)
  const code = codeOf(error)
  const constraint = fieldOf(error, "constraint")
  return new StoreError({
    reason: new StatementFailed({
      operation,
      detail: detailOf(error),
      cause: error,
      ...(code === undefined ? {} : { code }),
      ...(constraint === undefined ? {} : { constraint }),
      ...outcome
    })
  })
}

/**
 * Converts the driver's errors of an effect into this library's, including those that arrive as defects.
 */
export const refail = (server: Server, operation: string, options?: { readonly autocommit?: boolean }) =>
<A, E, R>(
  self: Effect.Effect<A, E, R>
): Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R> =>
  Effect.catchCause(self, (cause): Effect.Effect<never, Exclude<E, SqlError.SqlError> | StoreError> => {
    const error = sqlErrorIn(cause)
    // The cause contains no error of the driver, or the caller was interrupted and does not receive the failure.
    return error === undefined
      ? Effect.failCause(cause as Cause.Cause<Exclude<E, SqlError.SqlError>>)
      : Effect.fail(toStoreError(server, operation, options)(error))
  })
