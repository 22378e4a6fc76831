/** How fast a batch handler is that writes all rows of a batch in one statement. */
import { Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Contender from "../Contender.ts"
import * as Events from "../Events.ts"
import { atLeast, median, medianRatio } from "../Measure.ts"
import * as Rounds from "../Rounds.ts"

const events = 300_000
const sizes = [300, 1000, 3000, 10_000]

const measure = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  yield* Events.createCounts
  yield* Events.fill(events)
  const worker = yield* Contender.start("contenders/worker.ts")
  const driver = yield* Contender.start("contenders/driver.ts")
  const [workerSamples, driverSamples] = yield* Rounds.alternate(rounds, [
    (round) =>
      worker.call("catchUp", { replicaSet: `worker_${round}`, handler: "upsertBatch" }).pipe(
        Effect.tap(() => Events.checkCounts(`worker_${round}`, events)),
        Effect.map((took) => Rounds.sample(events, took))
      ),
    Rounds.bestOf(sizes, (batchSize, round) => {
      const run = `driver_${round}_${batchSize}`
      return driver.call("upsertBatch", { run, batchSize }).pipe(
        Effect.tap(() => Events.checkCounts(run, events)),
        Effect.map((took) => Rounds.sample(events, took, batchSize))
      )
    })
  ])
  return { worker: workerSamples!, driver: driverSamples! }
})

const evaluate = ({ worker, driver }: Effect.Success<typeof measure>): Benchmark.Result => {
  const rate = Rounds.throughput
  return {
    text:
      `${events} events of 1,000 aggregates. Each batch sends one \`INSERT … SELECT … FROM unnest($1) … ON CONFLICT\` that adds the ` +
      `number of its events to the row of each aggregate. Medians of alternating rounds. The worker has default settings; the bare loop ` +
      `sends the same statement and its position in a transaction for each page, with the best of the page sizes ${
        sizes.join(", ")
      }. ` +
      Rounds.cpuText,
    measures: [
      atLeast("throughput", median(rate(worker)), "events/s", 100_000),
      atLeast("throughput relative to the floor", medianRatio(rate(worker), rate(driver)), "ratio", 0.8)
    ],
    tables: [{
      title: "Contenders",
      header: Rounds.header,
      rows: [Rounds.row("worker", worker), Rounds.row("floor: bare loop on @effect/sql-pg", driver)]
    }],
    plot: {
      kind: "bars",
      title: "One upsert for each batch",
      unit: "events/s",
      labels: ["worker", "floor"],
      series: [{ name: "events/s", values: [worker, driver].map((samples) => median(rate(samples))) }]
    }
  }
}

export const upsertBatch = Benchmark.make({
  name: "upsert-batch",
  title: "One upsert for each batch",
  summary:
    "How fast `handleBatch` gets through a backlog when it writes all rows of a batch in one statement, beside a bare loop.",
  run: Effect.map(measure, evaluate)
})
