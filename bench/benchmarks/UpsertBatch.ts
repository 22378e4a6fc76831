/** How much a batch handler that writes one statement for each batch gains over one statement for each event. */
import { PgClient } from "@effect/sql-pg"
import { Clock, Effect, Layer } from "effect"
import { SqlClient } from "effect/sql"
import { Orchestrator, PostgresStores, Projection } from "pupsourcing-orchestrator"
import * as Benchmark from "../Benchmark.ts"
import { atLeast, median } from "../Measure.ts"

const events = 20_000
const aggregates = 1_000

const fill = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
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

const measure = Effect.fnUntraced(function*(rounds: number) {
  yield* fill
  const ratios: Array<number> = []
  // The first round is not measured.
  for (let round = 0; round <= rounds; round++) {
    const one = yield* catchUp(single(`single_${round}`))
    const all = yield* catchUp(batched(`batched_${round}`))
    if (round > 0) ratios.push(one / all)
  }
  return ratios
})

export const upsertBatch = Benchmark.make({
  name: "upsert-batch",
  title: "Batch handlers",
  summary: "The throughput of one upsert for each batch (`handleBatch`), relative to one for each event (`handle`).",
  run: Effect.gen(function*() {
    const { rounds, url } = yield* Benchmark.Target
    const stores = PostgresStores.layer.pipe(Layer.provideMerge(PgClient.layer({ url })))
    const ratios = yield* Effect.provide(measure(rounds), stores)
    return {
      text: `Medians of ${rounds} alternating rounds with ${events} events of ${aggregates} aggregates.`,
      measures: [atLeast("one upsert per batch, relative to one per event", median(ratios), "ratio", 2)]
    }
  })
})
