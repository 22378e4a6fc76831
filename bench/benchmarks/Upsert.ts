/** How fast events are handled by a handler that sends one upsert for each event: one worker beside bare loops, then several workers. */
import { Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Contender from "../Contender.ts"
import * as Events from "../Events.ts"
import * as Fleet from "../Fleet.ts"
import { atLeast, median, medianRatio, round as rounded, shown } from "../Measure.ts"
import * as Peers from "../Peers.ts"
import * as Rounds from "../Rounds.ts"

const events = 30_000
/** So many that no number of workers gets through them while it is measured. */
const fleetEvents = 150_000
const counts = [1, 2, 4, 8]

/** One worker beside loops that send the same statements in transactions of the same size. */
const measureOne = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  const worker = yield* Contender.start("contenders/worker.ts")
  const driver = yield* Contender.start("contenders/driver.ts")
  const pg = yield* Contender.start("peers/pg.mjs")
  let batchSize = 0
  const loop = (name: string, contender: Contender.Contender) => (round: number) =>
    contender.call("upsert", { run: `${name}_${round}`, batchSize }).pipe(
      Effect.tap(() => Events.checkCounts(`${name}_${round}`, events)),
      Effect.map((took) => Rounds.sample(events, took, batchSize))
    )
  return yield* Rounds.alternate(rounds, [
    (round) =>
      worker.call("catchUp", { replicaSet: `worker_${round}`, handler: "upsert" }).pipe(
        Effect.tap(() => Events.checkCounts(`worker_${round}`, events)),
        Effect.map((took) => {
          batchSize = Math.ceil(events / (took.value as number))
          return Rounds.sample(events, took, batchSize)
        })
      ),
    loop("driver", driver),
    loop("pg", pg)
  ])
}).pipe(Effect.scoped)

const run = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  yield* Peers.install
  yield* Events.createCounts
  yield* Events.fill(events)
  const [worker, driver, pg] = (yield* measureOne) as [Samples, Samples, Samples]
  yield* Events.empty
  yield* Events.fill(fleetEvents)
  const fleets = yield* Effect.scoped(Fleet.measure({ rounds, counts, handler: "upsert", events: fleetEvents }))
  return evaluate({ worker, driver, pg, fleets })
})

type Samples = ReadonlyArray<Rounds.Sample>

const evaluate = ({ driver, fleets, pg, worker }: {
  readonly worker: Samples
  readonly driver: Samples
  readonly pg: Samples
  readonly fleets: ReadonlyArray<ReadonlyArray<Fleet.Sample>>
}): Benchmark.Result => {
  const rate = Rounds.throughput
  const totals = fleets.map((samples) => samples.map(({ eventsPerSecond }) => eventsPerSecond))
  const relative = totals.map((total) => medianRatio(total, totals[0]!))
  return {
    text:
      `One worker: ${events} events of 1,000 aggregates, one upsert for each. Medians of alternating rounds. The loops send the same ` +
      `statements in transactions of the same size as the worker's in that round. ${Rounds.cpuText}\n\n` +
      `Several workers: processes of their own on the cores of this machine, which the server uses as well, with a backlog of ${fleetEvents} events.`,
    measures: [
      atLeast(
        "throughput relative to a bare loop on the same driver",
        medianRatio(rate(worker), rate(driver)),
        "ratio",
        0.95
      ),
      ...Rounds.cpuMeasure("events per CPU-second relative to a loop on pg", worker, pg, 1),
      atLeast(
        "lowest total of 2, 4 and 8 workers, relative to one worker",
        Math.min(...relative.slice(1)),
        "ratio",
        0.8
      ),
      shown("throughput relative to a loop on pg", medianRatio(rate(worker), rate(pg)), "ratio"),
      shown("throughput", median(rate(worker)), "events/s")
    ],
    tables: [
      {
        title: "One worker",
        header: Rounds.header,
        rows: [
          Rounds.row("worker", worker),
          Rounds.row("bare loop on @effect/sql-pg", driver),
          Rounds.row(`loop on pg ${Peers.version("pg")}`, pg)
        ]
      },
      {
        title: "Several workers",
        header: ["workers", "events/s in total", "relative to one"],
        rows: counts.map((count, index) => [count, Math.round(median(totals[index]!)), rounded(relative[index]!)])
      }
    ],
    plot: {
      kind: "bars",
      title: "One upsert for each event",
      unit: "events/s",
      labels: ["bare loop", "loop on pg", ...counts.map((count) => count === 1 ? "1 worker" : `${count} workers`)],
      series: [{
        name: "events/s",
        values: [median(rate(driver)), median(rate(pg)), ...totals.map((total) => median(total))]
      }]
    }
  }
}

export const upsert = Benchmark.make({
  name: "upsert",
  title: "One upsert for each event",
  summary:
    "How fast `handle` gets through a backlog when it writes a row for each event, beside bare loops, and with up to 8 workers.",
  run
})
