/**
 * Transfers values through the application's client, which may have custom codecs for all types except text and bytea.
 * The start checks these two.
 */
import * as PgTypes from "@effect/sql-pg/PgTypes"
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import { InvalidSettings } from "../../../schema/Errors.ts"

const otherCodecs = new InvalidSettings({
  setting: "types",
  problem:
    "The client has custom codecs for text or bytea, which the library uses for texts and payloads. Remove these two from PgClient's types and from PgTypes.register; other types may have any codec."
})

const isCodecFailure = (error: SqlError.SqlError): boolean =>
  /Failed to (decode row|encode query)/.test(error.reason.message ?? "")

/** A list as a parameter. */
export const array = (values: ReadonlyArray<unknown>, oid: number) => Result.getOrThrow(PgTypes.array(values, oid))

/**
 * Checks that the client has the driver's codecs for text and bytea. The library's statements on the application's
 * client use only these types, so that the application may choose the codecs of all other types.
 */
export const check = Effect.fnUntraced(function*(sql: SqlClient.SqlClient) {
  const text = "a\\b"
  const bytes = new Uint8Array([0, 92, 255])
  const isSame = (found: unknown) => found instanceof Uint8Array && found.join() === bytes.join()
  const [row] = yield* sql.unsafe<{ text: unknown; texts: unknown; bytes: unknown; list: unknown }>(
    "SELECT $1::text AS text, $2::text[] AS texts, $3::bytea AS bytes, $4::bytea[] AS list",
    [text, array([text, null], PgTypes.OID.text), bytes, array([bytes], PgTypes.OID.bytea)]
  ).unprepared.pipe(Effect.catchIf(isCodecFailure, () => Effect.fail(otherCodecs)))
  const isKept = row?.text === text && isSame(row.bytes) &&
    Array.isArray(row.texts) && row.texts.length === 2 && row.texts[0] === text && row.texts[1] === null &&
    Array.isArray(row.list) && row.list.length === 1 && isSame(row.list[0])
  if (!isKept) return yield* otherCodecs
})

/**
 * Runs a query on the application's client, which may have custom codecs: each row is transferred as JSON text. The
 * query must cast 64-bit numbers to text.
 */
export const asJson = <A>(
  sql: SqlClient.SqlClient,
  query: string
): Effect.Effect<ReadonlyArray<A>, SqlError.SqlError> =>
  Effect.map(
    sql.unsafe<{ readonly row: string }>(`SELECT row_to_json(q)::text AS row FROM (${query}) AS q`).unprepared,
    (rows) => rows.map(({ row }): A => JSON.parse(row))
  )

/** Reads a boolean that was cast to text. */
export const isTrue = (text: string | null | undefined): boolean => text === "true"
