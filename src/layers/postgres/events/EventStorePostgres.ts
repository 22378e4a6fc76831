/**
 * The event store on PostgreSQL, in the tables that pupsourcing creates.
 *
 * @since 0.1.0
 */
import * as PgTypes from "@effect/sql-pg/PgTypes"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import type * as Scope from "effect/Scope"
import type * as SqlError from "effect/sql/SqlError"
import * as Append from "../../../schema/Append.ts"
import {
  CheckpointAheadOfEvents,
  ConcurrencyConflict,
  DuplicateEvent,
  type EventError,
  EventTooLarge,
  EventUnreadable,
  ReadOnlyReplica,
  type StoreError,
  type StoreFailure,
  UnsupportedDatabase
} from "../../../schema/Errors.ts"
import {
  type Appended,
  dateOfMicros,
  type Event,
  type ExpectedVersion,
  type NewEvent,
  type StreamId
} from "../../../schema/Event.ts"
import * as HashRange from "../../../schema/HashRange.ts"
import * as Settled from "../../../schema/Settled.ts"
import { EventStore, type Page, type ReadOptions, type ServerEpoch } from "../../../services/EventStore.ts"
import { Listener } from "../connection/Listener.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import { codeOf, isConflict, isUnreadable, refail } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import { hashOf } from "../HashSql.ts"
import * as AppendRefusal from "./AppendRefusal.ts"
import * as Reader from "./Reader.ts"
import * as SettledTracker from "./SettledTracker.ts"

const defaultLimit = 1000

const defaultBytes = 4 * 1024 * 1024

/** The driver's default limit for one message, that is, for one row. */
const defaultMessageSize = 16 * 1024 * 1024

/** Room in a message for bytes that the measured size of its row does not include. */
const messageHeadroom = 512 * 1024

/** Number of positions that a statement with a filter scans: initially, and at least after a timeout. */
const firstWindow = 20_000n
const smallestWindow = 500n

/**
 * A read statement faster than `fastNanos` is too small, one slower than `slowNanos` too large, because all ranges read
 * on one connection.
 */
const fastNanos = 25_000_000n
const slowNanos = 150_000_000n

/** A read that finds few events returns after this time, with the position that it has reached. */
const readNanos = 500_000_000n

/**
 * Maximum size in bytes of the texts and the stored metadata in a small row. Metadata that is stored in this size
 * without compression is also small when it is sent.
 */
const smallBesides = 1000

/** Number of rows that a statement measures, at first and at most: measuring large metadata means reading it. */
const firstMeasured = 100
const mostMeasured = 10_000

/** Number of statements for rows of any size after which the statement for small rows is tried again. */
const pagesOfAnySize = 32

const columns = [
  ["global_position", "globalPosition"],
  ["bounded_context", "boundedContext"],
  ["aggregate_type", "aggregateType"],
  ["aggregate_id", "aggregateId"],
  ["aggregate_version", "aggregateVersion"],
  ["event_id", "eventId"],
  ["event_type", "eventType"],
  ["event_version", "eventVersion"],
  ["trace_id", "traceId"],
  ["correlation_id", "correlationId"],
  ["causation_id", "causationId"],
  // Microseconds since 2000; the driver's dates have only milliseconds.
  ["timestamptz_send(created_at)", "createdAt"]
] as const

const selected = columns.map(([column, name]) => `${column} AS "${name}"`).join(", ")

/**
 * SQL: the columns of the result, from a row that was `selected` and whether it `fits`. In a row that does not fit, all
 * but the position are NULL.
 */
const handedOut = `"globalPosition", ${
  [...columns.map(([, name]) => name).filter((name) => name !== "globalPosition"), "payload"]
    .map((name) => `CASE WHEN fits THEN "${name}" END AS "${name}"`).join(", ")
}, CASE WHEN fits THEN metadata::text END AS "metadataText"`

/** Columns whose texts may have any length that their indexes accept. */
const texts = [
  "bounded_context",
  "aggregate_type",
  "aggregate_id",
  "event_type",
  "trace_id",
  "correlation_id",
  "causation_id"
]

const textBytes = texts.map((column) => `coalesce(octet_length(${column}), 0)`).join(" + ")

const hasSmallBesides = `${textBytes} + coalesce(pg_column_size(metadata), 0) <= ${smallBesides}
  AND pg_column_compression(metadata) IS NULL`

/** SQL: the size of a row in bytes. Large metadata is measured as it is sent, small metadata as it is stored. */
const rowBytes = `octet_length(payload) + ${textBytes} + coalesce(
  CASE WHEN pg_column_size(metadata) <= ${smallBesides} AND pg_column_compression(metadata) IS NULL
    THEN pg_column_size(metadata) ELSE octet_length(metadata::text) END, 0)`

/** SQL: fails if the row cannot be read or sent, because it reads every value completely and checks every text. */
const readableBytes = `octet_length(payload || '') + ${
  [...texts, "metadata::text"].map((text) => `coalesce(octet_length(convert_to(${text}, 'UTF8')), 0)`).join(" + ")
}`

const hash = hashOf("aggregate_id")

const divisionByZero = "22012"

/** A row with an event and, if measured, the number of bytes of all events up to it. */
interface WholeRow extends Omit<Event, "createdAt" | "createdAtMicros" | "metadata"> {
  /** In the format of `timestamptz_send`. */
  readonly createdAt: Uint8Array
  readonly running?: bigint
}

/** A row that does not fit contains only its position. */
type Row = WholeRow | { readonly globalPosition: bigint; readonly payload: null }

interface Window {
  readonly rows: ReadonlyArray<Row>
}

/** The statement failed at a row that cannot be read. */
interface Unreadable {
  readonly unreadable: StoreFailure
}

/** The first event that cannot be read. */
interface Damaged {
  readonly position: bigint
  readonly failure: StoreFailure
}

type Answer = Unreadable | Window | "unproved" | "timeout"

const isUnreadableAnswer = (answer: Answer): answer is Unreadable =>
  typeof answer === "object" && "unreadable" in answer

const isWhole = (row: Row): row is WholeRow => row.payload !== null

const payloadBytes = (rows: ReadonlyArray<WholeRow>): number =>
  rows.reduce((sum, { payload }) => sum + payload.length, 0)

/** A number of rows as bigint, limited to the largest safe integer, which no table exceeds. */
const rowCount = (count: number): bigint => BigInt(Math.min(Math.floor(count), Number.MAX_SAFE_INTEGER))

const array = (values: ReadonlyArray<unknown>, oid: number) => Result.getOrThrow(PgTypes.array(values, oid))

/** SQL: the version of a head `h` after an append of $4 events; `excluded` has the version computed from the events. */
const nextHead = `CASE WHEN h.ctid = (SELECT stored.head FROM stored) THEN excluded.aggregate_version
  ELSE greatest(h.aggregate_version + $4::int8, excluded.aggregate_version) END`

/**
 * Maximum attempts of an append that conflicts with another one, or whose expected version is reached only after it
 * failed.
 */
const mostAttempts = 20

/**
 * Pause before an append is retried: 2 ms, doubling up to 100 ms, with jitter so that competitors do not conflict
 * again.
 */
const pause = (attempt: number): Effect.Effect<void> =>
  Effect.flatMap(Random.next, (random) => Effect.sleep(Math.min(100, 2 ** attempt) * (0.5 + random / 2)))

/** After this an append waits for other writers as long as the session's own `lock_timeout` allows. */
const impatientNanos = 1_000_000_000n

/**
 * How long an attempt waits for the events of other writers while it holds the head: 50, 100, 200, 400 ms. Each is
 * shorter than `deadlock_timeout` (one second), after which the server checks for deadlocks.
 */
const eventsWait = (attempt: number): string | null => attempt <= 4 ? `${25 << attempt}ms` : null

/** The highest version that the column can store. */
const lastVersion = 2n ** 63n - 1n

/** A version as a parameter, clamped to the range that the server can represent. */
const versionText = (version: bigint): string =>
  String(version < 0n ? -1n : version > lastVersion ? lastVersion : version)

/** The row of a successful append. Missing if the aggregate had another version or an event id is already stored. */
interface AppendedRow {
  readonly positions: ReadonlyArray<string>
  readonly first: string
  readonly last: string
}

/** A row of a stream, read on the application's client, whose codecs may differ. */
interface StreamRow extends Omit<WholeRow, "aggregateVersion" | "eventVersion" | "globalPosition" | "running"> {
  readonly globalPosition: string
  readonly aggregateVersion: string
  readonly eventVersion: string
}

const streamColumns = columns.map(([column, name]) =>
  `${name === "createdAt" ? column : `${column}::text`} AS "${name}"`
).join(", ")

/**
 * SQL: converts microseconds since 1970 to a timestamp. Multiplying an interval uses floating point, which is exact for
 * these two parts; parsing an interval of so many microseconds fails before PostgreSQL 15.
 */
const timeOf = (micros: string): string =>
  `timestamptz 'epoch' + ${micros} / 3600000000 * interval '1 hour' + ${micros} % 3600000000 * interval '1 microsecond'`

/** Microseconds from 1970 to 2000. */
const epochMicros = 946_684_800_000_000n

const microsOf = (sent: Uint8Array): bigint =>
  new DataView(sent.buffer, sent.byteOffset, sent.byteLength).getBigInt64(0) + epochMicros

const toEvent = (row: StreamRow | WholeRow): Event => {
  const createdAtMicros = microsOf(row.createdAt)
  // Not generic, for speed: it runs for every event that is read.
  return {
    globalPosition: BigInt(row.globalPosition),
    boundedContext: row.boundedContext,
    aggregateType: row.aggregateType,
    aggregateId: row.aggregateId,
    aggregateVersion: BigInt(row.aggregateVersion),
    eventId: row.eventId,
    eventType: row.eventType,
    eventVersion: Number(row.eventVersion),
    payload: row.payload,
    traceId: row.traceId,
    correlationId: row.correlationId,
    causationId: row.causationId,
    metadata: row.metadataText === null ? null : JSON.parse(row.metadataText),
    metadataText: row.metadataText,
    createdAt: dateOfMicros(createdAtMicros),
    createdAtMicros
  }
}

/**
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<EventStore["Service"], never, Database | Listener | Scope.Scope> = Effect.gen(
  function*() {
    const database = yield* Database
    const listener = yield* Listener
    const reader = yield* Reader.make
    const tracker = yield* SettledTracker.make(reader)
    const { sql } = database
    const events = database.qualified("events")
    const heads = database.qualified("aggregateHeads")
    const messageSize = database.pg.config.maxMessageSize ?? defaultMessageSize
    const largest = messageSize - Math.min(messageHeadroom, Math.floor(messageSize / 4))

    // One look-up per id, because the plan for a list of ids may scan the table and stays in use while the table grows.
    const storedIds = (ids: string) => `
      SELECT id FROM unnest(${ids}) AS given (id)
      WHERE id IS NOT NULL AND (SELECT true FROM ${events} WHERE event_id = id::uuid)`

    // The head's row is locked before the first position is drawn, so that appends to one aggregate wait for each
    // other without holding readers back. The version is computed from the events: if the head has not changed since
    // the statement's snapshot, the last event in that snapshot has the current version. If the head has changed,
    // another append changed it, and the head is correct. The last SELECT makes the statement fail if a trigger
    // suppressed or redirected an event, or if the first position is not above all that were visible before it was
    // drawn, because readers may already have passed it.
    //
    // If one of the ids $15 is already stored, nothing is appended, as with an unexpected version, because a unique
    // violation would abort the caller's transaction.
    //
    // Go's append inserts its events first and locks the head afterwards. An append that holds the head and waits for
    // such an event would deadlock with it, so the wait for events ends after $14, and the head is released.
    const appendStatement = (isDated: boolean) => `
      WITH stored AS MATERIALIZED (
        SELECT
          (SELECT coalesce(max(aggregate_version), 0) FROM ${events}
            WHERE bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3) AS version,
          (SELECT h.ctid FROM ${heads} AS h
            WHERE bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3) AS head
      ), head AS (
        INSERT INTO ${heads} AS h (bounded_context, aggregate_type, aggregate_id, aggregate_version, updated_at)
        SELECT $1, $2, $3, stored.version + $4::int8, now() FROM stored
        WHERE ($5::int8 IS NULL OR stored.version = $5 OR stored.head IS NOT NULL)
          AND NOT EXISTS (${storedIds("$15::text[]")})
        ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO UPDATE
        SET aggregate_version = ${nextHead}, updated_at = now()
        WHERE $5::int8 IS NULL OR ${nextHead} - $4::int8 = $5
        RETURNING h.aggregate_version
      ), patience AS MATERIALIZED (
        SELECT was, CASE WHEN $14::text IS NOT NULL THEN set_config('lock_timeout',
          CASE WHEN was <> '0' AND was::interval < $14::text::interval THEN was ELSE $14::text END, true) END
        FROM (SELECT current_setting('lock_timeout') AS was FROM head OFFSET 0) AS setting
      ), added AS (
        INSERT INTO ${events} (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
          event_version, payload, trace_id, correlation_id, causation_id, metadata${isDated ? ", created_at" : ""})
        SELECT $1, $2, $3, head.aggregate_version - $4::int8 + e.place, coalesce(e.event_id::uuid, gen_random_uuid()),
          e.event_type, e.event_version::int4, e.payload, e.trace_id, e.correlation_id, e.causation_id, e.metadata::jsonb${
      isDated ? `, coalesce(${timeOf("e.micros::int8")}, now())` : ""
    }
        FROM head CROSS JOIN patience CROSS JOIN unnest($6::text[], $7::text[], $8::text[], $9::bytea[], $10::text[],
          $11::text[], $12::text[], $13::text[]${isDated ? ", $16::text[]" : ""}) WITH ORDINALITY AS e (event_id,
          event_type, event_version, payload, trace_id, correlation_id, causation_id, metadata,
          ${isDated ? "micros, " : ""}place)
        ORDER BY e.place
        RETURNING global_position, aggregate_version,
          bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3 AS kept, event_id
      ), result AS (
        SELECT array_agg(global_position::text ORDER BY aggregate_version) AS positions,
          min(aggregate_version) AS first, max(aggregate_version) AS last, count(*) FILTER (WHERE kept) AS kept,
          min(global_position) AS position,
          count(*) FILTER (WHERE event_id IN (SELECT id::uuid FROM unnest($6::text[]) AS given (id))) AS ids
        FROM added
      )
      SELECT positions, first::text, last::text,
        CASE WHEN kept <> $4::int8 OR last <> head.aggregate_version OR first <> last - $4::int8 + 1
            OR ids < (SELECT count(id) FROM unnest($6::text[]) AS given (id))
          THEN ('${AppendRefusal.altered}' || kept)::int8::text
          WHEN position <= (SELECT max(global_position) FROM ${events})
          THEN ('${AppendRefusal.behind}' || position)::int8::text END AS refused,
        CASE WHEN $14::text IS NOT NULL THEN set_config('lock_timeout', patience.was, true) END AS patience
      FROM result CROSS JOIN head CROSS JOIN patience`

    const plainAppend = appendStatement(false)
    const datedAppend = appendStatement(true)

    const conflictStatement = `
      SELECT (SELECT coalesce(max(aggregate_version), 0) FROM ${events}
          WHERE bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3)::text AS version,
        (${storedIds("$4::text[]")} LIMIT 1) AS stored`

    const identify = (stream: StreamId) => [stream.boundedContext, stream.aggregateType, stream.aggregateId]

    const refusal = AppendRefusal.make(database, reader)

    const announce = Effect.andThen(Effect.sync(tracker.wake), listener.notify(database.channels.events, "appended"))

    /** The reason why no event was appended; undefined if the version is now the expected one. */
    const conflict = Effect.fnUntraced(function*(
      stream: StreamId,
      expected: ExpectedVersion,
      rows: ReadonlyArray<Append.Row>
    ) {
      const ids = rows.flatMap((row) => row.eventId ?? [])
      const [found] = yield* sql.unsafe<{ readonly version: string; readonly stored: string | null }>(
        conflictStatement,
        [...identify(stream), array(ids, PgTypes.OID.text)]
      ).pipe(database.refail("read an aggregate's version"))
      // Checked before the version: stored ids show that a repeated append was committed before.
      if (found !== undefined && found.stored !== null) {
        return new DuplicateEvent({ detail: `event id ${found.stored}` })
      }
      const actual = BigInt(found?.version ?? 0)
      return expected === "any" || actual === (expected === "none" ? 0n : expected)
        ? undefined
        : new ConcurrencyConflict({ ...stream, expected: String(expected), actual })
    })

    const append = Effect.fnUntraced(function*(
      newEvents: ReadonlyArray<NewEvent>,
      options?: { readonly expectedVersion?: ExpectedVersion | undefined }
    ) {
      const { rows, stream } = yield* Effect.fromResult(Append.validate(newEvents))
      const expected = options?.expectedVersion ?? "any"
      const autocommit = Option.isNone(yield* Effect.serviceOption(sql.transactionService))
      const texts = (key: "eventId" | "eventType" | "traceId" | "correlationId" | "causationId" | "metadata") =>
        array(rows.map((row) => row[key] ?? null), PgTypes.OID.text)
      // Otherwise the column's default applies.
      const isDated = rows.some((row) => row.createdAtMicros !== null)
      const insert = (wait: string | null) =>
        sql.unsafe<AppendedRow>(isDated ? datedAppend : plainAppend, [
          ...identify(stream),
          String(rows.length),
          expected === "any" ? null : expected === "none" ? "0" : versionText(expected),
          texts("eventId"),
          texts("eventType"),
          array(rows.map((row) => String(row.eventVersion)), PgTypes.OID.text),
          array(rows.map((row) => row.payload), PgTypes.OID.bytea),
          texts("traceId"),
          texts("correlationId"),
          texts("causationId"),
          texts("metadata"),
          wait,
          autocommit ? array([], PgTypes.OID.text) : texts("eventId"),
          ...(isDated
            ? [
              array(
                rows.map((row) => row.createdAtMicros === null ? null : String(row.createdAtMicros)),
                PgTypes.OID.text
              )
            ]
            : [])
        ])
      const begun = yield* Clock.monotonicTimeNanos
      for (let attempt = 1; attempt <= mostAttempts; attempt++) {
        // In the caller's transaction an append cannot be retried.
        const isImpatient = autocommit && (yield* Clock.monotonicTimeNanos) - begun < impatientNanos
        const wait = isImpatient ? eventsWait(attempt) : null
        const result = yield* Effect.result(insert(wait))
        if (Result.isFailure(result)) {
          const error = result.failure
          const isRetried = autocommit && attempt < mostAttempts && isConflict(error) &&
            (wait !== null || error.reason._tag !== "LockTimeoutError")
          if (isRetried) {
            yield* pause(attempt)
            continue
          }
          return yield* Effect.flatMap(refusal(stream, expected, error), Effect.fail).pipe(
            refail(database.server, "append events", { autocommit })
          )
        }
        const [found] = result.success
        if (found !== undefined) {
          yield* sql.afterCommit(announce)
          const appended: Appended = {
            stream,
            firstVersion: BigInt(found.first),
            lastVersion: BigInt(found.last),
            positions: found.positions.map(BigInt)
          }
          return appended
        }
        const reason = yield* conflict(stream, expected, rows)
        if (reason !== undefined) return yield* reason
      }
      return yield* new UnsupportedDatabase({
        problem: `${heads} refuses the row of an aggregate whose version is the expected one. Nothing was appended.`,
        advice: "Remove the trigger, rule or policy on that table that keeps rows from being written."
      })
    })

    const streamStatement = `
      SELECT ${streamColumns}, payload, metadata::text AS "metadataText" FROM ${events}
      WHERE bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3
        AND aggregate_version >= $4::int8 AND ($5::int8 IS NULL OR aggregate_version <= $5)
      ORDER BY aggregate_version LIMIT $6::int8`

    const readStream: EventStore["Service"]["readStream"] = (stream, options) =>
      sql.unsafe<StreamRow>(streamStatement, [
        ...identify(stream),
        versionText(options?.from ?? 1n),
        options?.to === undefined ? null : versionText(options.to),
        options?.limit === undefined ? null : String(rowCount(Math.max(0, options.limit || 0)))
      ]).pipe(Effect.map((rows) => rows.map(toEvent)), database.refail("read a stream"))

    const conditions = (
      options: ReadOptions
    ): { readonly text: string; readonly parameters: ReadonlyArray<unknown> } => {
      const parameters: Array<unknown> = []
      const parts: Array<string> = []
      const next = (value: unknown) => {
        parameters.push(value)
        // $1 to $6 are parameters of every read.
        return `$${parameters.length + 6}`
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
      return { text: parts.map((part) => ` AND ${part}`).join(""), parameters }
    }

    const matching = (where: string) => `
      FROM ${events}
      WHERE global_position > $1
        AND global_position <= (
          SELECT $2::int8 / CASE
            WHEN pg_is_in_recovery() OR ${Reader.files(events, "$5::oid::regclass")} IS DISTINCT FROM $6::text THEN 0
            ELSE 1 END
        )${where}
      ORDER BY global_position LIMIT $3::int8`

    // Reads at most $3 events with $1 < position <= $2. A row without a payload does not fit and ends the page. The
    // statement divides by zero on a standby, and if the events and the sequence $5 are no longer in the files $6. A
    // row fits only up to $4 bytes of payload, which bounds the bytes of all rows together.
    const smallRowsStatement = (where: string) => `
      SELECT ${handedOut}
      FROM (
        SELECT ${selected}, payload, metadata, octet_length(payload) <= $4::int8 AND ${hasSmallBesides} AS fits
        ${matching(where)}
      ) AS judged
      ORDER BY "globalPosition"`

    // Reads at most $4 bytes in all, or one event whose size is at most the last parameter.
    const anyRowsStatement = (where: string, last: number) => `
      SELECT ${handedOut}, running
      FROM (
        SELECT *, running <= $4::int8 OR (running = size AND size <= $${last}::int8) AS fits
        FROM (
          SELECT *, sum(size) OVER part AS running, first_value(size) OVER part AS first
          FROM (SELECT ${selected}, payload, metadata, 1 + ${rowBytes} AS size ${matching(where)}) AS matching
          WINDOW part AS (ORDER BY "globalPosition" ROWS UNBOUNDED PRECEDING)
        ) AS measured
      ) AS judged
      WHERE running - size <= greatest($4::int8, first)
      ORDER BY "globalPosition"`

    const tooLargeStatement = `
      SELECT event_id AS "eventId", aggregate_id AS "aggregateId", aggregate_type AS "aggregateType",
        aggregate_version AS "aggregateVersion", event_type AS "eventType", ${rowBytes} AS bytes FROM ${events} WHERE global_position = $1`

    type Described =
      & Pick<Event, "aggregateId" | "aggregateType" | "aggregateVersion" | "eventId" | "eventType">
      & { readonly bytes: number }

    const tooLarge = Effect.fnUntraced(function*(position: bigint, epoch: ServerEpoch) {
      const [row] = yield* reader.use(
        "measure an event",
        ({ sql, state }) =>
          // After a failover, its position may belong to another event, or to none yet.
          state.epoch !== epoch
            ? Effect.fail(ServerEpochSql.isOver(database.server))
            : sql.unsafe<Described>(tooLargeStatement, [position])
      )
      return yield* row === undefined
        ? new UnsupportedDatabase({
          problem: `The event at position ${position} of ${events} disappeared while it was read.`,
          advice: "Delete no events while projections run."
        })
        : new EventTooLarge({
          ...row,
          position,
          limit: largest,
          epoch
        })
    })

    // Returns no part of the rows, because the driver closes a connection on which it cannot decode a row.
    const checkStatement = (where: string) => `
      SELECT count(bytes) AS rows, $4::int8 AS bytes
      FROM (SELECT ${readableBytes} AS bytes ${matching(where)}) AS checked`

    const eventIdStatement = `SELECT event_id AS "eventId" FROM ${events} WHERE global_position = $1`
    const labelStatement = `
      SELECT aggregate_id AS "aggregateId", aggregate_type AS "aggregateType",
        aggregate_version AS "aggregateVersion", event_type AS "eventType"
      FROM ${events} WHERE global_position = $1
        AND convert_to(concat(aggregate_id, aggregate_type, event_type), 'UTF8') IS NOT NULL`

    const unreadable = Effect.fnUntraced(function*(
      { failure: { code, detail }, position }: Damaged,
      epoch: ServerEpoch
    ) {
      const part = <A extends object>(statement: string) =>
        reader.use("identify an unreadable event", ({ sql }) => sql.unsafe<A>(statement, [position])).pipe(
          Effect.map(([row]): Partial<A> => row ?? {}),
          Effect.catchIf(isUnreadable, () => Effect.succeed<Partial<A>>({}))
        )
      const identity = yield* part<Pick<Event, "eventId">>(eventIdStatement)
      const label = yield* part<Pick<Event, "aggregateId" | "aggregateType" | "aggregateVersion" | "eventType">>(
        labelStatement
      )
      return yield* new EventUnreadable({
        position,
        detail,
        epoch,
        ...identity,
        ...label,
        ...(code === undefined ? {} : { code })
      })
    })

    /**
     * The position up to which events may be read, as proved on the reader's current connection, and the server epoch.
     */
    const prove = Effect.fnUntraced(function*(after: bigint, upTo: bigint | undefined) {
      const look = yield* tracker.look(after, upTo)
      if (look.last !== undefined && after > look.last) {
        return yield* new CheckpointAheadOfEvents({ position: after, lastPosition: look.last })
      }
      const reached = look.reached(after)
      return { bound: upTo !== undefined && upTo < reached ? upTo : reached, epoch: look.epoch }
    })

    const readWindow = (statement: string, options: {
      readonly after: bigint
      readonly bound: bigint
      readonly window: readonly [after: bigint, upTo: bigint, limit: bigint, bytes: bigint]
      readonly parameters: ReadonlyArray<unknown>
      readonly mayShrink: boolean
      /** The server epoch in which the bound was proved, or the previous windows were read. */
      readonly epoch: ServerEpoch
    }) =>
      reader.use(
        "read events",
        ({ sql, state }): Effect.Effect<Window | "unproved" | "timeout", SqlError.SqlError | StoreError> =>
          Settled.reached(state.settled, options.after) < options.bound || state.epoch !== options.epoch
            ? Effect.succeed("unproved")
            : sql.unsafe<Row>(statement, [...options.window, state.sequence, state.files, ...options.parameters]).pipe(
              Effect.map((rows): Window => ({ rows })),
              Effect.catchIf(
                (error: SqlError.SqlError) =>
                  options.mayShrink && error.reason._tag === "StatementTimeoutError" ||
                  codeOf(error) === divisionByZero,
                (error) =>
                  Effect.sync(() => {
                    if (error.reason._tag === "StatementTimeoutError") return "timeout" as const
                    Reader.startOver(state)
                    return "unproved" as const
                  })
              )
            )
      ).pipe(
        // Runs outside the session, so that the session replaces a connection that the driver has closed.
        Effect.catchIf(isUnreadable, (failure): Effect.Effect<Answer> => Effect.succeed({ unreadable: failure }))
      )

    /**
     * The first event above `after` that cannot be read, or `undefined` if all can be read. Windows are doubled until a
     * statement fails, then halved. Each statement stops at the first such event, so none reads far beyond it. A
     * statement that takes too long, because of large events before it, is repeated with a smaller window.
     */
    const findUnreadable = Effect.fnUntraced(function*(
      where: ReturnType<typeof conditions>,
      options: { readonly after: bigint; readonly upTo: bigint; readonly bound: bigint; readonly epoch: ServerEpoch }
    ): Effect.fn.Return<Damaged | undefined, StoreError> {
      const check = Effect.fnUntraced(function*(after: bigint, upTo: bigint) {
        const answer = yield* readWindow(checkStatement(where.text), {
          after: options.after,
          bound: options.bound,
          window: [after, upTo, rowCount(Infinity), 0n],
          parameters: where.parameters,
          mayShrink: upTo - after > 1n,
          epoch: options.epoch
        })
        if (answer === "unproved") return yield* ServerEpochSql.isOver(database.server)
        return answer === "timeout" ? answer : isUnreadableAnswer(answer) ? answer.unreadable : undefined
      })
      let low = options.after
      let high = low
      let size = 1n
      let failure: StoreFailure | undefined
      while (high < options.upTo && failure === undefined) {
        low = high
        high = low + size < options.upTo ? low + size : options.upTo
        const found: StoreFailure | "timeout" | undefined = yield* check(low, high)
        if (found === "timeout") {
          high = low
          size = size > 4n ? size / 4n : 1n
        } else {
          failure = found
          size *= 2n
        }
      }
      while (failure !== undefined && high - low > 1n) {
        const middle = (low + high) / 2n
        const sooner: StoreFailure | "timeout" | undefined = yield* check(low, middle)
        if (sooner === "timeout") return undefined
        if (sooner === undefined) {
          low = middle
        } else {
          high = middle
          failure = sooner
        }
      }
      if (failure === undefined) return undefined
      // The event is the cause only if reading it alone fails, and a statement that reads no row succeeds.
      const alone = yield* check(low, high)
      return typeof alone === "object" && (yield* check(high, high)) === undefined
        ? { position: high, failure: alone }
        : undefined
    })

    let anySize = 0
    let measured = firstMeasured

    const read = Effect.fnUntraced(function*(
      options: ReadOptions
    ): Effect.fn.Return<Page, CheckpointAheadOfEvents | EventError | StoreError> {
      const limit = Math.max(1, Math.floor(options.limit ?? defaultLimit))
      const bytes = Math.max(1, Math.floor(options.bytes ?? defaultBytes))
      const where = conditions(options)
      const isFiltered = where.text !== ""
      const begun = yield* Clock.monotonicTimeNanos
      let found: ReadonlyArray<Event> = []
      let used = 0
      let window = firstWindow
      let position = options.after
      let damaged: Damaged | undefined
      const known = tracker.known(options.after)
      let { bound, epoch } = options.upTo !== undefined && known.epoch !== undefined && options.upTo <= known.settled
        ? { bound: options.upTo, epoch: known.epoch }
        : yield* prove(options.after, options.upTo)
      const page = (events: ReadonlyArray<Event>, position: bigint) =>
        options.epoch === undefined || options.epoch === epoch
          ? Effect.succeed<Page>({ events, position, epoch })
          : Effect.fail(ServerEpochSql.isOver(database.server))
      while (position < bound && found.length < limit) {
        const started = yield* Clock.monotonicTimeNanos
        const upper = isFiltered && position + window < bound ? position + window : bound
        const isSmall = found.length === 0 && anySize === 0
        const free = Math.max(0, Math.min(bytes, largest) - used)
        const most = Math.min(limit - found.length, isSmall ? limit : measured)
        const answer: Answer = yield* readWindow(
          isSmall ? smallRowsStatement(where.text) : anyRowsStatement(where.text, where.parameters.length + 7),
          {
            after: options.after,
            bound,
            window: [position, upper, rowCount(most), BigInt(isSmall ? Math.floor(free / limit) : free)],
            parameters: [
              ...where.parameters,
              ...(isSmall ? [] : [found.length === 0 ? BigInt(largest) : 0n])
            ],
            mayShrink: isFiltered && window > smallestWindow || !isSmall && measured > 1,
            epoch
          }
        )
        if (answer === "unproved") {
          // The proof is lost, mostly with its connection; the server epoch may differ, and a page must not mix epochs.
          found = []
          used = 0
          damaged = undefined
          position = options.after
          ;({ bound, epoch } = yield* prove(options.after, bound))
          continue
        }
        if (answer === "timeout") {
          // Computed from the positions that were requested, because the window may reach far beyond the bound.
          window = (upper - position) / 4n < smallestWindow ? smallestWindow : (upper - position) / 4n
          if (!isSmall) measured = Math.max(1, measured >> 2)
          continue
        }
        if (isUnreadableAnswer(answer)) {
          // The driver closes a connection on which it cannot decode a row, so the bound has to be proved again.
          found = []
          used = 0
          position = options.after
          ;({ bound, epoch } = yield* prove(options.after, bound))
          damaged = yield* findUnreadable(where, {
            after: position,
            upTo: upper < bound ? upper : bound,
            bound,
            epoch
          })
          if (damaged === undefined) return yield* answer.unreadable
          bound = damaged.position - 1n
          continue
        }
        const { rows } = answer
        const cut = rows.findIndex((row) => !isWhole(row))
        const fitting = (cut === -1 ? rows : rows.slice(0, cut)).filter(isWhole)
        used += isSmall ? payloadBytes(fitting) : Number(fitting[fitting.length - 1]?.running ?? 0n)
        found = isSmall ? fitting.map(toEvent) : [...found, ...fitting.map(toEvent)]
        if (anySize > 0) anySize--
        const now = yield* Clock.monotonicTimeNanos
        if (now - started < fastNanos) {
          window *= 4n
          if (!isSmall) measured = Math.min(mostMeasured, measured * 4)
        } else if (now - started > slowNanos) {
          if (window > smallestWindow) window /= 2n
          if (!isSmall) measured = Math.max(1, measured >> 1)
        }
        if (cut !== -1) {
          if (isSmall) {
            // The remaining rows are measured one by one, and so are the next pages, which are probably similar.
            anySize = pagesOfAnySize
            position = rows[cut]!.globalPosition - 1n
            continue
          }
          if (found.length === 0) return yield* tooLarge(rows[cut]!.globalPosition, epoch)
          return yield* page(found, rows[cut]!.globalPosition - 1n)
        }
        if (found.length >= limit) return yield* page(found, found[found.length - 1]!.globalPosition)
        position = rows.length < most ? upper : rows[most - 1]!.globalPosition
        if (used >= bytes || now - begun > readNanos) break
      }
      if (damaged !== undefined && found.length === 0 && position >= damaged.position - 1n) {
        yield* page(found, position)
        return yield* unreadable(damaged, epoch)
      }
      return yield* page(found, position)
    })

    const headPosition = reader.use(
      "read the head",
      ({ sql }) =>
        sql.unsafe<{ readonly head: bigint; readonly recovering: boolean }>(
          `SELECT coalesce((SELECT global_position FROM ${events} ORDER BY global_position DESC LIMIT 1), 0) AS head,
           pg_is_in_recovery() AS recovering`
        )
    ).pipe(
      // A standby that has not replayed everything that it received would return a head that is too low.
      Effect.flatMap(([row]) =>
        row?.recovering === true
          ? Effect.fail(new ReadOnlyReplica({ server: database.server.server }))
          : Effect.succeed(row?.head ?? 0n)
      ),
      // The last event cannot be read; the last value of the sequence is an upper bound.
      Effect.catchIf(isUnreadable, () => Effect.map(tracker.look(0n, 0n), ({ head }) => head))
    )

    return EventStore.of({
      append,
      readStream,
      read,
      settledPosition: tracker.settled,
      settledBeyond: tracker.settledBeyond,
      headPosition,
      openWriters: tracker.openWriters
    })
  }
)
