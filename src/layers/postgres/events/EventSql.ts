/**
 * The events table in SQL: its columns, the size of a row, the statements that read events, and how a row becomes an
 * `Event`.
 */
import * as PgTypes from "@effect/sql-pg/PgTypes"
import type * as Types from "effect/Types"
import { dateOfMicros, type Event, type StreamId } from "../../../schema/Event.ts"
import * as HashRange from "../../../schema/HashRange.ts"
import { byDefault, type PartitionKey } from "../../../schema/PartitionKey.ts"
import type { ReadOptions } from "../../../services/EventStore.ts"
import { array } from "../connection/Codecs.ts"
import { hashOf, keyOf } from "../HashSql.ts"
import * as ReadSession from "./ReadSession.ts"

/**
 * Maximum size in bytes of the texts and the stored metadata in a small row. Metadata that is stored in this size
 * without compression is also small when it is sent.
 */
const smallBesides = 1000

/** Columns whose texts may have any length that their indexes accept. */
const texts = ["bounded_context", "aggregate_type", "aggregate_id", "event_type"]

/** Columns whose texts may have any length, and may be NULL. */
const optionalTexts = ["trace_id", "correlation_id", "causation_id"]

const textColumns = [...texts, ...optionalTexts]

/** The columns before payload and metadata, in the order of a `Row`. */
const columns = [
  "global_position",
  "bounded_context",
  "aggregate_type",
  "aggregate_id",
  "aggregate_version",
  "event_id",
  "event_type",
  "event_version",
  "trace_id",
  "correlation_id",
  "causation_id",
  "created_at"
]

const selected = ({ hash }: Conditions): string =>
  [...columns, "payload", "metadata", ...(hash === undefined ? [] : [`${hash} AS hash`])].join(", ")

/** SQL: the microseconds since 2000 in binary; the driver's dates have only milliseconds. */
const sent = "timestamptz_send(created_at)"

/**
 * SQL: the columns of a `Row`, from a row that was `selected` and whether it `fits`. Of a row that does not fit, only the
 * columns of a fixed size are sent.
 */
const handedOut = ({ hash }: Conditions, measured: ReadonlyArray<string> = []): string =>
  [
    ...columns.map((column) =>
      textColumns.includes(column) ? `CASE WHEN fits THEN ${column} END` : column === "created_at" ? sent : column
    ),
    "CASE WHEN fits THEN payload END",
    "CASE WHEN fits THEN metadata::text END",
    ...measured,
    ...(hash === undefined ? [] : ["hash"])
  ].join(", ")

const streamColumns = [
  ...columns.map((column) =>
    column === "created_at" ? sent : textColumns.includes(column) ? column : `${column}::text`
  ),
  "payload",
  "metadata::text"
].join(", ")

const textBytes = [
  ...texts.map((column) => `octet_length(${column})`),
  ...optionalTexts.map((column) => `coalesce(octet_length(${column}), 0)`)
].join(" + ")

const hasSmallBesides = `${textBytes} + coalesce(pg_column_size(metadata), 0) <= ${smallBesides}
  AND pg_column_compression(metadata) IS NULL`

/** SQL: the size of a row in bytes. Large metadata is measured as it is sent, small metadata as it is stored. */
const rowBytes = `octet_length(payload) + ${textBytes} + coalesce(
  CASE WHEN pg_column_size(metadata) <= ${smallBesides} AND pg_column_compression(metadata) IS NULL
    THEN pg_column_size(metadata) ELSE octet_length(metadata::text) END, 0)`

/** SQL: fails if the row cannot be read or sent, because it reads every value completely and checks every text. */
const readableBytes = `octet_length(payload || '') + ${
  [...textColumns, "metadata::text"].map((text) => `coalesce(octet_length(convert_to(${text}, 'UTF8')), 0)`)
    .join(" + ")
}`

/**
 * SQL: converts microseconds since 1970 to a timestamp. Multiplying an interval uses floating point, which is exact for
 * these two parts; parsing an interval of so many microseconds fails before PostgreSQL 15.
 */
export const timeOf = (micros: string): string =>
  `timestamptz 'epoch' + ${micros} / 3600000000 * interval '1 hour' + ${micros} % 3600000000 * interval '1 microsecond'`

/** The parameters $1, $2 and $3 of every statement on one stream. */
export const streamParameters = (stream: StreamId): ReadonlyArray<string> => [
  stream.boundedContext,
  stream.aggregateType,
  stream.aggregateId
]

/** The highest version that the column can store. */
const lastVersion = 2n ** 63n - 1n

/** A version as a parameter, clamped to the range that the server can represent. */
export const versionText = (version: bigint): string =>
  String(version < 0n ? -1n : version > lastVersion ? lastVersion : version)

/** A number of rows as bigint, limited to the largest safe integer, which no table exceeds. */
export const rowCount = (count: number): bigint => BigInt(Math.min(Math.floor(count), Number.MAX_SAFE_INTEGER))

/** Conditions on the events of a page, and their parameters. */
export interface Conditions {
  readonly text: string
  readonly parameters: ReadonlyArray<unknown>
  /** SQL: the hash to return with each event; undefined if none is returned. */
  readonly hash: string | undefined
}

/** Number of parameters of every statement that reads a window: see `readStatements`. */
const windowParameters = 6

/** The conditions of a range and a filter. */
export const conditions = (
  options: Pick<ReadOptions, "filter" | "hashes" | "partitionBy" | "range">
): Conditions => {
  const hash = hashOf(keyOf(options.partitionBy ?? byDefault))
  const parameters: Array<unknown> = []
  const parts: Array<string> = []
  const next = (value: unknown) => {
    parameters.push(value)
    return `$${parameters.length + windowParameters}`
  }
  if (options.range !== undefined && !HashRange.isWhole(options.range)) {
    const { end, start } = options.range
    parts.push(`${hash} >= ${next(BigInt(start))}::int8 AND ${hash} < ${next(BigInt(end))}::int8`)
  }
  for (
    const [column, values] of [
      ["bounded_context", options.filter?.boundedContexts],
      ["aggregate_type", options.filter?.aggregateTypes],
      ["event_type", options.filter?.eventTypes]
    ] as const
  ) {
    if (values !== undefined) parts.push(`${column} = ANY (${next(array(values, PgTypes.OID.text))}::text[])`)
  }
  return {
    text: parts.map((part) => ` AND ${part}`).join(""),
    parameters,
    hash: options.hashes === true ? hash : undefined
  }
}

/**
 * The statements that read the table `events`.
 *
 * Those of a window read at most $3 events with $1 < position <= $2 that match the conditions. They fail on purpose, by
 * a division by zero, on a standby, and if the events and the sequence $5 are no longer in the files $6, because they
 * were replaced. `PageReader` then proves the positions again.
 */
export const readStatements = (events: string) => {
  const matching = (where: Conditions) => `
      FROM ${events}
      WHERE global_position > $1
        AND global_position <= (
          SELECT $2::int8 / CASE
            WHEN pg_is_in_recovery() OR ${
    ReadSession.files(events, "$5::oid::regclass")
  } IS DISTINCT FROM $6::text THEN 0
            ELSE 1 END
        )${where.text}
      ORDER BY global_position LIMIT $3::int8`
  return {
    /**
     * A row fits only up to $4 bytes of payload, which bounds the bytes of all rows together. A row that does not fit
     * has no payload.
     */
    small: (where: Conditions) => `
      SELECT ${handedOut(where)}
      FROM (
        SELECT ${selected(where)}, octet_length(payload) <= $4::int8 AND ${hasSmallBesides} AS fits
        ${matching(where)}
      ) AS judged
      ORDER BY global_position`,
    /** Reads at most $4 bytes in all, or one event whose size is at most the last parameter. */
    anySize: (where: Conditions) => `
      SELECT ${handedOut(where, ["running"])}
      FROM (
        SELECT *, running <= $4::int8 OR (running = size AND size <= $${
      where.parameters.length + windowParameters + 1
    }::int8) AS fits
        FROM (
          SELECT *, sum(size) OVER part AS running, first_value(size) OVER part AS first
          FROM (SELECT ${selected(where)}, 1 + ${rowBytes} AS size ${matching(where)}) AS matching
          WINDOW part AS (ORDER BY global_position ROWS UNBOUNDED PRECEDING)
        ) AS measured
      ) AS judged
      WHERE running - size <= greatest($4::int8, first)
      ORDER BY global_position`,
    /**
     * Fails if an event cannot be read. Returns no part of the rows, because the driver closes a connection on which it
     * cannot decode a row.
     */
    check: (where: Conditions) => `
      SELECT count(bytes) AS rows, $4::int8 AS bytes
      FROM (SELECT ${readableBytes} AS bytes ${matching(where)}) AS checked`,
    /** The event at $1 with its size, without its payload. */
    measure: `
      SELECT event_id AS "eventId", aggregate_id AS "aggregateId", aggregate_type AS "aggregateType",
        aggregate_version AS "aggregateVersion", event_type AS "eventType", ${rowBytes} AS bytes FROM ${events} WHERE global_position = $1`,
    /** Two parts of an event's description; either may be unreadable. */
    eventId: `SELECT event_id AS "eventId" FROM ${events} WHERE global_position = $1`,
    label: `
      SELECT aggregate_id AS "aggregateId", aggregate_type AS "aggregateType",
        aggregate_version AS "aggregateVersion", event_type AS "eventType"
      FROM ${events} WHERE global_position = $1
        AND convert_to(concat(aggregate_id, aggregate_type, event_type), 'UTF8') IS NOT NULL`,
    /** The key of the event, if it is readable and a client can receive it. */
    key: (partitionBy: PartitionKey) => `
      SELECT key FROM (SELECT ${keyOf(partitionBy)} AS key FROM ${events} WHERE global_position = $1) AS event
      WHERE octet_length(key) <= ${smallBesides} AND convert_to(key, 'UTF8') IS NOT NULL`,
    stream: `
      SELECT ${streamColumns} FROM ${events} AS e
      WHERE bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3
        AND aggregate_version >= $4::int8 AND ($5::int8 IS NULL OR aggregate_version <= $5)
      ORDER BY e.aggregate_version LIMIT $6::int8`,
    head: `SELECT coalesce((SELECT global_position FROM ${events} ORDER BY global_position DESC LIMIT 1), 0) AS head,
           pg_is_in_recovery() AS recovering`
  }
}

export type ReadStatements = ReturnType<typeof readStatements>

/** The values of an event as a statement returns them: an array, which the driver makes with less work than an object. */
type Values<Int8, Int4, Payload> = readonly [
  globalPosition: Int8,
  boundedContext: string,
  aggregateType: string,
  aggregateId: string,
  aggregateVersion: Int8,
  eventId: string,
  eventType: string,
  eventVersion: Int4,
  traceId: string | null,
  correlationId: string | null,
  causationId: string | null,
  /** In the format of `timestamptz_send`. */
  createdAt: Uint8Array,
  payload: Payload,
  metadataText: string | null,
  /** What the statement measures, then the hash of the event's key: see `runningOf` and `hashOf`. */
  ...rest: ReadonlyArray<bigint>
]

/** A row of a page. It has no payload if it does not fit. */
export type Row = Values<bigint, number, Uint8Array | null>

export type WholeRow = Values<bigint, number, Uint8Array>

/** A row of a stream, read on the application's client, whose codecs may differ. */
export type StreamRow = Values<string, string, Uint8Array>

export const isWhole = (row: Row): row is WholeRow => row[12] !== null

/** The number of bytes of all events up to this one, in a row of `anySize`. */
export const runningOf = (row: Row): number => Number(row[14])

/** The hash of the event's key, if the read asked for it. */
export const hashOfRow = (row: Row): number => Number(row[row.length - 1])

/** Microseconds from 1970 to 2000. */
const epochMicros = 946_684_800_000_000n

const int64 = new DataView(new ArrayBuffer(8))

/** Copies the bytes into one view, because a view for each event costs more than the rest of the conversion. */
const microsOf = (sent: Uint8Array): bigint => {
  for (let index = 0; index < 8; index++) int64.setUint8(index, sent[index]!)
  return int64.getBigInt64(0) + epochMicros
}

/**
 * Sets the fields of an event. A constructor, so that events are always young objects: see
 * docs/adr/0023-short-lived-events.md. Not generic, and without a spread, for speed: it runs for every event that is read.
 */
function EventOfRow(this: Types.Mutable<Event>, row: WholeRow): void {
  const metadataText = row[13]
  const createdAtMicros = microsOf(row[11])
  this.globalPosition = row[0]
  this.boundedContext = row[1]
  this.aggregateType = row[2]
  this.aggregateId = row[3]
  this.aggregateVersion = row[4]
  this.eventId = row[5]
  this.eventType = row[6]
  this.eventVersion = row[7]
  this.payload = row[12]
  this.traceId = row[8]
  this.correlationId = row[9]
  this.causationId = row[10]
  this.metadata = metadataText === null ? null : JSON.parse(metadataText)
  this.metadataText = metadataText
  this.createdAt = dateOfMicros(createdAtMicros)
  this.createdAtMicros = createdAtMicros
}
// Events are plain objects.
EventOfRow.prototype = Object.prototype

/** Cast, because TypeScript gives a function no constructor signature. */
const makeEvent = EventOfRow as unknown as new(row: WholeRow) => Event

export const toEvent = (row: WholeRow): Event => new makeEvent(row)

export const toEventOfStream = (
  [position, boundedContext, aggregateType, aggregateId, version, eventId, eventType, eventVersion, ...rest]: StreamRow
): Event =>
  toEvent([
    BigInt(position),
    boundedContext,
    aggregateType,
    aggregateId,
    BigInt(version),
    eventId,
    eventType,
    Number(eventVersion),
    ...rest
  ])
