/** Validates events before they are appended, and converts them to the rows that every store writes. */
import * as DateTime from "effect/DateTime"
import * as Result from "effect/Result"
import { InvalidEvents } from "./Errors.ts"
import { type Appended, encodePayload, type NewEvent, type StreamId } from "./Event.ts"
import * as Json from "./Json.ts"
import { textProblem } from "./Text.ts"
import * as Uuid from "./Uuid.ts"

/** A new event as a store writes it, without the version and position that the store assigns. */
export interface Row {
  /** In lower case; undefined if the store is to generate one. */
  readonly eventId: string | undefined
  readonly eventType: string
  readonly eventVersion: number
  /** A copy: later changes of the caller's bytes have no effect. */
  readonly payload: Uint8Array
  readonly traceId: string | null
  readonly correlationId: string | null
  readonly causationId: string | null
  /** JSON text. */
  readonly metadata: string | null
  /** Microseconds since 1970; null if the store is to use the current time. */
  readonly createdAtMicros: bigint | null
}

/** One or more validated events of one aggregate. */
export interface Append {
  readonly stream: StreamId
  readonly rows: ReadonlyArray<Row>
}

/** The values of events that do not have their own. */
export interface Defaults {
  readonly traceId: string | null
  readonly correlationId: string | null
  readonly causationId: string | null
}

const largestEventVersion = 2 ** 31 - 1

/** The range of times that PostgreSQL can store, in microseconds since 1970. The earliest is in 4713 BC. */
const earliestMicros = -210_866_803_200_000_000n
const latestMicros = 2n ** 63n - 1n

/** Where a stored event is. */
export interface Stored {
  readonly version: bigint
  readonly position: bigint
}

/**
 * Returns a time in microseconds since 1970; undefined for a value that is not a time or cannot be stored. A `Date` may
 * belong to another realm.
 */
export const microsOf = (value: unknown): bigint | undefined => {
  const micros = typeof value === "bigint" ? value : Result.getOrUndefined(Result.try(() => {
    const millis = DateTime.isDateTime(value)
      ? value.epochMilliseconds
      : Date.prototype.getTime.call(value as Date)
    return BigInt(Math.floor(millis)) * 1000n
  }))
  return micros !== undefined && earliestMicros <= micros && micros <= latestMicros ? micros : undefined
}

const names = ["boundedContext", "aggregateType", "aggregateId", "eventType"] as const
const references = ["traceId", "correlationId", "causationId"] as const

/**
 * Validates events that are to be appended together, and converts them to rows. Fails if the list is empty, if the
 * events belong to several aggregates, or if an event cannot be stored.
 */
export const validate = (events: ReadonlyArray<NewEvent>, defaults: Defaults): Result.Result<Append, InvalidEvents> => {
  const invalid = (problem: string) => Result.fail(new InvalidEvents({ problem }))
  const first = events[0]
  if (first === undefined) return invalid("There is no event to append. Pass at least one.")
  const rows: Array<Row> = []
  for (const [index, event] of events.entries()) {
    const which = `Event ${index + 1} of ${events.length}`
    if (
      event.boundedContext !== first.boundedContext || event.aggregateType !== first.aggregateType ||
      event.aggregateId !== first.aggregateId
    ) {
      return invalid(
        `${which} belongs to another aggregate than the first. Append the events of each aggregate by themselves.`
      )
    }
    for (const name of names) {
      const given = event[name]
      if (typeof given !== "string" || given === "") return invalid(`${which} has an empty ${name}. Give it one.`)
      const problem = textProblem(given)
      if (problem !== undefined) return invalid(`${which}: its ${name} ${problem}.`)
    }
    for (const name of references) {
      const given: unknown = event[name] ?? ""
      if (typeof given !== "string") return invalid(`${which}: its ${name} is not a string. Pass a string.`)
      const problem = textProblem(given)
      if (problem !== undefined) return invalid(`${which}: its ${name} ${problem}.`)
    }
    if (event.eventId !== undefined && !Uuid.isUuid(event.eventId)) {
      return invalid(`${which}: its eventId is not a UUID. Omit it to have one generated.`)
    }
    const eventVersion = event.eventVersion ?? 1
    if (!Number.isInteger(eventVersion) || Math.abs(eventVersion) > largestEventVersion) {
      return invalid(`${which}: its eventVersion is not a 32-bit integer.`)
    }
    const payload = encodePayload(event.payload)
    if (Result.isFailure(payload)) return invalid(`${which}: ${payload.failure}. Pass bytes or a JSON value.`)
    const metadata = Result.mapError(
      event.metadata === undefined || event.metadata === null
        ? Result.succeed(null)
        : Json.encode("metadata", event.metadata, textProblem),
      (reason) => `${which}: ${reason}. Pass a JSON value.`
    )
    if (Result.isFailure(metadata)) return invalid(metadata.failure)
    const given = event.createdAt ?? null
    const createdAtMicros = given === null ? null : microsOf(given)
    if (createdAtMicros === undefined) {
      return invalid(
        `${which}: its createdAt is not a time that can be stored. Pass a valid Date, a DateTime, or microseconds since 1970 as a bigint, from 4713 BC to the year 294246.`
      )
    }
    rows.push({
      eventId: event.eventId?.toLowerCase(),
      eventType: event.eventType,
      eventVersion,
      payload: payload.success,
      traceId: event.traceId ?? defaults.traceId,
      correlationId: event.correlationId ?? defaults.correlationId,
      causationId: event.causationId ?? defaults.causationId,
      metadata: metadata.success,
      createdAtMicros
    })
  }
  const { aggregateId, aggregateType, boundedContext } = first
  return Result.succeed({ stream: { boundedContext, aggregateType, aggregateId }, rows })
}

/**
 * Fails unless every event has an id: with `onDuplicate: "return"`, an append is recognised as a repetition by the ids
 * of its events.
 */
export const checkIds = ({ rows }: Append): Result.Result<void, InvalidEvents> => {
  const index = rows.findIndex((row) => row.eventId === undefined)
  return index < 0 ? Result.succeed(undefined) : Result.fail(
    new InvalidEvents({
      problem: `Event ${
        index + 1
      } of ${rows.length} has no eventId, so that a repeated append cannot be recognised. Give each event an eventId, or omit onDuplicate: "return".`
    })
  )
}

/**
 * Returns the append that has stored the events of a batch, if one append can have stored exactly this batch: every
 * event is stored in the stream, and their versions follow each other. `stored` has the stored event of the stream for
 * each event of the batch, undefined where there is none.
 */
export const original = (stream: StreamId, stored: ReadonlyArray<Stored | undefined>): Appended | undefined => {
  const first = stored[0]
  if (first === undefined) return undefined
  const positions: Array<bigint> = []
  for (const [index, event] of stored.entries()) {
    if (event === undefined || event.version !== first.version + BigInt(index)) return undefined
    positions.push(event.position)
  }
  return { stream, firstVersion: first.version, lastVersion: first.version + BigInt(stored.length - 1), positions }
}
