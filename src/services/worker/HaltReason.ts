/** The texts that explain why a range is halted. */
import * as Cause from "effect/Cause"
import { type Halt, haltError } from "../../schema/Checkpoint.ts"
import { type EventError, ProjectionHalted } from "../../schema/Errors.ts"
import { type Event, label } from "../../schema/Event.ts"
import * as HashRange from "../../schema/HashRange.ts"
import { sentence } from "../../schema/Text.ts"
import { errorTag, errorText, stackText } from "../ErrorText.ts"
import type { Failure } from "./Retries.ts"

export interface HaltReason {
  /** Type, aggregate and version of the event, and the error; never the payload. */
  readonly error: string
  /** The tag or name of the error. */
  readonly tag: string
  /** The stack of the handler's failure, only for the log. */
  readonly stack: string
}

/** The event cannot be received or read. */
export const ofUnreadable = (error: EventError): HaltReason =>
  make(error, error._tag, `${error._tag}: ${error.message}`)

/** The event's batches fail. `circumstance` is the one of `BatchPolicy`. */
export const ofFailure = (event: Event, failure: Failure, circumstance: string): HaltReason => {
  const cause = causeOf(failure)
  if (cause === undefined) return make(event, failure._tag, `${failure._tag}: ${failure.message}`)
  const text = errorText(cause)
  const error = `${circumstance}${text}`
  return make(
    event,
    errorTag(cause),
    violation.test(text) ? `${sentence(error)} ${sharedRows}` : error,
    stackText(cause)
  )
}

/** The failure of the handler; undefined if the failure describes itself. */
const causeOf = (failure: Failure): Cause.Cause<unknown> | undefined =>
  failure._tag === "HandlerFailure"
    ? failure.cause
    : failure._tag === "TransientFailure"
    ? Cause.fail(failure.cause)
    : undefined

const make = (event: Parameters<typeof label>[0], tag: string, error: string, stack = ""): HaltReason => ({
  tag,
  error: haltError([label(event), error].filter((part) => part !== "").join(": ")),
  stack
})

/** The log line about a range that was halted before it was opened. */
export const message = (
  { projection, range }: { readonly projection: string; readonly range: HashRange.HashRange },
  halt: Halt
): string => new ProjectionHalted({ ...halt, projection, range: HashRange.format(range) }).message

/** Matches the error text of a unique or foreign key violation. */
const violation = /SqlError: (UniqueViolation|ConstraintError 23503)/

const sharedRows =
  "Events of different aggregates are handled at the same time and in any order. If an event of another aggregate writes that row too, use INSERT ... ON CONFLICT and SQL arithmetic, and no foreign keys between aggregates: see \"Rows that several aggregates share\" in docs/concepts.md."
