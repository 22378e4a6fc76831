/**
 * From the driver's errors to this library's.
 *
 * @since 0.1.0
 */
import type { PgClientConfig } from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as SqlError from "effect/sql/SqlError"
import { DatabaseUnavailable, ReadOnlyReplica, type StoreError, StoreFailure } from "../../schema/Errors.ts"

/**
 * Which server is meant, for messages; never the password.
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
 * Reads the server's name out of a client's configuration, as the driver would.
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

// The driver calls these unknown; for this library they mean that the session is gone.
const lostSession = new Set(["57P01", "57P02", "57P03", "57P04", "57P05", "25P03", "25P04", "53300"])

/**
 * The session is gone, or could not be opened: a new one may do.
 *
 * @category guards
 * @since 0.1.0
 */
export const isConnectionLoss = (error: SqlError.SqlError): boolean =>
  error.reason._tag === "ConnectionError" || lostSession.has(codeOf(error) ?? "")

/**
 * The transaction lost against another one: the same again may succeed.
 *
 * @category guards
 * @since 0.1.0
 */
export const isConflict = (error: SqlError.SqlError): boolean =>
  error.reason._tag === "DeadlockError" || error.reason._tag === "SerializationError" ||
  error.reason._tag === "LockTimeoutError"

/** The server is short of something, mostly not through the fault of who asks: memory, or space on its disk. */
const shortage = new Set(["53000", "53100", "53200"])

/** As the driver names the statements that it prepares. */
const driversStatement = /"effect_/

/**
 * A prepared statement is gone, or does not fit any more because a table was changed since; the driver prepares it anew,
 * but for a transaction that is too late.
 */
const isStalePlan = (error: SqlError.SqlError): boolean => {
  const cause: unknown = error.reason.cause
  const code = codeOf(error)
  return (code === "26000" && driversStatement.test(detailOf(error))) ||
    (code === "0A000" && typeof cause === "object" && cause !== null && "routine" in cause &&
      cause.routine === "RevalidateCachedQuery")
}

/**
 * The same again may succeed, on this session or another: a conflict, a time limit, a table that was changed, or what the
 * server is short of.
 *
 * @category guards
 * @since 0.1.0
 */
export const isPassing = (error: SqlError.SqlError): boolean =>
  isConflict(error) || error.reason._tag === "StatementTimeoutError" || shortage.has(codeOf(error) ?? "") ||
  isStalePlan(error)

/**
 * The `SqlError` in a cause, whether it was raised or arrived as a defect: the driver turns a failure into a defect
 * when the ROLLBACK after it fails too. Of several, the loss of the connection counts: whatever was said before, the
 * session is gone. An interruption outweighs it.
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
 * A stored value cannot be read: its bytes are damaged (class XX, or 58P01 for a missing file), invalid (class 22, or the
 * driver cannot decode the row) or beyond a limit (class 54). Failing devices (58000, 58030) are not included: they may
 * recover, and they fail other rows as well.
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
    // What a pooler has against the connection, in its own words.
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
 * `autocommit`: the statement changes data and commits by itself, so that its outcome is unknown when its answer is lost.
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
 * Turns the driver's errors of an effect into this library's, those that arrive as defects included.
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
