/**
 * Writers that do not use the library: plain SQL on the events table, in every way in which an application may draw a
 * position.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"

/** One connection, and what a writer may do on it within a transaction. */
export interface PlainWriter {
  readonly sql: PgClient.PgClient
  readonly row: Row
  /** Inserts events of new aggregates. */
  readonly insert: (count: number) => Effect.Effect<void, SqlError.SqlError>
}

/** What the events of a writer have in common. */
export interface Row {
  readonly boundedContext: string
  readonly aggregateType: string
  readonly payload: string
}

const plainRow: Row = { boundedContext: "plain", aggregateType: "Plain", payload: "" }

let next = 0

/** Connects. The caller controls the transactions: one connection, one statement after the other. */
export const make = Effect.fnUntraced(function*(url: string, name = "plain writer", row = plainRow): Effect.fn.Return<
  PlainWriter,
  SqlError.SqlError,
  Scope.Scope
> {
  const sql = yield* PgClient.makeClient({ url: Redacted.make(url), applicationName: name }).pipe(
    Effect.provide(Reactivity.layer)
  )
  return {
    sql,
    row,
    insert: (count) =>
      Effect.asVoid(sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        SELECT ${row.boundedContext}, ${row.aggregateType}, gen_random_uuid()::text, 1, gen_random_uuid(), 'Written',
          convert_to(${row.payload}, 'UTF8')
        FROM generate_series(1, ${count}::int)`)
  }
})

/** A function that writers call and that inserts an event itself. */
export const createFunction = (sql: SqlClient.SqlClient, row = plainRow) =>
  sql.unsafe(`
    CREATE FUNCTION write_events(count int, seconds float8) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
      FOR i IN 1..count LOOP
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES ('${row.boundedContext}', '${row.aggregateType}', gen_random_uuid()::text, 1, gen_random_uuid(), 'Written',
          convert_to('${row.payload}', 'UTF8'));
        PERFORM pg_sleep(seconds);
      END LOOP;
    END $$`)

/** Runs one transaction of a random kind, committed or rolled back. */
const transaction = Effect.fnUntraced(function*(writer: PlainWriter) {
  const { row, sql } = writer
  const pause = Effect.flatMap(Random.nextIntBetween(0, 12), (millis) => Effect.sleep(millis))
  const count = yield* Random.nextIntBetween(1, 8)
  const way = yield* Random.nextIntBetween(0, 8)
  yield* sql`BEGIN`
  let prepared: string | undefined
  switch (way) {
    case 0:
      yield* writer.insert(1)
      break
    case 1:
      // As COPY does: many rows in one statement.
      yield* writer.insert(count * 4)
      break
    case 2:
      yield* writer.insert(count)
      yield* sql`SAVEPOINT s`
      yield* writer.insert(count)
      yield* pause
      yield* sql`ROLLBACK TO SAVEPOINT s`
      break
    case 3:
      yield* sql`SELECT write_events(${count}, 0.001)`
      break
    case 4: {
      // Draws the position in a separate statement, well before the event is written.
      const drawn = yield* sql<{ readonly position: bigint }>`
        SELECT nextval('events_global_position_seq') AS position FROM generate_series(1, ${count})`
      yield* pause
      for (const { position } of drawn) {
        yield* sql`
          INSERT INTO events (global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
          VALUES (${position}, ${row.boundedContext}, ${row.aggregateType}, gen_random_uuid()::text, 1, gen_random_uuid(),
            'Written', convert_to(${row.payload}, 'UTF8'))`
      }
      break
    }
    case 5:
      // Writes something else first, so that the transaction's id is older than its positions.
      yield* sql`CREATE TEMPORARY TABLE IF NOT EXISTS scratch (x int)`
      yield* sql`INSERT INTO scratch VALUES (1)`
      yield* pause
      yield* writer.insert(count)
      break
    case 6:
      yield* sql`SAVEPOINT s`
      yield* writer.insert(count)
      yield* sql`RELEASE SAVEPOINT s`
      yield* pause
      break
    case 7:
      prepared = `writer-${next++}`
      yield* writer.insert(count)
      break
  }
  yield* pause
  const commits = (yield* Random.nextIntBetween(0, 10)) < 7
  if (prepared !== undefined) {
    yield* sql.unsafe(`PREPARE TRANSACTION '${prepared}'`).unprepared
    yield* pause
    yield* sql.unsafe(`${commits ? "COMMIT" : "ROLLBACK"} PREPARED '${prepared}'`).unprepared
  } else {
    yield* commits ? sql`COMMIT` : sql`ROLLBACK`
  }
})

/** Runs this many transactions by this many concurrent writers, each on its own connection. */
export const load = (
  url: string,
  options: { readonly writers: number; readonly transactions: number; readonly row?: Row }
) =>
  Effect.forEach(
    Array.from({ length: options.writers }),
    () =>
      Effect.scoped(Effect.gen(function*() {
        const writer = yield* make(url, "plain writer", options.row)
        for (let index = 0; index < options.transactions; index++) yield* transaction(writer)
      })),
    { concurrency: "unbounded", discard: true }
  )
