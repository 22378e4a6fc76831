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

/** What a worker process has done since it started; of several workers, their sum. */
export interface Progress {
  readonly events: number
  readonly cpuSeconds: number
  readonly bytesReceived: number
}

/** How long the workers settle in, and how long they are measured. */
const settling = "500 millis"
const window = "1500 millis"

type Workers = ReadonlyArray<Contender.Contender>

/** Starts worker processes, which are idle. They end with the scope. */
export const start = (count: number) =>
  Effect.forEach(
    Array.from({ length: count }),
    () => Contender.start("contenders/worker.ts"),
    { concurrency: "unbounded" }
  )

/** Calls all workers at the same time. */
export const callAll = (workers: Workers, method: string, args?: unknown) =>
  Effect.forEach(workers, (worker) => worker.call(method, args), { concurrency: "unbounded" })

export const progress = Effect.fnUntraced(function*(workers: Workers) {
  const reports = (yield* callAll(workers, "progress")).map(({ value }) => value as Progress)
  const sum = (of: (report: Progress) => number) => reports.reduce((sum, report) => sum + of(report), 0)
  const total: Progress = {
    events: sum(({ events }) => events),
    cpuSeconds: sum(({ cpuSeconds }) => cpuSeconds),
    bytesReceived: sum(({ bytesReceived }) => bytesReceived)
  }
  return total
})

/** The progress of the workers, the CPU time of the server, and the time of both. */
const observe = Effect.fnUntraced(function*(workers: Workers) {
  const { embedded } = yield* Target
  const { cpuSeconds, events } = yield* progress(workers)
  return {
    at: yield* Clock.monotonicTimeNanos,
    events,
    cpuSeconds: cpuSeconds + ServerCpu.seconds(embedded?.pid)
  }
})

/** Starts the workers, measures them once each has its part, and stops them. */
const measureOnce = Effect.fnUntraced(function*(
  workers: Workers,
  options: { readonly replicaSet: string; readonly handler: unknown; readonly events: number }
) {
  yield* callAll(workers, "start", { ...options, workers: workers.length })
  yield* Effect.sleep(settling)
  const before = yield* observe(workers)
  yield* Effect.sleep(window)
  const after = yield* observe(workers)
  yield* callAll(workers, "stop")
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
  const workers = yield* start(Math.max(...counts))
  return yield* Rounds.alternate(
    rounds,
    counts.map((count) => (round: number) =>
      measureOnce(workers.slice(0, count), { replicaSet: `fleet_${count}_${round}`, handler, events })
    )
  )
})
