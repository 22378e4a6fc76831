/**
 * Classifies the driver's errors and converts them into this library's.
 *
 * @since 0.1.0
 */
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as SqlError from "effect/sql/SqlError"
import { DatabaseUnavailable, ReadOnlyReplica, type StoreError, StoreFailure } from "../../../schema/Errors.ts"

/**
 * The server, database and user of a client, for messages; never the password.
 *
 * @category models
 * @since 0.1.0
 */
export interface Server {
  readonly server: string
  readonly database: string
  readonly user: string
}

/**
 * Returns the server of a client's configuration, read in the same way as the driver reads it.
 *
 * @category constructors
 * @since 0.1.0
 */
export const serverOf = (config: PgClientConfig): Server => {
  const raw = config.url === undefined ? undefined : Redacted.value(config.url)
  const url = raw !== undefined && URL.canParse(raw) ? new URL(raw) : undefined
  const host = config.host ?? (url?.hostname || url?.searchParams.get("host")) ?? "localhost"
  const port = config.port ?? (url?.port || url?.searchParams.get("port")) ?? 5432
  const user = config.username ?? (url?.username ? safeDecode(url.username) : url?.searchParams.get("user")) ??
    "(default)"
  const path = url?.pathname.replace(/^\//, "")
  return {
    server: config.path ?? `${host || "localhost"}:${port || 5432}`,
    database: config.database ?? (path ? safeDecode(path) : url?.searchParams.get("dbname")) ?? user,
    user
  }
}

const safeDecode = (text: string): string => {
  try {
    return decodeURIComponent(text)
  } catch {
    return text
  }
}

/**
 * The SQLSTATE, or the code of a socket error such as `ECONNREFUSED`.
 *
 * @category utils
 * @since 0.1.0
 */
export const codeOf = (error: SqlError.SqlError): string | undefined => {
  const cause: unknown = error.reason.cause
  const codeIn = (value: unknown): string | undefined =>
    typeof value === "object" && value !== null && "code" in value && typeof value.code === "string"
      ? value.code
      : undefined
  if (cause instanceof AggregateError) return cause.errors.map(codeIn).find((code) => code !== undefined)
  return codeIn(cause)
}

// The driver classifies these as unknown errors; for this library they mean that the session is lost.
const lostSession = new Set(["57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", "53300"])

/**
 * Whether the session is lost or could not be opened; a retry on a new session may succeed.
 *
 * @category guards
 * @since 0.1.0
 */
export const isConnectionLoss = (error: SqlError.SqlError): boolean =>
  error.reason._tag === "ConnectionError" || lostSession.has(codeOf(error) ?? "")

/**
 * Whether the transaction failed in a conflict with another one; a retry may succeed.
 *
 * @category guards
 * @since 0.1.0
 */
export const isConflict = (error: SqlError.SqlError): boolean =>
  error.reason._tag === "DeadlockError" || error.reason._tag === "SerializationError" ||
  error.reason._tag === "LockTimeoutError"

/** The server lacks a resource, such as memory or disk space, usually not because of the statement that fails. */
const shortage = new Set(["53000", "53100", "53200"])

/** Matches the names of the driver's prepared statements. */
const driversStatement = /"effect_/

/**
 * Whether a prepared statement no longer exists, or no longer fits a table that was changed since. The driver prepares
 * it again, but that is too late for the current transaction.
 */
const isStalePlan = (error: SqlError.SqlError): boolean => {
  const cause: unknown = error.reason.cause
  const code = codeOf(error)
  return (code === "26000" && driversStatement.test(detailOf(error))) ||
    (code === "0A000" && typeof cause === "object" && cause !== null && "routine" in cause &&
      cause.routine === "RevalidateCachedQuery")
}

/**
 * Whether a retry may succeed, on this session or another: after a conflict, a timeout, a change of a table, or a
 * shortage of a server's resource.
 *
 * @category guards
 * @since 0.1.0
 */
export const isPassing = (error: SqlError.SqlError): boolean =>
  isConflict(error) || error.reason._tag === "StatementTimeoutError" || shortage.has(codeOf(error) ?? "") ||
  isStalePlan(error)

/**
 * Returns the `SqlError` in a cause, whether it is a failure or a defect: the driver turns a failure into a defect when
 * the ROLLBACK after it fails too. Of several, a connection loss has precedence, because the session is lost regardless
 * of earlier errors. Returns undefined if the cause contains an interruption.
 *
 * @category utils
 * @since 0.1.0
 */
export const sqlErrorIn = (cause: Cause.Cause<unknown>): SqlError.SqlError | undefined => {
  if (Cause.hasInterrupts(cause)) return undefined
  const errors = cause.reasons
    .map((reason) => Cause.isFailReason(reason) ? reason.error : Cause.isDieReason(reason) ? reason.defect : undefined)
    .filter((error) => SqlError.isSqlError(error))
  return errors.find(isConnectionLoss) ?? errors[0]
}

const constraintOf = (error: SqlError.SqlError): { readonly constraint?: string } => {
  const cause: unknown = error.reason.cause
  return typeof cause === "object" && cause !== null && "constraint" in cause && typeof cause.constraint === "string"
    ? { constraint: cause.constraint }
    : {}
}

const detailOf = (error: SqlError.SqlError): string => {
  const cause: unknown = error.reason.cause
  return cause instanceof Error ? cause.message : error.reason.message ?? error.message
}

/**
 * Whether a stored value cannot be read: its bytes are damaged (class XX, or 58P01 for a missing file), invalid (class
 * 22, or the driver cannot decode the row) or beyond a limit (class 54). Failing devices (58000, 58030) are not
 * included: they may recover, and they fail other rows as well.
 *
 * @category guards
 * @since 0.1.0
 */
export const cannotBeRead = (error: SqlError.SqlError): boolean =>
  /^(22|54|XX|58P01)/.test(codeOf(error) ?? "") || error.reason.message === "PgConnection: Failed to decode row"

/**
 * Whether `cannotBeRead` holds for the cause of a store failure.
 *
 * @category guards
 * @since 0.1.0
 */
export const isUnreadable = (error: unknown): error is StoreFailure =>
  error instanceof StoreFailure && SqlError.isSqlError(error.cause) && cannotBeRead(error.cause)

/** Errors of untrusted certificates have Node's codes; earlier TLS errors have the driver's own messages. */
const isTlsFailure = (error: SqlError.SqlError): boolean =>
  /CERT|^ERR_(TLS|SSL)|^EPROTO$|^UNABLE_TO_(GET|VERIFY)/.test(codeOf(error) ?? "") ||
  error.reason.message === "PgConnection: Server refused TLS"

const unavailable = (error: SqlError.SqlError): DatabaseUnavailable["reason"] | undefined => {
  const code = codeOf(error)
  switch (code) {
    case "28P01":
      return "wrong password"
    case "28000":
      return "not admitted"
    case "3D000":
      return "unknown database"
    case "53300":
      return "too many connections"
    case "57P03":
      return "shutting down"
    case "57P01":
    case "57P02":
    case "57P04":
    case "57P05":
    case "25P03":
    case "25P04":
      return "connection lost"
    case "ECONNREFUSED":
    case "ENOENT":
      return "refused"
    case "ENOTFOUND":
    case "EAI_AGAIN":
      return "unknown host"
    case "ETIMEDOUT":
    case "EHOSTUNREACH":
    case "ENETUNREACH":
      return "unreachable"
    // A protocol violation: a pooler's reason for rejecting the connection, which only its own message describes.
    case "08P01":
      return undefined
  }
  if (error.reason._tag === "AuthenticationError") return "wrong password"
  if (isTlsFailure(error)) return "TLS failed"
  if (error.reason._tag === "StatementTimeoutError" || error.reason._tag === "LockTimeoutError") {
    return "no answer in time"
  }
  if (error.reason._tag !== "ConnectionError") return undefined
  return error.reason.operation === "connect" ? "unreachable" : "connection lost"
}

/**
 * Whether a statement that commits by itself may have committed although it failed. It has not if the server reported
 * an error and kept the session, or if there was no connection on which to send it.
 */
const mayHaveCommitted = (error: SqlError.SqlError): boolean => {
  const cause: unknown = error.reason.cause
  const isRefused = typeof cause === "object" && cause !== null && "severityUnlocalized" in cause &&
    cause.severityUnlocalized === "ERROR"
  return !isRefused && error.reason.operation !== "connect"
}

/**
 * Returns a function that converts the driver's error into this library's. `autocommit`: the statement changes data and
 * commits by itself, so its outcome is unknown when its answer is lost.
 *
 * @category constructors
 * @since 0.1.0
 */
export const toStoreError = (
  server: Server,
  operation: string,
  options?: { readonly autocommit?: boolean }
) =>
(error: SqlError.SqlError): StoreError => {
  const reason = unavailable(error)
  const outcome = options?.autocommit === true && mayHaveCommitted(error) ? { mayHaveCommitted: true as const } : {}
  if (reason !== undefined) {
    return new DatabaseUnavailable({ ...server, reason, detail: detailOf(error), cause: error, ...outcome })
  }
  const code = codeOf(error)
  if (code === "25006") return new ReadOnlyReplica({ server: server.server })
  return new StoreFailure({
    operation,
    detail: detailOf(error),
    cause: error,
    ...(code === undefined ? {} : { code }),
    ...constraintOf(error),
    ...outcome
  })
}

/**
 * Converts the driver's errors of an effect into this library's, including those that arrive as defects.
 *
 * @category combinators
 * @since 0.1.0
 */
export const refail = (server: Server, operation: string, options?: { readonly autocommit?: boolean }) =>
<A, E, R>(
  self: Effect.Effect<A, E, R>
): Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R> =>
  Effect.catchCause(self, (cause): Effect.Effect<never, Exclude<E, SqlError.SqlError> | StoreError> => {
    const error = sqlErrorIn(cause)
    return error === undefined
      ? Effect.failCause(cause as Cause.Cause<Exclude<E, SqlError.SqlError>>)
      : Effect.fail(toStoreError(server, operation, options)(error))
  })
