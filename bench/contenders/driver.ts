/** The floor: the library's driver, `@effect/sql-pg`, in bare loops with the statements that the handlers of a worker send. */
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, ManagedRuntime } from "effect"
import { SqlClient } from "effect/sql"
import { serve } from "../serve.ts"

interface Options {
  /** Identifies the rows that this run writes. */
  readonly run: string
  readonly batchSize: number
}

interface Row {
  readonly global_position: bigint
  readonly aggregate_id: string
}

/** The columns that a worker reads. */
const page = (after: bigint, size: number) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql<Row>`
      SELECT global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
        event_version, payload, trace_id, correlation_id, causation_id, metadata, created_at
      FROM events WHERE global_position > ${after} ORDER BY global_position LIMIT ${size}`)

/** Reads all events in pages, and passes each page to `handle`. Returns the number of events. */
const pages = Effect.fnUntraced(function*<E, R>(
  size: number,
  handle: (rows: ReadonlyArray<Row>, after: bigint) => Effect.Effect<void, E, R>
) {
  let after = 0n
  let events = 0
  while (true) {
    const rows = yield* page(after, size)
    const last = rows.at(-1)
    if (last === undefined) return events
    events += rows.length
    yield* handle(rows, last.global_position)
    after = last.global_position
  }
})

const createCheckpoint = Effect.fnUntraced(function*(run: string) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE IF NOT EXISTS floor_checkpoints (run text PRIMARY KEY, position bigint NOT NULL)`
  yield* sql`INSERT INTO floor_checkpoints VALUES (${run}, 0)`
})

/** Calls `write` for each page, in one transaction with the position. */
const writing = Effect.fnUntraced(function*<E>(
  { batchSize, run }: Options,
  write: (rows: ReadonlyArray<Row>, sql: SqlClient.SqlClient) => Effect.Effect<void, E>
) {
  const sql = yield* SqlClient.SqlClient
  yield* createCheckpoint(run)
  yield* pages(batchSize, (rows, position) =>
    sql.withTransaction(Effect.andThen(
      write(rows, sql),
      sql`UPDATE floor_checkpoints SET position = ${position} WHERE run = ${run}`
    )).pipe(Effect.asVoid))
})

const upsert = (options: Options) =>
  writing(options, (rows, sql) =>
    Effect.forEach(
      rows,
      (row) =>
        sql`
          INSERT INTO counts VALUES (${options.run}, ${row.aggregate_id}, 1)
          ON CONFLICT (run, id) DO UPDATE SET events = counts.events + 1`,
      { discard: true }
    ))

const upsertBatch = (options: Options) =>
  writing(options, (rows, sql) =>
    Effect.asVoid(sql`
      INSERT INTO counts
      SELECT ${options.run}::text, id, count(*) FROM unnest(${rows.map((row) => row.aggregate_id)}::text[]) AS id
      GROUP BY id ORDER BY id
      ON CONFLICT (run, id) DO UPDATE SET events = counts.events + excluded.events`))

const runtime = ManagedRuntime.make(
  PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL"), applicationName: Config.succeed("bench driver") })
)

serve({
  read: ({ batchSize }: Options) => runtime.runPromise(pages(batchSize, () => Effect.void)),
  upsert: (options: Options) => runtime.runPromise(upsert(options)),
  upsertBatch: (options: Options) => runtime.runPromise(upsertBatch(options))
})
