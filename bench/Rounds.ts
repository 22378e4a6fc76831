/** Alternating rounds: what slows the machine down for a while slows all alternatives of a round. */
import { Console, Effect } from "effect"
import type { Took } from "./Contender.ts"
import { atLeast, type Measure, median, medianRatio } from "./Measure.ts"

/** What one alternative reached in one round. */
export interface Sample {
  readonly eventsPerSecond: number
  /** For a second of CPU time of client and server together; `NaN` if the server's is unknown. */
  readonly eventsPerCpuSecond: number
  /** The batch size that was best, if several were tried. */
  readonly batchSize?: number | undefined
}

export const sample = (
  events: number,
  { cpuSeconds, seconds, serverCpuSeconds }: Took,
  batchSize?: number
): Sample => ({
  eventsPerSecond: events / seconds,
  eventsPerCpuSecond: events / (cpuSeconds + serverCpuSeconds),
  batchSize
})

/** Measures each alternative once a round, in the same order. The first round warms up and is not part of the result. */
export const alternate = Effect.fnUntraced(function*<A, E, R>(
  rounds: number,
  alternatives: ReadonlyArray<(round: number) => Effect.Effect<A, E, R>>
) {
  const samples = alternatives.map((): Array<A> => [])
  for (let round = 0; round <= rounds; round++) {
    yield* Console.error(round === 0 ? "  warming up …" : `  round ${round} of ${rounds} …`)
    for (const [index, run] of alternatives.entries()) {
      const result = yield* run(round)
      if (round > 0) samples[index]!.push(result)
    }
  }
  return samples as ReadonlyArray<ReadonlyArray<A>>
})

/** Sizes that reach less than this part of the best one's throughput in the first round are not tried again. */
const contention = 0.7

/** An alternative that tries several batch sizes in each round, and is as good as the best of them. */
export const bestOf = <E, R>(
  sizes: ReadonlyArray<number>,
  run: (batchSize: number, round: number) => Effect.Effect<Sample, E, R>
) => {
  let contenders = sizes
  return Effect.fnUntraced(function*(round: number) {
    const samples = yield* Effect.forEach(contenders, (size) => run(size, round))
    const best = samples.reduce((a, b) => b.eventsPerSecond > a.eventsPerSecond ? b : a)
    if (round === 0) {
      contenders = contenders.filter((_, index) => samples[index]!.eventsPerSecond >= contention * best.eventsPerSecond)
    }
    return best
  })
}

export const throughput = (samples: ReadonlyArray<Sample>): ReadonlyArray<number> =>
  samples.map(({ eventsPerSecond }) => eventsPerSecond)

export const efficiency = (samples: ReadonlyArray<Sample>): ReadonlyArray<number> =>
  samples.map(({ eventsPerCpuSecond }) => eventsPerCpuSecond)

/** A row of a table: the name, and the medians of events per second, events per CPU-second and batch size. */
export const row = (name: string, samples: ReadonlyArray<Sample>): ReadonlyArray<string | number> => [
  name,
  Math.round(median(throughput(samples))),
  samples.some(({ eventsPerCpuSecond }) => Number.isNaN(eventsPerCpuSecond))
    ? "unknown"
    : Math.round(median(efficiency(samples))),
  median(samples.map(({ batchSize }) => batchSize ?? Number.NaN)) || "default"
]

export const header = ["", "events/s", "events per CPU-second", "batch size"]

/** How CPU time is measured, for the text of a benchmark. */
export const cpuText = "CPU time is that of the client's process and of all processes of the server together. " +
  "It is unknown where the server's processes are out of reach: with `DATABASE_URL`, and where there is no `/proc`."

/** The ratio of events per CPU-second as a measure; none if CPU time is unknown. */
export const cpuMeasure = (
  name: string,
  samples: ReadonlyArray<Sample>,
  others: ReadonlyArray<Sample>,
  target: number
): ReadonlyArray<Measure> => {
  const ratio = medianRatio(efficiency(samples), efficiency(others))
  return Number.isNaN(ratio) ? [] : [atLeast(name, ratio, "ratio", target)]
}
