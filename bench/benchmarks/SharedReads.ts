/** What the database reads and sends for one pass over the events, with one worker and with eight. */
import { Console, Effect } from "effect"
import { SqlClient } from "effect/sql"
import { hashOf, keyOf } from "../../src/layers/postgres/HashSql.ts"
import * as Benchmark from "../Benchmark.ts"
import * as Events from "../Events.ts"
import * as Fleet from "../Fleet.ts"
import { atMost } from "../Measure.ts"

const events = 100_000

interface Pass {
  readonly name: string
  readonly workers: number
  readonly isIndexed: boolean
}

const passes = [
  { name: "1 worker", workers: 1, isIndexed: false },
  { name: "8 workers", workers: 8, isIndexed: false },
  { name: "8 workers, with the index", workers: 8, isIndexed: true }
] as const

/** With it, a worker need not fetch rows of other ranges from the table. */
const index = `CREATE INDEX by_position_and_hash ON events (global_position, (${hashOf(keyOf("aggregateId"))}))`

/** What the statements that read the events table cost the server since the last reset. */
const statistics = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly calls: number; readonly rows: number; readonly pages: number }>`
    SELECT sum(calls)::float8 AS calls, sum(rows)::float8 AS rows, sum(shared_blks_hit + shared_blks_read)::float8 AS pages
    FROM pg_stat_statements
    WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND query ILIKE '%payload%' AND query NOT ILIKE '%insert into%'`
  return row!
})

/** The workers have their ranges before the events are appended, so that each reads its part from the first event. */
const measurePass = Effect.fnUntraced(function*({ isIndexed, name, workers: count }: Pass) {
  const sql = yield* SqlClient.SqlClient
  yield* Events.empty
  if (isIndexed) yield* sql.unsafe(index)
  yield* Console.error(`  ${name} …`)
  const workers = yield* Fleet.start(count)
  yield* Fleet.callAll(workers, "start", {
    replicaSet: `shared_reads_${count}_${isIndexed}`,
    handler: "nothing",
    workers: count
  })
  const before = yield* Fleet.progress(workers)
  yield* sql`SELECT pg_stat_statements_reset(0, (SELECT oid FROM pg_database WHERE datname = current_database()))`
  yield* sql.withTransaction(Effect.andThen(Events.append(events), sql`ANALYZE events`))
  let after = before
  while (after.events < events) {
    yield* Effect.sleep("50 millis")
    after = yield* Fleet.progress(workers)
  }
  return { name, ...yield* statistics, bytes: after.bytesReceived - before.bytesReceived }
}, Effect.scoped)

type Row = Effect.Success<ReturnType<typeof measurePass>>

const measure = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE EXTENSION pg_stat_statements`
  return yield* Effect.forEach(passes, measurePass)
})

const evaluate = (rows: ReadonlyArray<Row>): Benchmark.Result => {
  const [one, eight] = rows as [Row, Row]
  return {
    text:
      `${events} events of 1,000 aggregates, appended after the workers have divided the ranges. Counts instead of times, so one pass is enough. ` +
      "Rows and pages of the statements that read events are from `pg_stat_statements`, which the server must have preloaded. " +
      "Bytes are everything that the processes of the workers received from the server, from the append until they had handled all events.",
    measures: [
      atMost("rows sent to 8 workers, relative to one", eight.rows / one.rows, "ratio", 1.1),
      atMost("bytes sent to 8 workers, relative to one", eight.bytes / one.bytes, "ratio", 1.1)
    ],
    tables: [{
      title: "One pass",
      text:
        `The index is \`${index}\`. It lets a worker skip the rows of other ranges, but a page that contains a row of its own is read anyway.`,
      header: ["", "statements", "rows", "bytes received", "pages of 8 KB read, cached or not"],
      rows: rows.map(({ bytes, calls, name, pages, rows }) => [name, calls, rows, bytes, pages])
    }],
    plot: {
      kind: "bars",
      title: "Pages that the server reads for one pass",
      unit: "pages of 8 KB, cached or not",
      labels: rows.map(({ name }) => name),
      series: [{ name: "pages", values: rows.map(({ pages }) => pages) }]
    }
  }
}

export const sharedReads = Benchmark.make({
  name: "shared-reads",
  title: "Reads of several workers",
  summary:
    "Rows, bytes and pages that the server reads and sends when 8 workers share one pass over the events, relative to one worker.",
  run: Effect.map(measure, evaluate)
})
