/** Workers of one replica set, each in a process of its own. */
import { Effect, type Scope } from "effect"
import * as Hosts from "./Hosts.ts"
import { now } from "./Messages.ts"

export interface Member {
  readonly worker: string
  readonly host: Hosts.Host
}

/** Starts a process and its worker. Returns when the worker is started, which is before it has reached its assignment. */
export const start = Effect.fnUntraced(function*(
  hosts: Hosts.Hosts,
  options: Hosts.WorkerOptions
): Effect.fn.Return<Member, never, Scope.Scope> {
  const host = yield* hosts.spawn()
  Hosts.startWorker(host, options)
  return { worker: options.worker, host }
})

/** Starts the workers `w0`, `w1`, …, and returns when all have reached their assignment. */
export const startAll = Effect.fnUntraced(function*(
  hosts: Hosts.Hosts,
  count: number,
  options: Omit<Hosts.WorkerOptions, "worker">
) {
  const since = now()
  const members = yield* Effect.forEach(
    Array.from({ length: count }),
    (_, number) => start(hosts, { ...options, worker: `w${number}` }),
    { concurrency: 3 }
  )
  yield* reached(hosts, since, members)
  return members
})

/** Waits until these workers and no others share the work; see `Hosts.reached`. */
export const reached = (hosts: Hosts.Hosts, since: number, members: ReadonlyArray<Member>): Effect.Effect<number> =>
  Hosts.reached(hosts, since, members.map(({ worker }) => worker))
