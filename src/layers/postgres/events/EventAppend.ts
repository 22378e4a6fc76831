/** The append: one statement, which is retried when it conflicts with other writers. */
import * as PgTypes from "@effect/sql-pg/PgTypes"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Random from "effect/Random"
import * as Result from "effect/Result"
import type * as SqlError from "effect/sql/SqlError"
import * as Append from "../../../schema/Append.ts"
import { ConcurrencyConflict, DuplicateEvent, type InvalidEvents, type StoreError } from "../../../schema/Errors.ts"
import type { Appended, ExpectedVersion, NewEvent } from "../../../schema/Event.ts"
import type { AppendOptions } from "../../../services/EventStore.ts"
import { array } from "../connection/Codecs.ts"
import { isConflict, refail, unsupported } from "../connection/SqlErrors.ts"
import type { Database } from "../Database.ts"
import { hashOf } from "../HashSql.ts"
import * as AppendError from "./AppendError.ts"
import { streamParameters, timeOf, versionText } from "./EventSql.ts"
import type { ReadSession } from "./ReadSession.ts"

/** What every append uses. */
export interface EventAppend {
  readonly database: Database["Service"]
  /** Looks up the constraint that a failed append violated. */
  readonly session: ReadSession
  readonly statements: ReturnType<typeof makeStatements>
  /** Wakes the readers that an append to the aggregate with this hash concerns; runs after the commit. */
  readonly announce: (hash: number) => Effect.Effect<void>
}

/** One append, validated. */
interface Request extends Append.Append {
  readonly expected: ExpectedVersion
  /** Whether the append is a transaction of its own; only then it can be retried. */
  readonly autocommit: boolean
}

/**
 * Maximum attempts of an append that conflicts with another one, or whose expected version is reached only after it
 * failed.
 */
const mostAttempts = 20

/** After this an append waits for other writers as long as the session's own `lock_timeout` allows. */
const shortWaitsNanos = 1_000_000_000n

export const make = (options: Omit<EventAppend, "statements">): EventAppend => ({
  ...options,
  statements: makeStatements(options.database.qualified("events"), options.database.qualified("aggregateHeads"))
})

/** Appends events to one aggregate, or returns the earlier append that they repeat. */
export const append = Effect.fnUntraced(function*(
  self: EventAppend,
  events: ReadonlyArray<NewEvent>,
  { defaults, expectedVersion = "any", onDuplicate }: AppendOptions & { readonly defaults: Append.Defaults }
): Effect.fn.Return<Appended, ConcurrencyConflict | DuplicateEvent | InvalidEvents | StoreError> {
  const request: Request = {
    ...(yield* Effect.fromResult(Append.validate(events, defaults))),
    expected: expectedVersion,
    autocommit: Option.isNone(yield* Effect.serviceOption(self.database.sql.transactionService))
  }
  if (onDuplicate !== "return") return yield* appendNew(self, request)
  yield* Effect.fromResult(Append.checkIds(request))
  return yield* Effect.catchTag(
    undoable(self, request),
    ["ConcurrencyConflict", "DuplicateEvent"],
    (error) =>
      Effect.flatMap(
        original(self, request),
        (found) => found === undefined ? Effect.fail(error) : Effect.succeed(found)
      )
  )
})

/**
 * In a transaction of the caller, appends in a savepoint: a unique violation, which reveals an append that was
 * committed since the statement's snapshot, would otherwise abort the transaction.
 */
const undoable = (self: EventAppend, request: Request) =>
  request.autocommit
    ? appendNew(self, request)
    : self.database.refail("append events", ["appender"])(self.database.sql.withTransaction(appendNew(self, request)))

/** The append that has stored the events of the request; undefined if the stream does not contain them as a batch. */
const original = (self: EventAppend, { rows, stream }: Request) =>
  self.database.sql.unsafe<{ readonly version: string | null; readonly position: string | null }>(
    self.statements.stored,
    [...streamParameters(stream), array(rows.map((row) => row.eventId ?? null), PgTypes.OID.text)]
  ).pipe(
    self.database.refail("look up events", ["appender"]),
    Effect.map((found) =>
      Append.original(
        stream,
        found.map(({ position, version }) =>
          version === null || position === null ? undefined : { version: BigInt(version), position: BigInt(position) }
        )
      )
    )
  )

/** Attempts the statement until it succeeds or fails permanently. */
const appendNew = Effect.fnUntraced(function*(
  self: EventAppend,
  request: Request
): Effect.fn.Return<Appended, ConcurrencyConflict | DuplicateEvent | StoreError> {
  const { database } = self
  const begun = yield* Clock.monotonicTimeNanos
  for (let attempt = 1; attempt <= mostAttempts; attempt++) {
    const waitsShortly = request.autocommit && (yield* Clock.monotonicTimeNanos) - begun < shortWaitsNanos
    const eventsWait = waitsShortly ? eventsWaitOf(attempt) : null
    const result = yield* Effect.result(insert(self, request, eventsWait))
    if (Result.isFailure(result)) {
      const error = result.failure
      if (request.autocommit && attempt < mostAttempts && isRetried(error, eventsWait)) {
        yield* pause(attempt)
        continue
      }
      return yield* Effect.flatMap(AppendError.explain(self, request, error), Effect.fail).pipe(
        refail(database.server, "append events", { autocommit: request.autocommit }),
        database.namingPrivileges("appender")
      )
    }
    const [row] = result.success
    if (row !== undefined) {
      yield* database.sql.afterCommit(self.announce(Number(row.hash)))
      return toAppended(request, row)
    }
    const reason = yield* explainNoRow(self, request)
    if (reason !== undefined) return yield* reason
  }
  return yield* unsupported({
    problem: `${
      database.qualified("aggregateHeads")
    } refuses the row of an aggregate whose version is the expected one. Nothing was appended.`,
    advice: "Remove the trigger, rule or policy on that table that keeps rows from being written."
  })
})

/**
 * How long an attempt waits for the events of other writers while it holds the head: 50, 100, 200, 400 ms. Each is
 * shorter than `deadlock_timeout` (one second), after which the server checks for deadlocks.
 */
const eventsWaitOf = (attempt: number): string | null => attempt <= 4 ? `${25 << attempt}ms` : null

/** The row of a successful append. Missing if the aggregate had another version or an event id is already stored. */
interface AppendedRow {
  readonly positions: ReadonlyArray<string>
  readonly first: string
  readonly last: string
  /** The hash of the aggregate's id, which determines the ranges that the append concerns. */
  readonly hash: string
}

const insert = (self: EventAppend, { autocommit, expected, rows, stream }: Request, eventsWait: string | null) => {
  const texts = (key: "eventId" | "eventType" | "traceId" | "correlationId" | "causationId" | "metadata") =>
    array(rows.map((row) => row[key] ?? null), PgTypes.OID.text)
  // Otherwise the column's default applies.
  const isDated = rows.some((row) => row.createdAtMicros !== null)
  return self.database.sql.unsafe<AppendedRow>(isDated ? self.statements.dated : self.statements.plain, [
    ...streamParameters(stream),
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
    eventsWait,
    autocommit ? array([], PgTypes.OID.text) : texts("eventId"),
    ...(isDated
      ? [array(rows.map((row) => row.createdAtMicros === null ? null : String(row.createdAtMicros)), PgTypes.OID.text)]
      : [])
  ])
}

/** A lock timeout of the session itself is final; the one that bounds the wait for events is not. */
const isRetried = (error: SqlError.SqlError, eventsWait: string | null): boolean =>
  isConflict(error) && (eventsWait !== null || error.reason._tag !== "LockTimeoutError")

/**
 * Pause before an append is retried: 2 ms, doubling up to 100 ms, with jitter so that competitors do not conflict
 * again.
 */
const pause = (attempt: number): Effect.Effect<void> =>
  Effect.flatMap(Random.next, (random) => Effect.sleep(Math.min(100, 2 ** attempt) * (0.5 + random / 2)))

const toAppended = ({ stream }: Request, row: AppendedRow): Appended => ({
  stream,
  firstVersion: BigInt(row.first),
  lastVersion: BigInt(row.last),
  positions: row.positions.map(BigInt)
})

/** The reason why no event was appended; undefined if the version is now the expected one. */
const explainNoRow = Effect.fnUntraced(function*(self: EventAppend, { expected, rows, stream }: Request) {
  const ids = rows.flatMap((row) => row.eventId ?? [])
  const [found] = yield* self.database.sql.unsafe<{ readonly version: string; readonly stored: string | null }>(
    self.statements.conflict,
    [...streamParameters(stream), array(ids, PgTypes.OID.text)]
  ).pipe(self.database.refail("read an aggregate's version", ["appender"]))
  // Checked before the version: stored ids show that a repeated append was committed before.
  if (found !== undefined && found.stored !== null) return new DuplicateEvent({ detail: `event id ${found.stored}` })
  const actual = BigInt(found?.version ?? 0)
  return expected === "any" || actual === (expected === "none" ? 0n : expected)
    ? undefined
    : new ConcurrencyConflict({ ...stream, expected: String(expected), actual })
})

/** SQL: the version of a head `h` after an append of $4 events; `excluded` has the version computed from the events. */
const nextHead = `CASE WHEN h.ctid = (SELECT stored.head FROM stored) THEN excluded.aggregate_version
  ELSE greatest(h.aggregate_version + $4::int8, excluded.aggregate_version) END`

const makeStatements = (events: string, heads: string) => {
  // One look-up per id, because the plan for a list of ids may scan the table and stays in use while the table grows.
  const storedIds = (ids: string) => `
      SELECT id FROM unnest(${ids}) AS given (id)
      WHERE id IS NOT NULL AND (SELECT true FROM ${events} WHERE event_id = id::uuid)`
  return {
    plain: appendStatement(events, heads, storedIds("$15::text[]"), false),
    dated: appendStatement(events, heads, storedIds("$15::text[]"), true),
    conflict: `
      SELECT (SELECT coalesce(max(aggregate_version), 0) FROM ${events}
          WHERE bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3)::text AS version,
        (${storedIds("$4::text[]")} LIMIT 1) AS stored`,
    // LIMIT keeps the planner from joining the events as a whole.
    stored: `
      SELECT found.aggregate_version::text AS version, found.global_position::text AS position
      FROM unnest($4::text[]) WITH ORDINALITY AS given (id, place)
      LEFT JOIN LATERAL (
        SELECT aggregate_version, global_position FROM ${events}
        WHERE event_id = given.id::uuid AND bounded_context = $1 AND aggregate_type = $2 AND aggregate_id = $3 LIMIT 1
      ) AS found ON true
      ORDER BY given.place`
  }
}

/**
 * The head's row is locked before the first position is drawn, so that appends to one aggregate wait for each other
 * without holding readers back. The version is computed from the events: if the head has not changed since the
 * statement's snapshot, the last event in that snapshot has the current version. If the head has changed, another append
 * changed it, and the head is correct. The last SELECT makes the statement fail if a trigger suppressed or redirected an
 * event, or if the first position is not above all that were visible before it was drawn, because readers may already
 * have passed it.
 *
 * If one of the ids $15 is already stored, nothing is appended, as with an unexpected version, because a unique
 * violation would abort the caller's transaction.
 *
 * Go's append inserts its events first and locks the head afterwards. An append that holds the head and waits for such
 * an event would deadlock with it, so the wait for events ends after $14, and the head is released.
 */
const appendStatement = (events: string, heads: string, storedIds: string, isDated: boolean): string => `
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
          AND NOT EXISTS (${storedIds})
        ON CONFLICT (bounded_context, aggregate_type, aggregate_id) DO UPDATE
        SET aggregate_version = ${nextHead}, updated_at = now()
        WHERE $5::int8 IS NULL OR ${nextHead} - $4::int8 = $5
        RETURNING h.aggregate_version
      ), lock_wait AS MATERIALIZED (
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
        FROM head CROSS JOIN lock_wait CROSS JOIN unnest($6::text[], $7::text[], $8::text[], $9::bytea[], $10::text[],
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
      SELECT positions, first::text, last::text, ${hashOf("$3::text")}::text AS hash,
        CASE WHEN kept <> $4::int8 OR last <> head.aggregate_version OR first <> last - $4::int8 + 1
            OR ids < (SELECT count(id) FROM unnest($6::text[]) AS given (id))
          THEN ('${AppendError.altered}' || kept)::int8::text
          WHEN position <= (SELECT max(global_position) FROM ${events})
          THEN ('${AppendError.behind}' || position)::int8::text END AS refused,
        CASE WHEN $14::text IS NOT NULL THEN set_config('lock_timeout', lock_wait.was, true) END AS lock_wait
      FROM result CROSS JOIN head CROSS JOIN lock_wait`
