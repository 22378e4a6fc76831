/**
 * Describes failures as text, for logs and for the row of a halted range.
 *
 * A handler may fail with any value, whose getters, proxy traps and conversions may throw or return anything. No
 * function in this module throws.
 */
import * as Cause from "effect/Cause"
import * as SqlError from "effect/sql/SqlError"
import { StoreError } from "../schema/Errors.ts"
import { cut, wellFormed } from "../schema/Text.ts"

/** Limits of a text, in characters, and limits on the parts of a failure that are read. */
const longest = 2000
const mostReasons = 16
const deepest = 3
const mostFrames = 50
const longestStack = 20_000

/** The description of a value that cannot be inspected. */
const indescribable = "a value that cannot be described"

/** Returns the result of `read`, which reads a value of the application, or `undefined` if it throws. */
export const tryRead = <A>(read: () => A): A | undefined => {
  try {
    return read()
  } catch {
    return undefined
  }
}

/**
 * Returns the name and message of a failure. A database error is described by its kind, SQLSTATE and constraint,
 * because the server's own message can quote values. An error of this library never contains an event's payload.
 */
export const errorText = (cause: Cause.Cause<unknown>): string => {
  const texts = cause.reasons.slice(0, mostReasons).flatMap((reason) =>
    Cause.isFailReason(reason) ? [describe(reason.error)] : Cause.isDieReason(reason) ? [describe(reason.defect)] : []
  )
  const text = texts.length === 0 ? tryRead(() => Cause.pretty(cause)) : [...new Set(texts)].join("; ")
  return clean(text) ?? indescribable
}

/** Returns the tag or the name of a failure; `Error` if it has neither. */
export const errorTag = (cause: Cause.Cause<unknown>): string => {
  for (const reason of cause.reasons) {
    if (Cause.isInterruptReason(reason)) continue
    const failure = Cause.isFailReason(reason) ? reason.error : reason.defect
    const error = tryRead(() => failure instanceof StoreError ? failure.reason : failure) ?? failure
    const tag = clean(read(error, "_tag")) ?? clean(read(error, "name"))
    if (tag !== undefined) return tag
  }
  return "Error"
}

/**
 * Returns where a handler threw: the frames of the first defect's stack, without its message. Empty if nothing was
 * thrown.
 */
export const stackText = (cause: Cause.Cause<unknown>): string => {
  for (const reason of cause.reasons) {
    const stack = Cause.isDieReason(reason) ? read(reason.defect, "stack") : undefined
    if (typeof stack !== "string") continue
    const frames = stack.slice(0, longestStack).split("\n").filter((line) => /^ {4}at /.test(line))
    return frames.slice(0, mostFrames).map((frame) => `\n${wellFormed(frame)}`).join("")
  }
  return ""
}

const isObject = (value: unknown): value is object =>
  (typeof value === "object" && value !== null) || typeof value === "function"

const read = (value: unknown, property: string): unknown =>
  isObject(value) ? tryRead(() => (value as Readonly<Record<string, unknown>>)[property]) : undefined

/** Shortens a text to the limit. Returns `undefined` if it is empty or not a string. */
const clean = (text: unknown): string | undefined =>
  typeof text === "string" && text.trim() !== "" ? cut(text, longest) : undefined

const describe = (failure: unknown, depth = 0): string => {
  // Its message is that of its reason.
  const error = tryRead(() => failure instanceof StoreError ? failure.reason : failure) ?? failure
  if (tryRead(() => SqlError.isSqlError(error)) === true) {
    const text = tryRead(() => clean(describeSql(error as SqlError.SqlError)))
    if (text !== undefined) return text
  }
  // Errors of another realm are not instances of this realm's Error.
  const name = clean(read(error, "_tag")) ?? clean(read(error, "name"))
  const message = read(error, "message")
  if (tryRead(() => error instanceof Error) === true || (name !== undefined && typeof message === "string")) {
    const own = clean(message) ?? (isObject(message) ? undefined : clean(tryRead(() => String(message ?? ""))))
    const text = [name, own].filter((part) => part !== undefined).join(": ")
    const inner = depth < deepest ? innerOf(error).map((each) => describe(each, depth + 1)) : []
    return cut((text === "" ? indescribable : text) + (inner.length > 0 ? ` (${inner.join("; ")})` : ""), longest)
  }
  if (typeof error === "string") return clean(error) ?? "an empty text"
  return clean(tryRead(() => Cause.prettyErrors(Cause.fail(error))[0]?.message)) ??
    clean(tryRead(() => String(error))) ?? indescribable
}

/** Returns the errors inside an error: its cause, and the errors of an `AggregateError`. */
const innerOf = (error: unknown): ReadonlyArray<unknown> => {
  const isError = (value: unknown) => tryRead(() => value instanceof Error || SqlError.isSqlError(value)) === true
  const errors = tryRead(() => {
    const all = read(error, "errors")
    return Array.isArray(all) ? all.slice(0, deepest) : []
  })
  return [read(error, "cause"), ...(errors ?? [])].filter(isError)
}

/**
 * SQLSTATEs of invalid statements. The server's messages for them are included, because they name tables, columns,
 * types and roles, but no values.
 */
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
