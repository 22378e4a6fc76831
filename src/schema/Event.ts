/**
 * Events: what an application appends and what projections see.
 *
 * @since 0.1.0
 */
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"

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
  /** Bytes, or any JSON value, which is stored as UTF-8 JSON. */
  readonly payload: unknown
  readonly traceId?: string | undefined
  readonly correlationId?: string | undefined
  readonly causationId?: string | undefined
  /** Any JSON value. */
  readonly metadata?: unknown
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
  readonly metadata: unknown
  readonly createdAt: Date
}

/**
 * What an append did.
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

/**
 * The bytes that are stored for a payload.
 *
 * @category schemas
 * @since 0.1.0
 */
export const encodePayload = (payload: unknown): Uint8Array =>
  payload instanceof Uint8Array ? payload : encoder.encode(JSON.stringify(payload ?? null))
