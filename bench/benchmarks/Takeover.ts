/**
 * The time from SIGKILL of a worker's process until the other workers run all of its ranges, at default settings.
 *
 * 4 workers, each in a process of its own, under 200 appends per second. The time begins before the signal is sent and ends when the last
 * of the three survivors reports that it runs all of its assignment (`AssignmentReached`), by the machine's monotonic clock. Then a new
 * process takes the place of the killed one. 30 kills: p99 is the longest of them.
 */
import { Console, Effect, type Scope } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Database from "../hosts/Database.ts"
import * as Hosts from "../hosts/Hosts.ts"
import { now } from "../hosts/Messages.ts"
import * as Timeline from "../hosts/Timeline.ts"
import { atMost, percentile, shown } from "../Measure.ts"

const set = "takeover"
const load = { rate: 200, writers: 2, aggregates: 1000 }
const workers = 4
const kills = 30

interface Member {
  readonly worker: string
  readonly host: Hosts.Host
}

const start = Effect.fnUntraced(function*(
  hosts: Hosts.Hosts,
  number: number
): Effect.fn.Return<Member, never, Scope.Scope> {
  const host = yield* hosts.spawn()
  const worker = `w${number}`
  Hosts.startWorker(host, { worker, replicaSet: set })
  return { worker, host }
})

const killInTurn = Effect.fnUntraced(function*(hosts: Hosts.Hosts, members: ReadonlyArray<Member>) {
  let alive = members
  const times: Array<number> = []
  for (let round = 0; round < kills; round++) {
    if (round % 10 === 0) yield* Console.error(`  kill ${round + 1} of ${kills} …`)
    const [victim, ...survivors] = alive
    const killedAt = now()
    yield* victim!.host.kill
    times.push((yield* Hosts.reached(hosts, killedAt, survivors.map(({ worker }) => worker))) - killedAt)
    const since = now()
    alive = [...survivors, yield* start(hosts, workers + round)]
    yield* Hosts.reached(hosts, since, alive.map(({ worker }) => worker))
    // Presence is established, and the ranges work.
    yield* Effect.sleep("200 millis")
  }
  return times
})

const measure = Effect.gen(function*() {
  const { url } = yield* Benchmark.Target
  const hosts = Hosts.make(url)
  const writers = yield* hosts.spawn()
  const since = now()
  const members = yield* Effect.forEach(
    Array.from({ length: workers }, (_, number) => number),
    (number) => start(hosts, number)
  )
  yield* Hosts.reached(hosts, since, members.map(({ worker }) => worker))
  const { appended, value } = yield* Hosts.underLoad(writers, load, killInTurn(hosts, members))
  yield* Effect.sleep("500 millis")
  return { hosts, appended, times: value }
})

const result = Effect.gen(function*() {
  const { appended, hosts, times } = yield* measure
  const delays = Timeline.delays(appended.due, appended, yield* Database.hashes, hosts.entries, set)
    .map(({ millis }) => millis)
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
