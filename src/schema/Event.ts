/**
 * Events: what an application appends and what projections see.
 *
 * @since 0.1.0
 */
import type * as DateTime from "effect/DateTime"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Json from "./Json.ts"
import { cut } from "./Text.ts"

/**
 * The stream of one aggregate.
 *
 * @category models
 * @since 0.1.0
 */
export interface StreamId {
  readonly boundedContext: string
  readonly aggregateType: string
  readonly aggregateId: string
}

/**
 * An event that is to be appended. The store gives it a version and a position.
 *
 * @category models
 * @since 0.1.0
 */
export interface NewEvent extends StreamId {
  /** A UUID; drawn by the store when absent. Appending the same id twice fails with `DuplicateEvent`. */
  readonly eventId?: string | undefined
  readonly eventType: string
  /** Version of the payload's shape; 1 when absent. */
  readonly eventVersion?: number | undefined
  /**
   * Bytes of any kind (`Uint8Array`, `ArrayBuffer`, other views), or a JSON value, which is stored as UTF-8 JSON.
   *
   * As with `JSON.stringify`, `toJSON` is called, undefined properties are left out and `-0` becomes `0`. Values that
   * `JSON.stringify` would silently lose or change are refused with `InvalidEvents`, which names the path: undefined
   * (pass `null` for an event without data), `NaN`, infinite numbers, undefined or holes in arrays, invalid dates,
   * functions, symbols, bigints, collections, errors, promises, effects, bytes inside a value, and instances of
   * classes that have neither a `toJSON` nor enumerable properties of their own.
   */
  readonly payload: unknown
  readonly traceId?: string | undefined
  readonly correlationId?: string | undefined
  readonly causationId?: string | undefined
  /**
   * A JSON value, by the rules of `payload`. Absent, undefined and null all mean no metadata, which is stored as SQL
   * NULL.
   *
   * **Gotchas**
   *
   * `JSON.rawJSON("12345678901234567890")`, also inside the value, stores a number that has more digits than a
   * JavaScript number, and `JSON.rawJSON("null")` stores JSON null.
   */
  readonly metadata?: unknown
  /**
   * The time of an event that is imported or backfilled: a `Date`, a `DateTime`, or microseconds since 1970
   * as a bigint. Defaults to the time of the append. It does not affect positions.
   */
  readonly createdAt?: Date | DateTime.DateTime | bigint | undefined
}

/**
 * A persisted event.
 *
 * @category models
 * @since 0.1.0
 */
export interface Event extends StreamId {
  /** Place in the stream of all events; positions grow, gaps are allowed. */
  readonly globalPosition: bigint
  /** Place in the stream of its aggregate: 1, 2, 3, … */
  readonly aggregateVersion: bigint
  readonly eventId: string
  readonly eventType: string
  readonly eventVersion: number
  readonly payload: Uint8Array
  readonly traceId: string | null
  readonly correlationId: string | null
  readonly causationId: string | null
  /** `metadataText` read by `JSON.parse`; null without metadata. Numbers lose what a JavaScript number cannot represent. */
  readonly metadata: unknown
  /** The JSON text of the metadata, with every digit as the store keeps it; `"null"` for JSON null, null without metadata. */
  readonly metadataText: string | null
  /** `createdAtMicros` to the millisecond. An invalid date beyond the year 275760 and for PostgreSQL's `infinity`. */
  readonly createdAt: Date
  /** Microseconds since 1970, as PostgreSQL stores them. */
  readonly createdAtMicros: bigint
}

/**
 * The date for microseconds since 1970, rounded down to the millisecond.
 *
 * @category utils
 * @since 0.1.0
 */
export const dateOfMicros = (micros: bigint): Date => new Date(Number((micros < 0n ? micros - 999n : micros) / 1000n))

/**
 * The result of an append.
 *
 * @category models
 * @since 0.1.0
 */
export interface Appended {
  readonly stream: StreamId
  /** Version of the aggregate's first and last appended event. */
  readonly firstVersion: bigint
  readonly lastVersion: bigint
  /** Positions of the appended events, in the order given. */
  readonly positions: ReadonlyArray<bigint>
}

/**
 * The version an aggregate must have for an append to succeed: `"any"` does not look, `"none"` demands that the
 * aggregate has no event yet, a number demands exactly that last version.
 *
 * @category models
 * @since 0.1.0
 */
export type ExpectedVersion = "any" | "none" | bigint

const decoder = new TextDecoder("utf-8", { fatal: true })

/**
 * The payload read as JSON and decoded with a schema; fails with a `SchemaError` when it is neither.
 *
 * @category schemas
 * @since 0.1.0
 */
export const json = <S extends Schema.Top>(event: Event, schema: S) =>
  // What is no text at all is for the schema to refuse, too.
  Schema.decodeUnknownEffect(Schema.fromJsonString(schema))(Result.getOrUndefined(Result.try(() => text(event))))

/**
 * The payload read as UTF-8 text; throws a `TypeError` when it is none.
 *
 * @category schemas
 * @since 0.1.0
 */
export const text = (event: Event): string => decoder.decode(event.payload)

const encoder = new TextEncoder()

/** Bytes of any kind and realm as a copy; undefined for everything else. */
const bytesOf = (value: unknown): Uint8Array | undefined => {
  try {
    return (ArrayBuffer.isView(value)
      ? new Uint8Array(value.buffer, value.byteOffset, value.byteLength)
      // Throws a TypeError for any other object, and for a buffer that was transferred to another thread.
      : new Uint8Array(new DataView(value as ArrayBuffer).buffer)).slice()
  } catch {
    return undefined
  }
}

/**
 * The bytes that are stored for a payload, or the reason why it cannot be stored.
 *
 * **Details**
 *
 * Bytes are copied as they are: `Uint8Array` and `Buffer`, every other view (`DataView`, `Float64Array`, ... with the
 * byte order of the machine), `ArrayBuffer` and `SharedArrayBuffer`, of this or another realm. Every other value is
 * stored as UTF-8 JSON if it has a JSON form: see `NewEvent.payload`.
 *
 * @category schemas
 * @since 0.1.0
 */
export const encodePayload = (payload: unknown): Result.Result<Uint8Array, string> => {
  const bytes = bytesOf(payload)
  return bytes === undefined
    ? Result.map(Json.encode("payload", payload), (text) => encoder.encode(text))
    : Result.succeed(bytes)
}

/** The maximum length of an aggregate's id, and of a type, in messages. */
const longestLabel = 100

/**
 * Describes an event in messages: its type, aggregate and version, as far as they are known. Contains no part of its
 * payload.
 *
 * @category utils
 * @since 0.1.0
 */
export const label = (
  event: { readonly [K in "aggregateId" | "aggregateType" | "eventType"]?: string | undefined } & {
    readonly aggregateVersion?: bigint | undefined
  }
): string => {
  // Line breaks are replaced, so that the result is one line.
  const short = (text: string) => cut(text, longestLabel).replace(/\s+/g, " ")
  return [
    ...(event.eventType === undefined ? [] : [`type ${short(event.eventType)}`]),
    ...(event.aggregateId === undefined
      ? []
      : [`${short(event.aggregateType ?? "aggregate")} ${JSON.stringify(short(event.aggregateId))}`]),
    ...(event.aggregateVersion === undefined ? [] : [`version ${event.aggregateVersion}`])
  ].join(", ")
}
