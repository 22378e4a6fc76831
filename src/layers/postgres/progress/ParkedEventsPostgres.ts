/**
 * Parked events on PostgreSQL: the statements of the worker that holds the range. `ParkedEventsAdmin` has the others. What
 * the worker writes runs in the transaction of its batch, because the statements use the application's client, whose
 * transaction is in the context.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import { haltError, type Held } from "../../../schema/Checkpoint.ts"
import { ParkingLimitReached, type StoreError } from "../../../schema/Errors.ts"
import type { HaltRequest, Request } from "../../../schema/ParkedEvent.ts"
import { ascii, cut } from "../../../schema/Text.ts"
import { EpochEnded, Fenced } from "../../../services/CheckpointStore.ts"
import type { ServerEpoch } from "../../../services/EventStore.ts"
import { type Failure, ParkedEvents } from "../../../services/ParkedEvents.ts"
import { isTrue } from "../connection/Codecs.ts"
import { writing } from "../connection/Encoding.ts"
import { quietly } from "../connection/PoolStatement.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import { meaningOf } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import { hashOf, keyOf } from "../HashSql.ts"
import * as FencedWrite from "./FencedWrite.ts"
import * as ParkedEventsAdmin from "./ParkedEventsAdmin.ts"
import { alone, type Db, lockInOrder } from "./ParkedEventsSql.ts"

type Store = ParkedEvents

export const make: Effect.Effect<Store, never, Database> = Effect.map(Database, (database) =>
  ParkedEvents.of({
    keys: (held, epoch) => keys(database, held, epoch),
    requests: (held) => requests(database, held),
    park: (held, options) => inBatch(database, "park events", park(database, held, options)),
    remove: (held, options) => inBatch(database, "remove a parked event", remove(database, held, options)),
    recordFailure: (held, options) =>
      inBatch(database, "record the failure of a parked event", recordFailure(database, held, options)),
    isSkipRequested: (held, eventId) => isSkipRequested(database, held, eventId),
    list: (projection, options) => ParkedEventsAdmin.list(database, projection, options),
    request: (projection, options) => ParkedEventsAdmin.request(database, projection, options),
    requestOnHalt: (projection, options) => ParkedEventsAdmin.requestOnHalt(database, projection, options)
  }))

/** The maximum length of an error's tag. */
const longestTag = 200

/** The maximum number of requests that are read at once. */
const mostRequests = 100

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

interface ParkedRow extends RequestRow {
  readonly key: string
  readonly key_hash: number
  readonly request: Request
  readonly requested_at: number | null
}

const requests = (database: Db, held: Held) => {
  const { sql, table } = database
  const statement = sql<{ readonly requests: string }>`
    SELECT json_build_object(
      'parked', (
        SELECT coalesce(json_agg(r ORDER BY r.ordinal), '[]') FROM (
          SELECT p.position AS ordinal, p.position::text, p.event_id, p.key, p.key_hash, p.request,
            extract(epoch FROM p.requested_at) * 1000 AS requested_at
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
      readonly parked: ReadonlyArray<ParkedRow>
      readonly halt: RequestRow & { readonly request: HaltRequest } | null
    } = JSON.parse(row!.requests)
    return {
      parked: parked.map(({ event_id: eventId, key, key_hash: keyHash, position, request, requested_at: time }) => ({
        eventId,
        key,
        keyHash,
        position: BigInt(position),
        request,
        requestedAt: time === null ? undefined : new Date(time)
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
