/**
 * Parked events on PostgreSQL. What the owner of a range writes runs in the transaction of its batch, because the
 * statements use the application's client, whose transaction is in the context.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import { haltError, type Held } from "../../../schema/Checkpoint.ts"
import { ParkingLimitReached, type StoreError } from "../../../schema/Errors.ts"
import type { HaltRequest, ParkedEvent, Request, Selection } from "../../../schema/ParkedEvent.ts"
import { ascii, cut } from "../../../schema/Text.ts"
import { EpochEnded, Fenced } from "../../../services/CheckpointStore.ts"
import type { ServerEpoch } from "../../../services/EventStore.ts"
import { type Failure, ParkedEvents } from "../../../services/ParkedEvents.ts"
import { isTrue } from "../connection/Codecs.ts"
import { writing } from "../connection/Encoding.ts"
import { inTime, quietly } from "../connection/PoolStatement.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import { meaningOf } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import { hashOf, keyOf } from "../HashSql.ts"
import type { Role } from "../migrations/Roles.ts"
import * as FencedWrite from "./FencedWrite.ts"

type Store = ParkedEvents
type Db = Database["Service"]

export const make: Effect.Effect<Store, never, Database> = Effect.map(Database, (database) =>
  ParkedEvents.of({
    keys: (held, epoch) => keys(database, held, epoch),
    requests: (held) => requests(database, held),
    park: (held, options) => inBatch(database, "park events", park(database, held, options)),
    remove: (held, options) => inBatch(database, "remove a parked event", remove(database, held, options)),
    recordFailure: (held, options) =>
      inBatch(database, "record the failure of a parked event", recordFailure(database, held, options)),
    isSkipRequested: (held, eventId) => isSkipRequested(database, held, eventId),
    list: (projection, options) => list(database, projection, options),
    request: (projection, options) => request(database, projection, options),
    requestOnHalt: (projection, options) => requestOnHalt(database, projection, options)
  }))

/** The maximum length of an error's tag. */
const longestTag = 200

/** The maximum number of requests that are read at once. */
const mostRequests = 100

/** Runs a statement outside of a batch. */
const alone = <A, E, R>(
  { refail }: Db,
  operation: string,
  self: Effect.Effect<A, E | SqlError.SqlError, R>,
  roles?: ReadonlyArray<Role>
): Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R> => refail(operation, roles)(inTime(quietly(self)))

/**
 * Names the privileges that are missing for a statement in a batch. Other errors remain those of the driver, by which
 * the batch decides whether to retry.
 */
const inBatch = <A, E, R>(
  { refail }: Db,
  operation: string,
  self: Effect.Effect<A, E | SqlError.SqlError, R>
): Effect.Effect<A, unknown, R> =>
  Effect.catchIf(
    self,
    (error): error is SqlError.SqlError => SqlError.isSqlError(error) && isDenied(error),
    (error) => refail(operation)(Effect.fail(error))
  )

const isDenied = (error: SqlError.SqlError): boolean => meaningOf(error).isDenied === true

/** SQL: locks rows `p` of a projection in an order that all statements share, so that they cannot deadlock. */
const lockInOrder = "ORDER BY p.position FOR UPDATE OF p"

/** SQL: whether row `p` belongs to the range. */
const isInRange = (sql: Statement.Constructor, { projection, range }: Held) =>
  sql`p.projection_name = ${projection} AND p.key_hash >= ${String(range.start)}::bigint
    AND p.key_hash < ${String(range.end)}::bigint`

const keys = Effect.fnUntraced(function*(
  database: Db,
  held: Held,
  epoch: ServerEpoch | undefined
): Effect.fn.Return<ReadonlyMap<number, number>, EpochEnded | Fenced | StoreError> {
  const { sql, table } = database
  const [row] = yield* alone(
    database,
    "read the parked keys",
    sql<Record<"alive" | "held" | "keys", string>>`
      SELECT (${ServerEpochSql.isCurrent(sql, epoch)})::text AS alive,
        EXISTS (SELECT FROM ${table("checkpoints")} AS c WHERE ${FencedWrite.isHeldAs(sql, held)})::text AS held,
        (SELECT coalesce(json_agg(json_build_array(key_hash, events)), '[]') FROM (
          SELECT p.key_hash, count(*) AS events FROM ${table("parkedEvents")} AS p
          WHERE ${isInRange(sql, held)} GROUP BY p.key_hash
        ) AS counted)::text AS keys`
  )
  if (!isTrue(row?.alive)) return yield* new EpochEnded()
  if (!isTrue(row?.held)) return yield* new Fenced({ projection: held.projection })
  return new Map(JSON.parse(row!.keys) as ReadonlyArray<readonly [number, number]>)
})

/** SQL: whether the request of row `p` can be executed now. `ParkedEvent.executable` is the same in memory. */
const isExecutable = (database: Db) =>
  database.sql`(p.request = 'drop' OR (p.request = 'retry' AND NOT EXISTS (
    SELECT FROM ${database.table("parkedEvents")} AS b
    WHERE b.projection_name = p.projection_name AND b.key_hash = p.key_hash AND b.key = p.key
      AND b.position < p.position AND b.request IS NULL
  )))`

interface RequestRow {
  readonly event_id: string
  readonly position: string
}

const requests = (database: Db, held: Held) => {
  const { sql, table } = database
  const statement = sql<{ readonly requests: string }>`
    SELECT json_build_object(
      'parked', (
        SELECT coalesce(json_agg(r ORDER BY r.ordinal), '[]') FROM (
          SELECT p.position AS ordinal, p.position::text, p.event_id, p.key, p.key_hash, p.request
          FROM ${table("parkedEvents")} AS p
          WHERE ${isInRange(sql, held)} AND p.request IS NOT NULL AND ${isExecutable(database)}
          ORDER BY p.position LIMIT ${String(mostRequests)}::bigint
        ) AS r
      ),
      'halt', (
        SELECT json_build_object('request', c.halted_request, 'event_id', c.halted_event_id,
          'position', c.halted_position::text)
        FROM ${table("checkpoints")} AS c WHERE ${
    FencedWrite.isHeldAs(sql, held)
  } AND c.halted_since IS NOT NULL AND c.halted_request IS NOT NULL
      ))::text AS requests`
  return Effect.map(alone(database, "read the requests about parked events", statement), ([row]) => {
    const { halt, parked }: {
      readonly parked: ReadonlyArray<RequestRow & { readonly key: string; readonly key_hash: number; request: Request }>
      readonly halt: RequestRow & { readonly request: HaltRequest } | null
    } = JSON.parse(row!.requests)
    return {
      parked: parked.map(({ event_id: eventId, key, key_hash: keyHash, position, request }) => ({
        eventId,
        key,
        keyHash,
        position: BigInt(position),
        request
      })),
      halt: halt === null
        ? undefined
        : { request: halt.request, eventId: halt.event_id, position: BigInt(halt.position) }
    }
  })
}

// In the transaction of a batch.

const park = (database: Db, held: Held, { limits, ...parking }: Parameters<Store["park"]>[1]) =>
  Effect.gen(function*() {
    const { failure } = parking
    const insert = (failure: Failure | undefined) => insertAndCount(database, held, { ...parking, failure })
    const { inserted, ...counted } = failure === undefined
      ? yield* insert(undefined)
      : yield* writingInBatch(database, failure, insert)
    if (counted.keys > limits.keys || counted.events > limits.events) {
      return yield* new ParkingLimitReached({ projection: held.projection, ...counted, limits })
    }
    return inserted
  })

/** Inserts the events. Returns the hashes of their keys, and how many keys and events the projection then has parked. */
const insertAndCount = (
  { sql, table }: Db,
  { projection }: Held,
  { events, failure, partitionBy }: Omit<Parameters<Store["park"]>[1], "limits">
) => {
  const key = keyOf(partitionBy, "e")
  const parked = table("parkedEvents")
  const since = `${failure === undefined ? 0 : Duration.toMillis(failure.since)} milliseconds`
  const attemptAt = (at: Statement.Fragment) => sql`CASE WHEN ${failure !== undefined}::text::bool THEN ${at} END`
  const statement = sql<{ readonly keys: string; readonly events: string; readonly inserted: string }>`
    WITH inserted AS (
      INSERT INTO ${parked} (projection_name, position, key, key_hash, event_id, event_type, aggregate_type,
        aggregate_id, aggregate_version, attempts, first_attempt_at, last_attempt_at, error_tag, error_message)
      SELECT ${projection}, e.global_position, ${sql.literal(key)}, ${sql.literal(hashOf(key))}, e.event_id::text,
        e.event_type, e.aggregate_type, e.aggregate_id, e.aggregate_version,
        ${String(failure?.attempts ?? 0)}::int, ${attemptAt(sql`clock_timestamp() - ${since}::interval`)},
        ${attemptAt(sql`clock_timestamp()`)}, ${failure?.errorTag ?? null}::text, ${failure?.errorMessage ?? null}::text
      FROM ${table("events")} AS e
      WHERE e.global_position = ANY (string_to_array(${
    events.map(({ globalPosition }) => globalPosition).join()
  }, ',')::bigint[])
      ORDER BY e.global_position
      ON CONFLICT (projection_name, position) DO NOTHING
      RETURNING key, key_hash
    ), all_keys AS (
      SELECT p.key FROM ${parked} AS p WHERE p.projection_name = ${projection}
      UNION ALL SELECT key FROM inserted
    )
    SELECT count(DISTINCT key)::text AS keys, count(*)::text AS events,
      (SELECT coalesce(json_agg(key_hash), '[]') FROM inserted)::text AS inserted FROM all_keys`
  return Effect.map(quietly(statement), ([row]) => {
    const inserted: ReadonlyArray<number> = JSON.parse(row!.inserted)
    return { keys: Number(row!.keys), events: Number(row!.events), inserted }
  })
}

/**
 * Writes a failure in the transaction of a batch. A text that the database might not be able to store is written inside
 * a savepoint, because an error would abort the transaction.
 */
const writingInBatch = <F extends Pick<Failure, "errorMessage" | "errorTag">, A>(
  { sql }: Db,
  failure: F,
  write: (failure: F) => Effect.Effect<A, SqlError.SqlError>
): Effect.Effect<A, SqlError.SqlError> => {
  const errorMessage = haltError(failure.errorMessage)
  const errorTag = cut(ascii(failure.errorTag), longestTag)
  const writeText = (errorMessage: string) => write({ ...failure, errorMessage, errorTag })
  return ascii(errorMessage) === errorMessage
    ? writeText(errorMessage)
    : writing(errorMessage, (text) => quietly(sql.withTransaction(writeText(text))))
}

const remove = ({ sql, table }: Db, { projection }: Held, { position, request }: Parameters<Store["remove"]>[1]) =>
  Effect.map(
    quietly(sql`
      DELETE FROM ${table("parkedEvents")} AS p
      WHERE p.projection_name = ${projection} AND p.position = ${String(position)}::bigint AND p.request = ${request}
      RETURNING 'removed'`),
    (rows) => rows.length > 0
  )

const recordFailure = (
  database: Db,
  { projection }: Held,
  { position, ...failure }: Parameters<Store["recordFailure"]>[1]
) => {
  const { sql, table } = database
  const parked = table("parkedEvents")
  const failed = sql`p.position = ${String(position)}::bigint`
  const unlessRetry = (column: string) => sql.literal(`CASE WHEN p.request = 'drop' THEN p.${column} END`)
  return Effect.asVoid(writingInBatch(database, failure, ({ errorMessage, errorTag }) =>
    quietly(sql`
      WITH locked AS (
        SELECT p.position FROM ${parked} AS p JOIN ${parked} AS f USING (projection_name, key_hash, key)
        WHERE projection_name = ${projection} AND f.position = ${String(position)}::bigint
          AND (p.request = 'retry' OR ${failed})
        ${sql.literal(lockInOrder)}
      )
      UPDATE ${parked} AS p SET request = ${unlessRetry("request")}, requested_at = ${unlessRetry("requested_at")},
        requested_by = ${unlessRetry("requested_by")},
        attempts = p.attempts + (${failed})::int,
        first_attempt_at = CASE WHEN ${failed} THEN coalesce(p.first_attempt_at, clock_timestamp())
          ELSE p.first_attempt_at END,
        last_attempt_at = CASE WHEN ${failed} THEN clock_timestamp() ELSE p.last_attempt_at END,
        error_tag = CASE WHEN ${failed} THEN ${errorTag} ELSE p.error_tag END,
        error_message = CASE WHEN ${failed} THEN ${errorMessage} ELSE p.error_message END
      FROM locked WHERE p.projection_name = ${projection} AND p.position = locked.position`)))
}

const isSkipRequested = ({ sql, table }: Db, held: Held, eventId: string) =>
  Effect.map(
    quietly(sql`
      SELECT 'requested' FROM ${table("checkpoints")} AS c
      WHERE c.halted_event_id = ${eventId} AND c.halted_request = 'skip' AND ${FencedWrite.lockHeldAs(sql, held)}`),
    (rows) => rows.length > 0
  )

// For any process.

/** SQL: a parked event as JSON, from a row with the alias `p`. */
const json = `json_build_object(
  'position', p.position::text, 'key', p.key, 'keyHash', p.key_hash, 'eventId', p.event_id, 'eventType', p.event_type,
  'aggregateType', p.aggregate_type, 'aggregateId', p.aggregate_id, 'aggregateVersion', p.aggregate_version::text,
  'parkedAt', extract(epoch FROM p.parked_at) * 1000, 'attempts', p.attempts,
  'firstAttemptAt', extract(epoch FROM p.first_attempt_at) * 1000,
  'lastAttemptAt', extract(epoch FROM p.last_attempt_at) * 1000, 'errorTag', p.error_tag,
  'errorMessage', p.error_message, 'request', p.request, 'requestedAt', extract(epoch FROM p.requested_at) * 1000,
  'requestedBy', p.requested_by)::text`

interface Json {
  readonly position: string
  readonly key: string
  readonly keyHash: number
  readonly eventId: string
  readonly eventType: string
  readonly aggregateType: string
  readonly aggregateId: string
  readonly aggregateVersion: string
  readonly parkedAt: number
  readonly attempts: number
  readonly firstAttemptAt: number | null
  readonly lastAttemptAt: number | null
  readonly errorTag: string | null
  readonly errorMessage: string | null
  readonly request: Request | null
  readonly requestedAt: number | null
  readonly requestedBy: string | null
}

const toParkedEvent = (projection: string) => ({ row }: { readonly row: string }): ParkedEvent => {
  const json: Json = JSON.parse(row)
  const date = (millis: number | null) => millis === null ? undefined : new Date(millis)
  return {
    ...json,
    projection,
    position: BigInt(json.position),
    aggregateVersion: BigInt(json.aggregateVersion),
    parkedAt: new Date(json.parkedAt),
    firstAttemptAt: date(json.firstAttemptAt),
    lastAttemptAt: date(json.lastAttemptAt),
    errorTag: json.errorTag ?? undefined,
    errorMessage: json.errorMessage ?? undefined,
    request: json.request ?? undefined,
    requestedAt: date(json.requestedAt),
    requestedBy: json.requestedBy ?? undefined
  }
}

const list = (
  database: Db,
  projection: string,
  { after = -1n, limit }: NonNullable<Parameters<Store["list"]>[1]> = {}
) => {
  const { sql, table } = database
  return alone(
    database,
    "list parked events",
    sql<{ readonly row: string }>`
      SELECT ${sql.literal(json)} AS row FROM ${table("parkedEvents")} AS p
      WHERE p.projection_name = ${projection} AND p.position > ${String(after)}::bigint
      ORDER BY p.position LIMIT ${limit === undefined ? null : String(limit)}::bigint`,
    ["status", "worker"]
  ).pipe(Effect.map((rows) => rows.map(toParkedEvent(projection))))
}

/** SQL: whether row `p` is selected. `ParkedEvent.select` is the same in memory. */
const isSelected = (
  { sql, table }: Db,
  projection: string,
  { request, selection }: { readonly request: Request; readonly selection: Selection }
): Statement.Fragment => {
  if (selection === "all") return sql`true`
  if ("key" in selection) return sql`p.key = ${selection.key}`
  const parked = table("parkedEvents")
  if ("first" in selection) {
    return sql`p.position IN (
      SELECT f.position FROM ${parked} AS f WHERE f.projection_name = ${projection}
      ORDER BY f.position LIMIT ${String(selection.first)}::bigint)`
  }
  const { errorTag } = selection
  return request === "drop" ? sql`p.error_tag = ${errorTag}` : sql`p.key IN (
    SELECT f.key FROM ${parked} AS f WHERE f.projection_name = ${projection} AND f.error_tag = ${errorTag})`
}

const request = (
  database: Db,
  projection: string,
  { dryRun = false, requestedBy, ...which }: Parameters<Store["request"]>[1]
) => {
  const { sql, table } = database
  const parked = table("parkedEvents")
  const selected = sql`p.projection_name = ${projection} AND ${isSelected(database, projection, which)}`
  return alone(
    database,
    `${which.request} parked events`,
    dryRun
      ? sql<{ readonly row: string }>`
        SELECT ${sql.literal(json)} AS row FROM ${parked} AS p WHERE ${selected} ORDER BY p.position`
      : sql<{ readonly row: string }>`
        WITH locked AS (
          SELECT p.position FROM ${parked} AS p WHERE ${selected} ${sql.literal(lockInOrder)}
        ), requested AS (
          UPDATE ${parked} AS p SET request = ${which.request}, requested_at = clock_timestamp(),
            requested_by = ${requestedBy ?? null}
          FROM locked WHERE p.projection_name = ${projection} AND p.position = locked.position
          RETURNING p.*
        )
        SELECT ${sql.literal(json)} AS row FROM requested AS p ORDER BY p.position`
  ).pipe(Effect.map((rows) => rows.map(toParkedEvent(projection))))
}

const requestOnHalt = (
  database: Db,
  projection: string,
  { eventId, request }: Parameters<Store["requestOnHalt"]>[1]
) => {
  const { sql, table } = database
  return alone(
    database,
    `${request} the event of a halted range`,
    sql`
      UPDATE ${table("checkpoints")} AS c SET halted_request = ${request}
      WHERE c.projection_name = ${projection} AND c.halted_since IS NOT NULL AND c.halted_event_id = ${eventId}
      RETURNING 'requested'`
  ).pipe(Effect.map((rows) => rows.length > 0))
}
