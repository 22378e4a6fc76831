/**
 * `npm run bench:batches`: how much faster a projection catches up whose `handleBatch` writes one upsert for the events of
 * a batch, compared with one that writes an upsert for each event. Both run in alternating rounds on the same events. `-- --record`
 * writes the ratio to docs/measurements.
 */
import { Clock, Effect, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { Orchestrator, Projection } from "pupsourcing-orchestrator"
import * as Measurement from "../src/testing/Measurement.ts"
import * as Bench from "./Bench.ts"
import { median } from "./Measure.ts"

const events = 20_000
const aggregates = 1_000
const rounds = 5

const fill = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  // The server may be the one of an earlier run.
  yield* sql`TRUNCATE events, aggregate_heads RESTART IDENTITY`
  yield* sql`DROP TABLE IF EXISTS counts`
  yield* sql`CREATE TABLE counts (projection text, id text, events bigint NOT NULL, PRIMARY KEY (projection, id))`
  yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    SELECT 'bench', 'Thing', 'thing-' || i % ${aggregates}::int, i / ${aggregates}::int + 1, gen_random_uuid(), 'Happened',
      convert_to('{}', 'UTF8')
    FROM generate_series(0, ${events}::int - 1) AS i`
  yield* sql`VACUUM ANALYZE events`
})

/** One upsert for each event. */
const single = (name: string) =>
  Projection.make(name, {
    handle: Effect.fnUntraced(function*({ aggregateId }) {
      const sql = yield* SqlClient.SqlClient
      yield* sql`
        INSERT INTO counts VALUES (${name}, ${aggregateId}, 1)
        ON CONFLICT (projection, id) DO UPDATE SET events = counts.events + 1`
    })
  })

/** One upsert for all events of a batch. */
const batched = (name: string) =>
  Projection.make(name, {
    handleBatch: Effect.fnUntraced(function*(batch) {
      const sql = yield* SqlClient.SqlClient
      const ids = batch.map(({ aggregateId }) => aggregateId)
      yield* sql`
        INSERT INTO counts
        SELECT ${name}::text, id, count(*) FROM unnest(${ids}::text[]) AS id GROUP BY id ORDER BY id
        ON CONFLICT (projection, id) DO UPDATE SET events = counts.events + excluded.events`
    })
  })

/** Returns the seconds until the projection has handled all events. */
const catchUp = Effect.fnUntraced(function*(projection: Projection.Projection<unknown, SqlClient.SqlClient>) {
  const sql = yield* SqlClient.SqlClient
  const began = yield* Clock.monotonicTimeNanos
  const worker = yield* Orchestrator.make({ replicaSet: projection.name, projections: [projection] })
  yield* worker.catchUp
  const took = Number((yield* Clock.monotonicTimeNanos) - began) / 1e9
  const [row] = yield* sql<{ readonly sum: number }>`
    SELECT sum(events)::int4 AS sum FROM counts WHERE projection = ${projection.name}`
  if (row?.sum !== events) return yield* Effect.die(new Error(`${projection.name} counted ${row?.sum} events`))
  return took
})

const measure = Effect.gen(function*() {
  yield* fill
  const ratios: Array<number> = []
  // The first round is not measured.
  for (let round = 0; round <= rounds; round++) {
    const one = yield* catchUp(single(`single_${process.pid}_${round}`))
    const all = yield* catchUp(batched(`batched_${process.pid}_${round}`))
    yield* Bench.note(`  round ${round}: ${(one / all).toFixed(1)}`)
    if (round > 0) ratios.push(one / all)
  }
  return Measurement.table(
    ["measure", "value"],
    [["throughput of one upsert per batch, relative to one upsert per event", median(ratios).toFixed(1)]]
  )
})

const program = Effect.gen(function*() {
  const running = yield* Bench.server("batches")
  const ratio = yield* Effect.provide(measure, Bench.stores(Redacted.make(running.url)))
  const result =
    `The median of ${rounds} alternating rounds with ${events} events of ${aggregates} aggregates.\n\n${ratio}`
  yield* Bench.report({
    page: "batches",
    title: "Batch handlers",
    script: "bench:batches",
    serverUrl: running.url,
    result
  })
})

Bench.runMain(program)
