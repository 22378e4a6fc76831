/** The statements about parked events that any process may run: to list them, and to leave requests for their owners. */
import * as Effect from "effect/Effect"
import type * as Statement from "effect/sql/Statement"
import type { ParkedEvent, Request, Selection } from "../../../schema/ParkedEvent.ts"
import type { ParkedEvents } from "../../../services/ParkedEvents.ts"
import { writing } from "../connection/Encoding.ts"
import { alone, type Db, lockInOrder } from "./ParkedEventsSql.ts"

type Store = ParkedEvents

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

export const list = (
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

export const request = (
  database: Db,
  projection: string,
  { dryRun = false, requestedBy, ...which }: Parameters<Store["request"]>[1]
) => {
  const { sql, table } = database
  const parked = table("parkedEvents")
  const selected = sql`p.projection_name = ${projection} AND ${isSelected(database, projection, which)}`
  const write = (by: string | null) =>
    sql<{ readonly row: string }>`
      WITH locked AS (
        SELECT p.position FROM ${parked} AS p WHERE ${selected} ${sql.literal(lockInOrder)}
      ), requested AS (
        UPDATE ${parked} AS p SET request = ${which.request}, requested_at = clock_timestamp(), requested_by = ${by}
        FROM locked WHERE p.projection_name = ${projection} AND p.position = locked.position
        RETURNING p.*
      )
      SELECT ${sql.literal(json)} AS row FROM requested AS p ORDER BY p.position`
  return alone(
    database,
    `${which.request} parked events`,
    dryRun
      ? sql<{ readonly row: string }>`
        SELECT ${sql.literal(json)} AS row FROM ${parked} AS p WHERE ${selected} ORDER BY p.position`
      : requestedBy === undefined
      ? write(null)
      : writing(requestedBy, write)
  ).pipe(Effect.map((rows) => rows.map(toParkedEvent(projection))))
}

export const requestOnHalt = (
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
