/** What a partition key costs a worker that catches up, and the reads of a range, compared with the aggregate id. */
import { Clock, Console, Effect } from "effect"
import { SqlClient } from "effect/sql"
import { EventStore, HashRange, type PartitionKey, PostgresStores } from "pupsourcing-orchestrator"
import { hashOf, keyOf } from "../../src/layers/postgres/HashSql.ts"
import * as Benchmark from "../Benchmark.ts"
import * as Contender from "../Contender.ts"
import { atLeast, median, medianRatio } from "../Measure.ts"
import * as Rounds from "../Rounds.ts"

/** The number of events, for the reads of a range and for the catch-up. */
const events = 50_000
const backlog = 200_000
/** The number of ranges; the first one is read. */
const parts = 16

const metadataKey: PartitionKey.PartitionKey = { metadata: "customerId" }
const partitionKeys: ReadonlyArray<PartitionKey.PartitionKey> = ["aggregateId", "correlationId", metadataKey]

/** Events of 200 bytes. Metadata of several kilobytes is stored out of line. */
const fill = Effect.fnUntraced(function*(metadataBytes: number, count = events) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`TRUNCATE events, aggregate_heads RESTART IDENTITY`
  yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload,
      correlation_id, metadata)
    SELECT 'sales', 'Order', (i % 5000) || '-0190a5d6-7c3e-7b4a-9d2f', i / 5000 + 1, gen_random_uuid(), 'OrderPlaced',
      convert_to(repeat('x', 200), 'UTF8'), gen_random_uuid()::text,
      jsonb_build_object('customerId', 'customer-' || (i % 2000), 'text', (
        SELECT string_agg(md5((i * 1000 + n)::text), '') FROM generate_series(1, ${metadataBytes}::int / 32) AS n))
    FROM generate_series(0, ${count}::int - 1) AS i`
  yield* sql`VACUUM ANALYZE events`
})

/** Reads one range to the end as a worker does. Returns microseconds per event of the table, read or not. */
const readRange = Effect.fnUntraced(function*(partitionBy: PartitionKey.PartitionKey) {
  const store = yield* EventStore.EventStore
  const upTo = BigInt(events)
  const began = yield* Clock.monotonicTimeNanos
  for (let after = 0n; after < upTo;) {
    const page = yield* store.read({ after, upTo, partitionBy, range: HashRange.partition(0, parts), limit: 5000 })
    after = page.position
  }
  return Number((yield* Clock.monotonicTimeNanos) - began) / 1000 / events
})

/** The medians of alternating rounds, after one that is not measured. */
const measure = Effect.fnUntraced(function*(keys: ReadonlyArray<PartitionKey.PartitionKey>) {
  const { rounds } = yield* Benchmark.Target
  const times = keys.map((): Array<number> => [])
  for (let round = 0; round <= rounds; round++) {
    for (const [index, key] of keys.entries()) {
      const micros = yield* readRange(key)
      if (round > 0) times[index]!.push(micros)
    }
  }
  return times.map((micros) => median(micros).toFixed(2))
})

const row = Effect.fnUntraced(function*(metadataBytes: number) {
  yield* Console.error(`  metadata of ${metadataBytes} bytes …`)
  const sql = yield* SqlClient.SqlClient
  yield* fill(metadataBytes)
  const store = yield* EventStore.EventStore
  while ((yield* store.settledPosition) < BigInt(events)) yield* Effect.sleep("20 millis")
  const without = yield* measure(partitionKeys)
  yield* sql.unsafe(`CREATE INDEX by_key ON events ((${hashOf(keyOf(metadataKey))}), global_position)`)
  yield* sql`VACUUM ANALYZE events`
  const indexed = yield* measure([metadataKey])
  yield* sql`DROP INDEX by_key`
  return [metadataBytes, ...without, ...indexed]
})

/** One worker, whose range is the whole hash space. */
const catchUp = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  yield* Console.error(`  catch-up with ${backlog} events …`)
  yield* fill(200, backlog)
  const worker = yield* Contender.start("contenders/worker.ts")
  const by = (name: string, partitionBy: PartitionKey.PartitionKey) => (round: number) =>
    worker.call("catchUp", { replicaSet: `${name}_${round}`, handler: "nothing", partitionBy }).pipe(
      Effect.map((took) => Rounds.sample(backlog, took))
    )
  return yield* Rounds.alternate(rounds, [by("metadata", metadataKey), by("aggregate", "aggregateId")])
}).pipe(Effect.scoped)

export const keys = Benchmark.make({
  name: "keys",
  title: "Partition keys",
  summary:
    "What a partition key costs a worker that catches up, and the reads of a range, compared with the aggregate id.",
  run: Effect.gen(function*() {
    const { rounds } = yield* Benchmark.Target
    const [byMetadata, byAggregate] = yield* catchUp
    const rows = yield* Effect.provide(Effect.forEach([200, 1000, 8000], row), PostgresStores.layer)
    return {
      text:
        `Catch-up: one worker with a handler that does nothing gets through ${backlog} events with metadata of 200 bytes. ` +
        `${Rounds.cpuText}\n\nReads: microseconds for each of ${events} events, read or not, while one of ${parts} ranges is read. Medians of ${rounds} alternating rounds. ` +
        "The last column of that table is the same with an expression index on the hash of the key and the position.",
      measures: [
        atLeast(
          "catch-up with a member of the metadata as key, relative to the aggregate id",
          medianRatio(Rounds.throughput(byMetadata!), Rounds.throughput(byAggregate!)),
          "ratio",
          0.9
        )
      ],
      tables: [
        {
          title: "Catch-up",
          header: Rounds.header,
          rows: [Rounds.row("member of the metadata", byMetadata!), Rounds.row("aggregate id", byAggregate!)]
        },
        {
          title: "Time for each event",
          header: ["bytes of metadata", "aggregateId", "correlationId", "metadata", "metadata, with an index"],
          rows
        }
      ]
    }
  })
})
