/** Workers of one replica set, spread over host processes, that join and leave. They are named `w0`, `w1`, … */
import { Effect } from "effect"
import * as Hosts from "./Hosts.ts"
import { now } from "./Messages.ts"

export interface Fleet {
  readonly hosts: Hosts.Hosts
  readonly running: ReadonlyArray<Hosts.Host>
  readonly replicaSet: string
  readonly options: Options
  /** The number of workers. */
  size: number
}

type Options = Pick<Hosts.WorkerOptions, "projections" | "startFrom">

/** How long the workers are left alone between two changes. */
const pause = "200 millis"

/** Starts the processes, without workers. */
export const start = Effect.fnUntraced(function*(
  hosts: Hosts.Hosts,
  replicaSet: string,
  processes: number,
  options: Options = {}
) {
  const running = yield* Effect.forEach(Array.from({ length: processes }), () => hosts.spawn(), { concurrency: 3 })
  const fleet: Fleet = { hosts, running, replicaSet, options, size: 0 }
  return fleet
})

const names = (count: number) => Array.from({ length: count }, (_, index) => `w${index}`)

const hostOf = ({ running }: Fleet, index: number): Hosts.Host => running[index % running.length]!

/** Starts the workers that are missing, and returns when all have reached their assignment. */
export const growTo = Effect.fnUntraced(function*(fleet: Fleet, size: number) {
  const { hosts, options, replicaSet } = fleet
  const since = now()
  for (; fleet.size < size; fleet.size++) {
    Hosts.startWorker(hostOf(fleet, fleet.size), { worker: `w${fleet.size}`, replicaSet, ...options })
  }
  yield* Hosts.reached(hosts, since, names(size))
})

/** The last of the workers leaves and joins again. Returns how long each took until every worker had reached its assignment. */
export const joinAndLeave = Effect.fnUntraced(function*(fleet: Fleet, workers: number, rounds: number) {
  const { hosts, options, replicaSet } = fleet
  const last = `w${workers - 1}`
  const host = hostOf(fleet, workers - 1)
  const joins: Array<number> = []
  const leaves: Array<number> = []
  for (let round = 0; round < rounds; round++) {
    const left = now()
    yield* host.stopWorker(last)
    leaves.push((yield* Hosts.reached(hosts, left, names(workers - 1))) - left)
    yield* Effect.sleep(pause)
    const joined = now()
    Hosts.startWorker(host, { worker: last, replicaSet, ...options })
    joins.push((yield* Hosts.reached(hosts, joined, names(workers))) - joined)
    yield* Effect.sleep(pause)
  }
  return { joins, leaves }
})
