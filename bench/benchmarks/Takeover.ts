/**
 * The time from SIGKILL of a worker's process until the other workers run all of its ranges, at default settings.
 *
 * 4 workers, each in a process of its own, under 200 appends per second. The time begins before the signal is sent and ends when the last
 * of the three survivors reports that it runs all of its assignment (`AssignmentReached`), by the machine's monotonic clock. Then a new
 * process takes the place of the killed one. 30 kills: p99 is the longest of them.
 */
import { Console, Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Delays from "../hosts/Delays.ts"
import * as Hosts from "../hosts/Hosts.ts"
import * as Members from "../hosts/Members.ts"
import { now } from "../hosts/Messages.ts"
import { atMost, percentile, shown } from "../Measure.ts"

const set = "takeover"
const load = { rate: 200, writers: 2, aggregates: 1000 }
const workers = 4
const kills = 30

const killInTurn = Effect.fnUntraced(function*(hosts: Hosts.Hosts, members: ReadonlyArray<Members.Member>) {
  let alive = members
  const times: Array<number> = []
  for (let round = 0; round < kills; round++) {
    if (round % 10 === 0) yield* Console.error(`  kill ${round + 1} of ${kills} …`)
    const [victim, ...survivors] = alive
    const killedAt = now()
    yield* victim!.host.kill
    times.push((yield* Members.reached(hosts, killedAt, survivors)) - killedAt)
    const since = now()
    alive = [...survivors, yield* Members.start(hosts, { worker: `w${workers + round}`, replicaSet: set })]
    yield* Members.reached(hosts, since, alive)
    // The new worker establishes its presence, which follows the start of its ranges.
    yield* Effect.sleep("200 millis")
  }
  return times
})

const measure = Effect.gen(function*() {
  const { url } = yield* Benchmark.Target
  const hosts = Hosts.make(url)
  const writers = yield* hosts.spawn()
  const members = yield* Members.startAll(hosts, workers, { replicaSet: set })
  const { appended, value } = yield* Hosts.underLoad(writers, load, killInTurn(hosts, members))
  const delays = yield* Delays.all(hosts, appended, set)
  return { delays: delays.map(({ millis }) => millis), times: value }
})

const result = Effect.gen(function*() {
  const { delays, times } = yield* measure
  return {
    text:
      `${workers} workers in as many processes at default settings, ${load.rate} appends per second, ${kills} kills.`,
    measures: [
      shown("SIGKILL to takeover, p50", percentile(times, 0.5), "ms"),
      atMost("SIGKILL to takeover, p99", percentile(times, 0.99), "ms", 300),
      shown("longest delay of an event, from when its append was due to its commit", Math.max(...delays), "ms")
    ]
  }
})

export const takeover = Benchmark.make({
  name: "takeover",
  title: "Takeover",
  summary: "The time from SIGKILL of a worker until others run its ranges, at default settings.",
  run: result
})
