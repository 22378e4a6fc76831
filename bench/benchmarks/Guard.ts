/** Ratios that CI checks: wide enough for a busy machine, narrow enough to detect that a path became several times slower. */
import { Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Contender from "../Contender.ts"
import * as Events from "../Events.ts"
import { atLeast, medianRatio } from "../Measure.ts"
import * as Rounds from "../Rounds.ts"

const events = 100_000
/** For one upsert for each event, which is slower. */
const upserts = 5_000

/** Measures a method of the worker beside one of the driver, in alternating rounds. Returns the ratio of their throughput. */
const relative = Effect.fnUntraced(function*(options: {
  readonly name: string
  readonly handler: string
  readonly method: string
  readonly events: number
}) {
  const { events, handler, method, name } = options
  const { rounds } = yield* Benchmark.Target
  const worker = yield* Contender.start("contenders/worker.ts")
  const driver = yield* Contender.start("contenders/driver.ts")
  yield* Events.empty
  yield* Events.fill(events)
  const [ours, floor] = yield* Rounds.alternate(rounds, [
    (round) => worker.call("catchUp", { replicaSet: `worker_${name}_${round}`, handler }),
    (round) => driver.call(method, { run: `driver_${name}_${round}`, batchSize: 1000 })
  ])
  const rate = (samples: ReadonlyArray<Contender.Took>) => samples.map((took) => events / took.seconds)
  return medianRatio(rate(ours!), rate(floor!))
}, Effect.scoped)

const measure = Effect.gen(function*() {
  yield* Events.createCounts
  const read = yield* relative({ name: "read", handler: "nothing", method: "read", events })
  const upsert = yield* relative({ name: "upsert", handler: "upsert", method: "upsert", events: upserts })
  const batch = yield* relative({ name: "batch", handler: "upsertBatch", method: "upsertBatch", events })
  const result: Benchmark.Result = {
    text:
      "One worker relative to a bare loop on the same driver with pages of 1,000 events. Medians of alternating rounds. The other " +
      "benchmarks measure the same with more care, and have the targets that the library aims at.",
    measures: [
      atLeast("handler that does nothing", read, "ratio", 0.15),
      atLeast("one upsert for each event", upsert, "ratio", 0.2),
      atLeast("one upsert for each batch", batch, "ratio", 0.25)
    ]
  }
  return result
})

export const guard = Benchmark.make({
  name: "guard",
  title: "Guard against regressions",
  summary:
    "Ratios that CI checks: catch-up relative to bare loops, with limits that only a path that became several times slower misses.",
  run: measure
})
