/**
 * What is said of an error in logs and on the row of a halted range.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as SqlError from "effect/sql/SqlError"

/** What is kept of an error's text, in characters. */
const longest = 2000

/**
 * Name and message of what went wrong. Of a database's error it is the kind, SQLSTATE and constraint, because the
 * server's own message can quote values; an event's payload is never in it, as this library puts it into no error.
 *
 * @category utils
 * @since 0.1.0
 */
export const errorText = (cause: Cause.Cause<unknown>): string => {
  const texts = cause.reasons.flatMap((reason) =>
    Cause.isFailReason(reason) ? [describe(reason.error)] : Cause.isDieReason(reason) ? [describe(reason.defect)] : []
  )
  const text = texts.length === 0 ? Cause.pretty(cause) : [...new Set(texts)].join("; ")
  return text.length > longest ? `${text.slice(0, longest)}…` : text
}

const describe = (error: unknown): string => {
  if (SqlError.isSqlError(error)) return describeSql(error)
  if (error instanceof Error) {
    const inner = SqlError.isSqlError(error.cause) ? ` (${describeSql(error.cause)})` : ""
    return (error.message === "" ? error.name : `${error.name}: ${error.message}`) + inner
  }
  return typeof error === "string" ? error : Cause.prettyErrors(Cause.fail(error))[0]?.message ?? String(error)
}

const describeSql = (error: SqlError.SqlError): string => {
  const { reason } = error
  const code = typeof reason.cause === "object" && reason.cause !== null && "code" in reason.cause
    ? ` ${String(reason.cause.code)}`
    : ""
  return `SqlError: ${reason._tag}${code}${"constraint" in reason ? ` (${reason.constraint})` : ""}`
}
