/** How the throughput of handlers that wait grows with the number of workers. */
import { Effect } from "effect"
import { availableParallelism } from "node:os"
import * as Benchmark from "../Benchmark.ts"
import * as Events from "../Events.ts"
import * as Fleet from "../Fleet.ts"
import { atLeast, type Measure, median, medianRatio, round as rounded } from "../Measure.ts"

/** So many that 8 workers do not get through them while they are measured. */
const events = 60_000
const counts = [1, 2, 4, 8]

/** Up to this part of the cores, the workers do not wait for a core. */
const freeUntil = 0.8

const measure = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  yield* Events.fill(events)
  return yield* Fleet.measure({ rounds, counts, handler: { waitMillis: 1 }, events })
})

const evaluate = (samples: ReadonlyArray<ReadonlyArray<Fleet.Sample>>): Benchmark.Result => {
  const rows = counts.map((count, index) => {
    const totals = samples.map((of) => of.map(({ eventsPerSecond }) => eventsPerSecond))
    return {
      count,
      total: median(totals[index]!),
      perWorker: medianRatio(totals[index]!, totals[0]!) / count,
      busy: median(samples[index]!.map(({ busyCores }) => busyCores))
    }
  })
  return {
    text:
      `The handler waits for 1 ms and does nothing else. Workers are processes of their own, beside the server on ${availableParallelism()} cores, ` +
      `with a backlog of ${events} events of 1,000 aggregates. Medians of alternating rounds. The last column is the CPU time of workers and ` +
      "server together: once it reaches the number of cores, more workers cannot help.",
    measures: linearity(rows),
    tables: [{
      title: "Workers",
      header: ["workers", "events/s in total", "events/s for each, relative to one worker", "busy cores"],
      rows: rows.map(({ busy, count, perWorker, total }) => [
        count,
        Math.round(total),
        rounded(perWorker),
        Number.isNaN(busy) ? "unknown" : busy.toFixed(2)
      ])
    }],
    plot: {
      kind: "lines",
      title: "A handler that waits for 1 ms",
      unit: "events/s in total",
      axis: "workers",
      labels: counts.map(String),
      series: [
        { name: "measured", values: rows.map(({ total }) => total) },
        { name: "in proportion", values: rows.map(({ count }) => count * rows[0]!.total) }
      ]
    }
  }
}

interface Row {
  readonly count: number
  readonly perWorker: number
  readonly busy: number
}

/** The worst of the numbers of workers that leave cores free; none if that is unknown. */
const linearity = (rows: ReadonlyArray<Row>): ReadonlyArray<Measure> => {
  const free = rows.filter(({ busy }) => busy <= freeUntil * availableParallelism())
  const largest = free.at(-1)
  if (largest === undefined) return []
  const worst = Math.min(...free.map(({ perWorker }) => perWorker))
  return [atLeast(`events/s for each of up to ${largest.count} workers, relative to one worker`, worst, "ratio", 0.9)]
}

export const waiting = Benchmark.make({
  name: "waiting",
  title: "Handlers that wait",
  summary:
    "How the throughput of a handler that waits for 1 ms grows from 1 to 8 workers, and when the cores are busy.",
  run: Effect.map(measure, evaluate)
})
