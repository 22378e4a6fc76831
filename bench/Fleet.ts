/** Several workers of one replica set, each in a process of its own, while they work through a backlog. */
import { Clock, Effect } from "effect"
import { Target } from "./Benchmark.ts"
import * as Contender from "./Contender.ts"
import * as Rounds from "./Rounds.ts"
import * as ServerCpu from "./ServerCpu.ts"

export interface Sample {
  /** Of all workers together. */
  readonly eventsPerSecond: number
  /** CPU seconds per second, of workers and server together; `NaN` if the server's are unknown. */
  readonly busyCores: number
}

/** What a worker process reports about itself since its start. */
interface Progress {
  readonly events: number
  readonly cpuSeconds: number
}

/** How long the workers settle in, and how long they are measured. */
const settling = "500 millis"
const window = "1500 millis"

const progressOf = Effect.fnUntraced(function*(workers: ReadonlyArray<Contender.Contender>) {
  const { embedded } = yield* Target
  const reports = yield* Effect.forEach(workers, (worker) => worker.call("progress"), { concurrency: "unbounded" })
  const progress = reports.map(({ value }) => value as Progress)
  return {
    at: yield* Clock.monotonicTimeNanos,
    events: progress.reduce((sum, { events }) => sum + events, 0),
    cpuSeconds: progress.reduce((sum, { cpuSeconds }) => sum + cpuSeconds, ServerCpu.seconds(embedded?.pid))
  }
})

/** Starts the workers, measures them once each has its part, and stops them. */
const measureOnce = Effect.fnUntraced(function*(
  workers: ReadonlyArray<Contender.Contender>,
  options: { readonly replicaSet: string; readonly handler: unknown; readonly events: number }
) {
  const all = (method: string, args?: unknown) =>
    Effect.forEach(workers, (worker) => worker.call(method, args), { concurrency: "unbounded", discard: true })
  yield* all("start", { ...options, workers: workers.length })
  yield* Effect.sleep(settling)
  const before = yield* progressOf(workers)
  yield* Effect.sleep(window)
  const after = yield* progressOf(workers)
  yield* all("stop")
  if (after.events >= options.events) {
    return yield* Effect.die(new Error(`${workers.length} workers reached the end of ${options.events} events`))
  }
  const seconds = Number(after.at - before.at) / 1e9
  const sample: Sample = {
    eventsPerSecond: (after.events - before.events) / seconds,
    busyCores: (after.cpuSeconds - before.cpuSeconds) / seconds
  }
  return sample
})

/** Measures each number of workers in alternating rounds. */
export const measure = Effect.fnUntraced(function*({ counts, events, handler, rounds }: {
  readonly rounds: number
  readonly counts: ReadonlyArray<number>
  readonly handler: unknown
  readonly events: number
}) {
  const workers = yield* Effect.forEach(
    Array.from({ length: Math.max(...counts) }),
    () => Contender.start("contenders/worker.ts"),
    { concurrency: "unbounded" }
  )
  return yield* Rounds.alternate(
    rounds,
    counts.map((count) => (round: number) =>
      measureOnce(workers.slice(0, count), { replicaSet: `fleet_${count}_${round}`, handler, events })
    )
  )
})
