/**
 * The time from an append to the commit of the read model, on an idle system and at 2,000 appends per second.
 *
 * The time begins in the process of the writers: on the idle system when the append is sent, under load when it was due (open loop: what
 * waits behind a slow append counts). It ends in the process of the worker, when that receives the confirmation of the commit that contains
 * the event. Both read the machine's monotonic clock. The handler writes one upsert per event.
 */
import { Console, Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Database from "../hosts/Database.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { type Appended, now } from "../hosts/Messages.ts"
import * as Timeline from "../hosts/Timeline.ts"
import { atLeast, atMost, medianRatio, percentile, shown } from "../Measure.ts"

const set = "latency"
const idle = { rate: 50, seconds: 12, writers: 1, aggregates: 100 }
const load = { rate: 2000, seconds: 5, writers: 8, aggregates: 1000 }
const loadRounds = 3

/** Waits until the worker has committed the last of the events. */
const committed = (hosts: Hosts.Hosts, { positions }: Appended) => {
  const last = Math.max(...positions)
  return hosts.waitUntil(
    "every event is committed",
    () => (hosts.entries.findLast(({ tag }) => tag === "BatchCommitted")?.position ?? 0) >= last ? true : undefined
  )
}

/** Appends per second, from the time at which the first was due to the last answer. */
const throughput = ({ answered, due }: Appended): number =>
  due.length / (Math.max(...answered) - Math.min(...due)) * 1000

const measure = Effect.gen(function*() {
  const { url } = yield* Benchmark.Target
  yield* Database.createReadModel
  const hosts = Hosts.make(url)
  const writers = yield* hosts.spawn({ connections: load.writers })
  const worker = yield* hosts.spawn()
  const start = (name: string) =>
    Effect.suspend(() => {
      const since = now()
      Hosts.startWorker(worker, { worker: name, replicaSet: set, handler: "upsert" })
      return Hosts.reached(hosts, since, [name])
    })

  yield* start("w0")
  yield* committed(hosts, yield* writers.append({ ...load, seconds: 1 }))
  const atIdle = yield* writers.append(idle)
  yield* committed(hosts, atIdle)

  const withWorker: Array<Appended> = []
  const without: Array<Appended> = []
  for (let round = 0; round < loadRounds; round++) {
    yield* Console.error(`  ${load.rate} appends per second, round ${round + 1} of ${loadRounds} …`)
    yield* worker.stopWorker(`w${round}`)
    const alone = yield* writers.append(load)
    yield* start(`w${round + 1}`)
    yield* committed(hosts, alone)
    const beside = yield* writers.append(load)
    yield* committed(hosts, beside)
    without.push(alone)
    withWorker.push(beside)
  }
  return { hosts, atIdle, withWorker, without }
})

const result = Effect.gen(function*() {
  const { atIdle, hosts, withWorker, without } = yield* measure
  const hashes = yield* Database.hashes
  const delays = (from: "due" | "sent", appended: Appended) =>
    Timeline.delays(appended[from], appended, hashes, hosts.entries, set).map(({ millis }) => millis)
  const idleDelays = delays("sent", atIdle)
  const loadDelays = withWorker.flatMap((appended) => delays("due", appended))
  return {
    text:
      `One projection whose handler writes one upsert per event, in a process of its own; ${atIdle.due.length} appends at ` +
      `${idle.rate} per second, then ${loadRounds} alternating rounds of ${load.seconds} s with and without a worker, in which ` +
      `${load.writers} writers append ${load.rate} events per second, one per transaction.`,
    measures: [
      atMost("append to commit of the read model, idle, p50", percentile(idleDelays, 0.5), "ms", 4),
      atMost("append to commit of the read model, idle, p99", percentile(idleDelays, 0.99), "ms", 15),
      shown(`append to commit of the read model, ${load.rate}/s, p50`, percentile(loadDelays, 0.5), "ms"),
      atMost(`append to commit of the read model, ${load.rate}/s, p99`, percentile(loadDelays, 0.99), "ms", 50),
      atLeast(
        "append throughput with a worker, relative to that without",
        medianRatio(withWorker.map(throughput), without.map(throughput)),
        "ratio",
        0.95
      )
    ],
    tables: [{
      title: "Distribution",
      text: "Milliseconds. An append is timed from when it was due to its answer, and to the commit of the read model.",
      header: ["", "samples", "p50", "p90", "p99", "p99.9", "max"],
      rows: [
        row("idle: append", answerTimes(atIdle)),
        row("idle: read model", idleDelays),
        row(`${load.rate}/s without a worker: append`, without.flatMap(answerTimes)),
        row(`${load.rate}/s with a worker: append`, withWorker.flatMap(answerTimes)),
        row(`${load.rate}/s with a worker: read model`, loadDelays)
      ]
    }]
  }
})

const answerTimes = ({ answered, due }: Appended): ReadonlyArray<number> =>
  answered.map((at, index) => at - due[index]!)

const millis = (values: ReadonlyArray<number>) => values.map((value) => value.toFixed(1))

const parts = [0.5, 0.9, 0.99, 0.999]

const row = (name: string, values: ReadonlyArray<number>): ReadonlyArray<string | number> => [
  name,
  values.length,
  ...millis(parts.map((part) => percentile(values, part))),
  ...millis([Math.max(...values)])
]

export const latency = Benchmark.make({
  name: "latency",
  title: "Latency",
  summary: "The time from an append to the commit of the read model, idle and at 2,000 appends per second.",
  run: result
})
