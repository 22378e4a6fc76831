/**
 * A rolling deploy under load, in the order of a Kubernetes `Deployment` with `maxSurge: 1` and `maxUnavailable: 0`: a new process starts;
 * when its worker and all others have reached their assignment, the old process gets SIGTERM; when the remaining ones have reached theirs,
 * the next is replaced.
 *
 * The delay of an event lasts from when its append was due (open loop) to the commit of the read model that contains it, by the machine's
 * monotonic clock. A hash moves when the runner of another worker starts on its range (`RangeClaimed`).
 */
import { Console, Effect } from "effect"
import * as Benchmark from "../Benchmark.ts"
import * as Database from "../hosts/Database.ts"
import * as Delays from "../hosts/Delays.ts"
import * as Hosts from "../hosts/Hosts.ts"
import * as Members from "../hosts/Members.ts"
import { now } from "../hosts/Messages.ts"
import * as Timeline from "../hosts/Timeline.ts"
import { atMost, median, percentile, shown } from "../Measure.ts"

const set = "deploy"
const load = { rate: 200, writers: 2, aggregates: 1000 }
const workers = 6
const deploys = 2

/** How one worker was replaced. */
interface Replacement {
  readonly startedAt: number
  /** When all workers, old and new, had reached their assignment, and the old one got its signal. */
  readonly signalledAt: number
  readonly exitedAt: number
  readonly finishedAt: number
}

const replace = Effect.fnUntraced(function*(
  hosts: Hosts.Hosts,
  [old, ...others]: ReadonlyArray<Members.Member>,
  worker: string
) {
  const startedAt = now()
  const next = yield* Members.start(hosts, { worker, replicaSet: set, handler: "upsert" })
  yield* Members.reached(hosts, startedAt, [old!, ...others, next])
  const signalledAt = now()
  yield* old!.host.stop
  const exitedAt = now()
  const members = [...others, next]
  const finishedAt = yield* Members.reached(hosts, signalledAt, members)
  const replacement: Replacement = { startedAt, signalledAt, exitedAt, finishedAt }
  return { members, replacement }
})

const deployAll = Effect.fnUntraced(function*(hosts: Hosts.Hosts, first: ReadonlyArray<Members.Member>) {
  let running = first
  const replacements: Array<Replacement> = []
  for (let number = 0; number < deploys * workers; number++) {
    if (number % workers === 0) yield* Console.error(`  deploy ${number / workers + 1} of ${deploys} …`)
    const { members, replacement } = yield* replace(hosts, running, `w${workers + number}`)
    running = members
    replacements.push(replacement)
    yield* Effect.sleep("200 millis")
  }
  return replacements
})

const measure = Effect.gen(function*() {
  const { url } = yield* Benchmark.Target
  yield* Database.createReadModel
  const hosts = Hosts.make(url)
  const writers = yield* hosts.spawn()
  const members = yield* Members.startAll(hosts, workers, { replicaSet: set, handler: "upsert" })
  // The first appends and batches compile their code.
  yield* writers.append({ ...load, seconds: 1 })
  const { appended, value } = yield* Hosts.underLoad(writers, load, deployAll(hosts, members))
  const delays = yield* Delays.all(hosts, appended, set)
  return { entries: hosts.entries, replacements: value, delays: delays.map(({ millis }) => millis) }
})

const result = Effect.gen(function*() {
  const { delays, entries, replacements } = yield* measure
  const moves = replacements.map(({ finishedAt, startedAt }) => Timeline.mostMoves(entries, set, startedAt, finishedAt))
  const row = (name: string, values: ReadonlyArray<number>) => [
    name,
    values.length,
    ...[0.5, 0.9, 0.99, 1].map((part) => percentile(values, part).toFixed(1))
  ]
  return {
    text:
      `${workers} workers at default settings, each in a process of its own, whose handler writes one upsert per event; ${load.rate} ` +
      `appends per second, open loop. In ${deploys} deploys, each worker is replaced: a new process starts; once its worker and the ` +
      "others have reached their assignment, the old process gets SIGTERM.",
    measures: [
      atMost("longest delay of an event, from when its append was due to its commit", Math.max(...delays), "ms", 250),
      atMost("moves of a hash for each replaced worker, at most", Math.max(...moves), "moves", 2),
      shown("delay of an event, p99", percentile(delays, 0.99), "ms"),
      shown("moves of a hash for each replaced worker, median of the most", median(moves), "moves")
    ],
    tables: [{
      title: "Distribution",
      text:
        "Milliseconds. A join lasts from the start of the new process, a leave from the signal, until all workers have reached their " +
        "assignment.",
      header: ["", "samples", "p50", "p90", "p99", "max"],
      rows: [
        row("delay of an event", delays),
        row("join", replacements.map(({ signalledAt, startedAt }) => signalledAt - startedAt)),
        row("signal to exit", replacements.map(({ exitedAt, signalledAt }) => exitedAt - signalledAt)),
        row("leave", replacements.map(({ finishedAt, signalledAt }) => finishedAt - signalledAt))
      ]
    }]
  }
})

export const deploy = Benchmark.make({
  name: "deploy",
  title: "Rolling deploy",
  summary: "The longest delay of an event while 6 workers are replaced one after the other under load.",
  isLong: true,
  run: result
})
