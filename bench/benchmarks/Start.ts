/** How long it takes until a worker has handled its first event: in a process that is warm, and from the start of a process. */
import { Console, Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Contender from "../Contender.ts"
import * as Events from "../Events.ts"
import { now } from "../hosts/Messages.ts"
import { atMost, median, medianRatio, percentile, shown } from "../Measure.ts"
import type { Report } from "../programs/report.ts"
import * as Rounds from "../Rounds.ts"

/** Starts in the warm process for each round. */
const warmStarts = 5

/** The milliseconds that a worker in the warm process takes to build its layers, and from `run` to the commit of its first event. */
interface WarmStart {
  readonly layers: number
  readonly run: number
}

const startWarm = Effect.fnUntraced(function*(rounds: number) {
  yield* Console.error("  in a warm process …")
  const contender = yield* Contender.start("contenders/start.ts")
  const starts: Array<WarmStart> = []
  for (let number = 0; number < (1 + rounds) * warmStarts; number++) {
    starts.push((yield* contender.call("start", `warm_${number}`)).value as WarmStart)
  }
  return starts.slice(warmStarts)
}, Effect.scoped)

/** The milliseconds from the start of a process to what it reports, and the CPU time that it needed. */
interface ProcessStart {
  readonly total: number
  readonly cpu: number
}

/** Starts a program, waits for its report, and kills it. */
const startProcess = Effect.fnUntraced(function*(program: string, replicaSet: string) {
  const began = now()
  const child = yield* Contender.fork(`programs/${program}.ts`, { BENCH_REPLICA_SET: replicaSet })
  const { at, cpu } = yield* Effect.callback<Report>((resume) => {
    child.once("message", (report) => resume(Effect.succeed(report as Report)))
    child.once("disconnect", () => resume(Effect.die(new Error(`${program} ended without a report`))))
  })
  const start: ProcessStart = { total: at - began, cpu }
  return start
}, Effect.scoped)

const measure = Effect.gen(function*() {
  const { rounds } = yield* Benchmark.Target
  yield* Events.fill(1)
  const warm = yield* startWarm(rounds)
  const [worker, empty] = yield* Rounds.alternate(rounds, [
    (round) => startProcess("worker", `process_${round}`),
    () => startProcess("empty", "")
  ])
  return evaluate({ warm, worker: worker!, empty: empty! })
})

const evaluate = ({ empty, warm, worker }: {
  readonly warm: ReadonlyArray<WarmStart>
  readonly worker: ReadonlyArray<ProcessStart>
  readonly empty: ReadonlyArray<ProcessStart>
}): Benchmark.Result => {
  const total = (starts: ReadonlyArray<ProcessStart>) => starts.map(({ total }) => total)
  const cpu = (starts: ReadonlyArray<ProcessStart>) => starts.map(({ cpu }) => cpu)
  const run = warm.map(({ run }) => run)
  const layers = warm.map(({ layers }) => layers)
  return {
    text:
      `A worker of one projection, alone in its replica set, and one event before it. The event counts as handled once it is committed. ` +
      `${warm.length} starts in a warm process, each with a client, stores and sessions of its own. Then ` +
      `medians of ${worker.length} alternating starts of processes: of the worker, and of an Effect program that opens a connection and executes ` +
      "one statement. Both import `effect` and `@effect/sql-pg` as a whole, and start without compiled code.",
    measures: [
      atMost("`run` to the first event, in a warm process, p50", median(run), "ms", 150),
      atMost(
        "process start to the first event, relative to an empty program",
        medianRatio(total(worker), total(empty)),
        "ratio",
        2
      ),
      shown("the same in CPU time", medianRatio(cpu(worker), cpu(empty)), "ratio"),
      shown("process start to the first event, p50", median(total(worker)), "ms")
    ],
    tables: [
      {
        title: "In a warm process",
        text: "Milliseconds.",
        header: ["", "p50", "p90", "max"],
        rows: [
          ["build the layers of client, stores and worker", ...distribution(layers)],
          ["`run` to the first event", ...distribution(run)]
        ]
      },
      {
        title: "From the start of a process",
        text: "Milliseconds, p50.",
        header: ["", "elapsed", "CPU time of the process"],
        rows: [
          ["worker", ...[total, cpu].map((of) => median(of(worker)).toFixed(0))],
          ["empty program", ...[total, cpu].map((of) => median(of(empty)).toFixed(0))]
        ]
      }
    ]
  }
}

const distribution = (values: ReadonlyArray<number>): ReadonlyArray<string> =>
  [percentile(values, 0.5), percentile(values, 0.9), Math.max(...values)].map((value) => value.toFixed(0))

export const start = Benchmark.make({
  name: "start",
  title: "Start of a worker",
  summary: "The time until a worker has handled its first event, in a warm process and from the start of a process.",
  run: measure
})
