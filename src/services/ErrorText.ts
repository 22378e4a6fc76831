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

/**
 * Where a handler threw: the frames of the first defect's stack, without its message. Empty where nothing was thrown.
 *
 * @category utils
 * @since 0.1.0
 */
export const stackText = (cause: Cause.Cause<unknown>): string => {
  const thrown = cause.reasons.filter(Cause.isDieReason).map((reason) => reason.defect)
    .find((defect) => defect instanceof Error)
  const frames = thrown?.stack?.split("\n").filter((line) => /^ {4}at /.test(line)) ?? []
  return frames.map((frame) => `\n${frame}`).join("")
}

/** How many causes of an error are told. */
const deepest = 3

const describe = (error: unknown, depth = 0): string => {
  if (SqlError.isSqlError(error)) return describeSql(error)
  if (error instanceof Error) {
    const inner = error.cause instanceof Error && depth < deepest ? ` (${describe(error.cause, depth + 1)})` : ""
    return (error.message === "" ? error.name : `${error.name}: ${error.message}`) + inner
  }
  return typeof error === "string" ? error : Cause.prettyErrors(Cause.fail(error))[0]?.message ?? String(error)
}

/** Of these the server's message names tables, columns, types and roles, but no values: what is wrong with a statement. */
const aboutStatements = new Set(["42P01", "42703", "42501", "42804", "42883", "42P10", "3F000"])

const describeSql = (error: SqlError.SqlError): string => {
  const { reason } = error
  const code = typeof reason.cause === "object" && reason.cause !== null && "code" in reason.cause
    ? String(reason.cause.code)
    : ""
  const detail = "constraint" in reason
    ? ` (${reason.constraint})`
    : aboutStatements.has(code) && reason.cause instanceof Error
    ? ` (${reason.cause.message})`
    : ""
  return `SqlError: ${reason._tag}${code === "" ? "" : ` ${code}`}${detail}`
}
