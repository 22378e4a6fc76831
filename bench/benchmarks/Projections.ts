/** What more projections cost the worker that runs them. */
import { Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Contender from "../Contender.ts"
import * as Events from "../Events.ts"
import { atLeast, median, medianRatio, round as rounded } from "../Measure.ts"
import * as Rounds from "../Rounds.ts"

const events = 150_000
const counts = [1, 4, 16]

const measure = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  yield* Events.fill(events)
  const worker = yield* Contender.start("contenders/worker.ts")
  return yield* Rounds.alternate(
    rounds,
    counts.map((projections) => (round: number) =>
      worker.call("catchUp", { replicaSet: `set_${projections}_${round}`, handler: "nothing", projections }).pipe(
        Effect.map((took) => Rounds.sample(projections * events, took))
      )
    )
  )
})

const evaluate = (samples: ReadonlyArray<ReadonlyArray<Rounds.Sample>>): Benchmark.Result => {
  const totals = samples.map(Rounds.throughput)
  const relative = totals.map((total) => medianRatio(total, totals[0]!))
  return {
    text:
      `${events} events, and handlers that do nothing. An event counts once for each projection that handles it. Medians of alternating rounds. ` +
      Rounds.cpuText,
    measures: [
      atLeast("total of 4 projections, relative to one", relative[1]!, "ratio", 0.6),
      atLeast("total of 16 projections, relative to one", relative[2]!, "ratio", 0.4)
    ],
    tables: [{
      title: "Projections of one worker",
      header: ["projections", "events/s in total", "relative to one", "events per CPU-second"],
      rows: counts.map((count, index) => [
        count,
        Math.round(median(totals[index]!)),
        rounded(relative[index]!),
        Math.round(median(Rounds.efficiency(samples[index]!))) || "unknown"
      ])
    }],
    plot: {
      kind: "bars",
      title: "Several projections in one worker",
      unit: "events/s in total",
      axis: "projections",
      labels: counts.map(String),
      series: [{ name: "events/s", values: totals.map(median) }]
    }
  }
}

export const projections = Benchmark.make({
  name: "projections",
  title: "Several projections in one worker",
  summary: "How much 4 and 16 projections get through in one worker, in total, relative to one projection.",
  run: Effect.map(measure, evaluate)
})
