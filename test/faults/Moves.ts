/** Records how often hashes change hands. A trigger does it, because polling the rows may miss a move. */
import * as Effect from "effect/Effect"
import { SqlClient } from "effect/sql"
import * as HashRange from "../../src/schema/HashRange.ts"

/** From some moment on, a registration held a range, or none did. */
export interface Holding {
  readonly projection: string
  readonly range: HashRange.HashRange
  readonly incarnation: bigint | null
}

interface Part {
  readonly range: HashRange.HashRange
  readonly owners: ReadonlyArray<bigint>
}

/** Adds the owner to the parts of the range that the holding covers, unless it is already their last owner. */
const handOver = (parts: ReadonlyArray<Part>, { incarnation, range }: Holding): ReadonlyArray<Part> =>
  parts.flatMap((part) => {
    if (incarnation === null || part.owners.at(-1) === incarnation) return [part]
    const { after, before, inside } = HashRange.cut(part.range, range)
    return [
      ...(before === undefined ? [] : [{ ...part, range: before }]),
      ...(inside === undefined ? [] : [{ range: inside, owners: [...part.owners, incarnation] }]),
      ...(after === undefined ? [] : [{ ...part, range: after }])
    ]
  })

/** The hashes of each projection that changed hands more often than `times`, with their owners. */
export const above = (times: number, holdings: ReadonlyArray<Holding>): ReadonlyArray<string> =>
  [...new Set(holdings.map(({ projection }) => projection))].flatMap((projection) =>
    holdings
      .filter((holding) => holding.projection === projection)
      .reduce(handOver, [{ range: HashRange.whole, owners: [] }])
      .filter(({ owners }) => owners.length - 1 > times)
      .map(({ owners, range }) => `${projection} ${HashRange.format(range)} was held by ${owners.join(", then ")}`)
  )

/** Starts recording, from the current owners. */
export const record = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* Effect.gen(function*() {
    yield* sql`LOCK TABLE orchestrator_checkpoints IN SHARE ROW EXCLUSIVE MODE`
    yield* sql`
      CREATE TABLE IF NOT EXISTS holdings (
        seq bigserial, projection text, range_start bigint, range_end bigint, incarnation bigint
      )`
    yield* sql`TRUNCATE holdings`
    yield* sql`
      CREATE OR REPLACE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS $$
      BEGIN
        INSERT INTO holdings (projection, range_start, range_end, incarnation)
        VALUES (NEW.projection_name, NEW.range_start, NEW.range_end, NEW.incarnation);
        RETURN NULL;
      END $$`
    yield* sql`
      CREATE OR REPLACE TRIGGER hold AFTER INSERT OR UPDATE OF incarnation, range_end ON orchestrator_checkpoints
      FOR EACH ROW EXECUTE FUNCTION hold()`
    yield* sql`
      INSERT INTO holdings (projection, range_start, range_end, incarnation)
      SELECT projection_name, range_start, range_end, incarnation FROM orchestrator_checkpoints`
  }).pipe(sql.withTransaction)
})

/** What was recorded since. */
export const holdings = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{
    readonly projection: string
    readonly start: bigint
    readonly end: bigint
    readonly incarnation: bigint | null
  }>`SELECT projection, range_start AS start, range_end AS "end", incarnation FROM holdings ORDER BY seq`
  return rows.map(({ end, incarnation, projection, start }): Holding => ({
    projection,
    incarnation,
    range: { start: Number(start), end: Number(end) }
  }))
})
