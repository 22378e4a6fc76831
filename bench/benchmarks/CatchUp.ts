/** How fast a worker catches up with a handler that does nothing, beside the floor and the peers. */
import { Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Contender from "../Contender.ts"
import * as Events from "../Events.ts"
import { atLeast, type Measure, median, medianRatio, shown } from "../Measure.ts"
import * as Peers from "../Peers.ts"
import * as Rounds from "../Rounds.ts"

const events = 500_000
/** Emmett would need minutes for as many events as the others. */
const emmettEvents = 10_000
const sizes = [100, 300, 1000, 3000, 10_000]
/** Beside the default of a worker. */
const smallBatch = 1000
const emmettSizes = [100, 1000, 10_000]

const expect = (name: string, expected: number) => (took: Contender.Took) =>
  took.value === expected
    ? Effect.succeed(took)
    : Effect.die(new Error(`${name} read ${took.value} of ${expected} events`))

const measure = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  yield* Peers.install
  yield* Events.fill(events)
  const worker = yield* Contender.start("contenders/worker.ts")
  const driver = yield* Contender.start("contenders/driver.ts")
  const pg = yield* Contender.start("peers/pg.mjs")
  const emmett = yield* Contender.start("peers/emmett.mjs")
  yield* emmett.call("fill", { events: emmettEvents })
  const ofWorker = (batchSize?: number) => (round: number) =>
    worker.call("catchUp", { replicaSet: `worker_${batchSize}_${round}`, handler: "nothing", batchSize }).pipe(
      Effect.map((took) => Rounds.sample(events, took, batchSize))
    )
  return yield* Rounds.alternate(rounds, [
    ofWorker(),
    Rounds.bestOf(sizes, (batchSize) =>
      driver.call("read", { batchSize }).pipe(
        Effect.flatMap(expect("the driver", events)),
        Effect.map((took) => Rounds.sample(events, took, batchSize))
      )),
    Rounds.bestOf(sizes, (batchSize, round) =>
      pg.call("read", { run: `${round}_${batchSize}`, batchSize }).pipe(
        Effect.flatMap(expect("pg", events)),
        Effect.map((took) => Rounds.sample(events, took, batchSize))
      )),
    Rounds.bestOf(
      emmettSizes,
      (batchSize, round) =>
        emmett.call("catchUp", { run: `${round}_${batchSize}`, batchSize }).pipe(
          Effect.flatMap(expect("Emmett", emmettEvents)),
          Effect.map((took) => Rounds.sample(emmettEvents, took, batchSize))
        )
    ),
    ofWorker(smallBatch)
  ])
})

const evaluate = (samples: ReadonlyArray<ReadonlyArray<Rounds.Sample>>): Benchmark.Result => {
  const [worker, driver, pg, emmett, small] = samples as [Samples, Samples, Samples, Samples, Samples]
  const contenders = [
    ["worker", worker],
    ["floor: bare loop on @effect/sql-pg", driver],
    [`loop on pg ${Peers.version("pg")}`, pg],
    [`Emmett ${Peers.version("@event-driven-io/emmett-postgresql")}`, emmett]
  ] as const
  const rate = Rounds.throughput
  const measures: ReadonlyArray<Measure> = [
    atLeast("throughput relative to the floor", medianRatio(rate(worker), rate(driver)), "ratio", 0.9),
    atLeast("throughput relative to a loop on pg", medianRatio(rate(worker), rate(pg)), "ratio", 2),
    atLeast("throughput relative to Emmett", medianRatio(rate(worker), rate(emmett)), "ratio", 100),
    ...Rounds.cpuMeasure("events per CPU-second relative to a loop on pg", worker, pg, 1.5),
    shown(`throughput relative to batches of ${smallBatch} events`, medianRatio(rate(worker), rate(small)), "ratio"),
    shown("throughput", median(rate(worker)), "events/s")
  ]
  return {
    text:
      `${events} events with a payload of 60 bytes, and ${emmettEvents} for Emmett, whose tables are its own. Medians of alternating ` +
      `rounds. The worker has default settings; the others have the best of ${sizes.length} batch sizes from ${
        sizes[0]
      } to ` +
      `${sizes.at(-1)} (Emmett: ${
        emmettSizes.join(", ")
      }). The floor only reads; the loop on pg updates its position in a ` +
      `transaction for each page. ${Rounds.cpuText}`,
    measures,
    tables: [{
      title: "Contenders",
      header: Rounds.header,
      rows: contenders.map(([name, of]) => Rounds.row(name, of))
    }],
    plot: {
      kind: "bars",
      title: "Catch-up with a handler that does nothing",
      unit: "events/s",
      labels: ["worker", "floor", "loop on pg", "Emmett"],
      series: [{ name: "events/s", values: contenders.map(([, of]) => median(rate(of))) }]
    }
  }
}

type Samples = ReadonlyArray<Rounds.Sample>

export const catchUp = Benchmark.make({
  name: "catch-up",
  title: "Catch-up with a handler that does nothing",
  summary:
    "How fast one worker gets through a backlog, with its exactly-once bookkeeping, beside the floor and the peers.",
  run: Effect.map(measure, evaluate)
})
