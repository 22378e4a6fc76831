/** What parked keys cost a worker, and what the status of many ranges costs. */
import { Clock, Console, Effect } from "effect"
import { SqlClient } from "effect/sql"
import { PostgresStores, Projections } from "pupsourcing-orchestrator"
import { canonical } from "../../src/schema/EventFilter.ts"
import * as Benchmark from "../Benchmark.ts"
import * as Contender from "../Contender.ts"
import * as Events from "../Events.ts"
import { atLeast, atMost, median, medianRatio, percentile } from "../Measure.ts"
import * as Rounds from "../Rounds.ts"

/** Appended before each catch-up, which also handles those that were appended for the other alternative: twice as many. */
const events = 100_000
const parkedKeys = 1000
/** The numbers of projections whose status is read. */
const projections = [10, 100, 1000]
const ranges = 200

/** Catches up in turns with and without parked keys. The events of a round are of new aggregates. */
const measureParked = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  const worker = yield* Contender.start("contenders/worker.ts")
  const parking = worker.call("catchUp", { replicaSet: "parking", handler: { parks: "parked-" } })
  const without = worker.call("catchUp", { replicaSet: "without", handler: { parks: "absent-" } })
  const afterEvents = (name: string, catchUp: typeof parking) => (round: number) =>
    Events.fill(events, { aggregates: `${name}_${round}` }).pipe(
      Effect.andThen(catchUp),
      Effect.map((took) => Rounds.sample(2 * events, took))
    )
  yield* Console.error(`  parking ${parkedKeys} keys …`)
  yield* Events.append(parkedKeys, { aggregates: "parked" })
  yield* Effect.andThen(parking, without)
  yield* checkParked
  const [withParked, none] = yield* Rounds.alternate(rounds, [
    afterEvents("parking", parking),
    afterEvents("without", without)
  ])
  return { withParked: withParked!, none: none! }
}).pipe(Effect.scoped)

const checkParked = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const [row] = yield* sql<{ readonly keys: number }>`
    SELECT count(DISTINCT key)::int4 AS keys FROM orchestrator_parked_events WHERE projection_name = 'parking'`
  if (row!.keys !== parkedKeys) return yield* Effect.die(new Error(`${row!.keys} of ${parkedKeys} keys are parked`))
})

/** Rows as a replica set of 200 workers has them once it has handled all events. */
const insertProjections = Effect.fnUntraced(function*(count: number) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`TRUNCATE orchestrator_checkpoints, orchestrator_workers, orchestrator_heartbeats, orchestrator_parked_events`
  yield* sql`
    INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, state, projections)
    SELECT 'status', 'worker-' || worker, worker, 'running', (
      SELECT jsonb_agg('projection-' || projection) FROM generate_series(1, ${count}::int) AS projection)
    FROM generate_series(0, ${ranges}::int - 1) AS worker`
  yield* sql`
    INSERT INTO orchestrator_heartbeats (replica_set, worker_id, incarnation)
    SELECT replica_set, worker_id, incarnation FROM orchestrator_workers`
  yield* sql`
    INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, position, replica_set, worker_id,
      incarnation, generation_id, filter)
    SELECT 'projection-' || projection, range::int8 * 4294967296 / ${ranges}::int8, (range + 1)::int8 * 4294967296 / ${ranges}::int8,
      (SELECT max(global_position) FROM events), 'status', 'worker-' || range, range, 1, ${canonical({})}
    FROM generate_series(1, ${count}::int) AS projection, generate_series(0, ${ranges}::int - 1) AS range`
  yield* sql`VACUUM ANALYZE orchestrator_checkpoints`
})

/** The milliseconds that the status takes, in each round. */
const measureStatus = Effect.fnUntraced(function*(count: number) {
  const { rounds } = yield* Benchmark.Target
  const { status } = yield* Projections.Projections
  yield* Console.error(`  the status of ${count} projections …`)
  yield* insertProjections(count)
  const times: Array<number> = []
  for (let round = 0; round <= rounds; round++) {
    const began = yield* Clock.monotonicTimeNanos
    const { replicaSets } = yield* status
    const millis = Number((yield* Clock.monotonicTimeNanos) - began) / 1e6
    const found = replicaSets.flatMap((set) => set.projections.flatMap((projection) => projection.ranges)).length
    if (found !== count * ranges) return yield* Effect.die(new Error(`${found} of ${count * ranges} ranges were read`))
    if (round > 0) times.push(millis)
  }
  return times
}, Effect.provide(PostgresStores.layer))

const measure = Effect.gen(function*() {
  const { none, withParked } = yield* measureParked
  const statuses = yield* Effect.forEach(projections, measureStatus)
  const result: Benchmark.Result = {
    text:
      `Parked keys: one worker handles ${
        2 * events
      } events whose keys are not parked, after it has parked ${parkedKeys} keys. The handler ` +
      "does nothing with these events. Medians of alternating rounds.\n\n" +
      `Status: \`Projections.status\` of projections with ${ranges} ranges each, which ${ranges} workers own and which have handled all events. ` +
      "Includes the reading of the answer in the process that asks.",
    measures: [
      atLeast(
        `catch-up with ${parkedKeys} parked keys, relative to none`,
        medianRatio(Rounds.throughput(withParked), Rounds.throughput(none)),
        "ratio",
        0.9
      ),
      atMost(
        `status of ${projections.at(-1)} projections of ${ranges} ranges, p50`,
        median(statuses.at(-1)!),
        "ms",
        100
      )
    ],
    tables: [
      {
        title: "Parked keys",
        header: Rounds.header,
        rows: [Rounds.row(`${parkedKeys} parked keys`, withParked), Rounds.row("none", none)]
      },
      {
        title: "Status",
        text: "Milliseconds.",
        header: ["projections", "ranges", "p50", "max"],
        rows: projections.map((count, index) => [
          count,
          count * ranges,
          ...[percentile(statuses[index]!, 0.5), Math.max(...statuses[index]!)].map((millis) => millis.toFixed(1))
        ])
      }
    ]
  }
  return result
})

export const costs = Benchmark.make({
  name: "costs",
  title: "Parked keys and status",
  summary: "What 1,000 parked keys cost a worker that catches up, and how long the status of 200,000 ranges takes.",
  run: measure
})
