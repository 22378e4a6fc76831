/**
 * The worker processes of a run, as a supervisor manages them: it keeps the wanted number running and restarts those
 * that exit.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Random from "effect/Random"
import * as Scope from "effect/Scope"
import type * as WorkerProcess from "../../../src/testing/WorkerProcess.ts"
import type * as Harness from "../Harness.ts"

/** A place in the fleet, with its own network path to the database. */
export interface Place {
  readonly index: number
  readonly options: Harness.WorkerOptions
}

/** A running worker. */
export interface Member {
  readonly place: Place
  readonly workerId: string
  readonly worker: WorkerProcess.WorkerProcess
  /** Closing it ends the process, whatever its state. */
  readonly scope: Scope.Closeable
}

export interface Fleet {
  readonly members: () => ReadonlyArray<Member>
  /** Members that no fault currently keeps from working. */
  readonly able: () => ReadonlyArray<Member>
  /** Marks the workers with these ids as kept from working while `self` runs. */
  readonly without: <A, E, R>(ids: ReadonlyArray<string>, self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** Draws members at random, out of the eligible ones. */
  readonly pick: (count: number, eligible?: (member: Member) => boolean) => Effect.Effect<ReadonlyArray<Member>>
  /** Removes a member whose process received a signal to stop, or has exited. */
  readonly forget: (member: Member) => void
  /** Sets the wanted number of workers. */
  readonly resize: (size: number) => void
  /** Workers that start from now on use these options, which override those of their place. */
  readonly deploy: (version: Harness.WorkerOptions) => void
  /** Starts the missing workers, sometimes under the id that the previous worker of the place had. Returns how many. */
  readonly restore: Effect.Effect<number>
  /** How many processes were started. */
  readonly started: () => number
  /** Processes that exited without a signal, with their last output. */
  readonly ended: ReadonlyArray<string>
  /** Stops all workers and returns those that did not exit with code 0. */
  readonly stopAll: Effect.Effect<ReadonlyArray<string>>
}

/** A worker that cannot reach its database at startup logs the error and exits; another one is started. */
const foundNoDatabase = (exit: WorkerProcess.Ended, said: string): boolean =>
  exit.code === 1 && !said.includes("Worker registered") && /ERROR .*database server at/.test(said)

export const make = Effect.fnUntraced(function*(options: {
  readonly harness: Harness.Harness["Service"]
  readonly places: ReadonlyArray<Harness.WorkerOptions>
}) {
  const owner = yield* Effect.scope
  const places = options.places.map((options, index): Place => ({ index, options }))
  const members: Array<Member> = []
  /** The number of faults that keep a worker from working, by id. */
  const kept = new Map<string, number>()
  const lastIds = new Map<Place, string>()
  const ended: Array<string> = []
  let wanted = places.length
  let version: Harness.WorkerOptions = {}
  let ids = 0
  let started = 0

  const forget = (member: Member) => {
    const index = members.indexOf(member)
    if (index >= 0) members.splice(index, 1)
  }

  const keep = (ids: ReadonlyArray<string>, by: 1 | -1) =>
    Effect.sync(() => {
      for (const id of ids) kept.set(id, (kept.get(id) ?? 0) + by)
    })

  const start = Effect.fnUntraced(function*(place: Place) {
    const last = lastIds.get(place)
    const again = last !== undefined && (yield* Random.nextBoolean)
    const workerId = again ? last : `w${++ids}`
    lastIds.set(place, workerId)
    started++
    const scope = yield* Scope.fork(owner)
    const worker = yield* options.harness.start(workerId, { ...place.options, ...version, mayEnd: true }).pipe(
      Scope.provide(scope)
    )
    const member: Member = { place, workerId, worker, scope }
    members.push(member)
    yield* worker.ended.pipe(
      Effect.flatMap((exit) =>
        Effect.sync(() => {
          if (!members.includes(member)) return
          forget(member)
          if (foundNoDatabase(exit, worker.output())) return
          const said = worker.output().trimEnd().split("\n").slice(-20).join("\n")
          ended.push(`${workerId} ended by itself with ${exit.signal ?? exit.code}: ${said}`)
        })
      ),
      Effect.forkIn(scope)
    )
  })

  const fleet: Fleet = {
    members: () => members,
    able: () => members.filter(({ workerId }) => (kept.get(workerId) ?? 0) === 0),
    without: (ids, self) => Effect.acquireUseRelease(keep(ids, 1), () => self, () => keep(ids, -1)),
    pick: (count, eligible = () => true) =>
      Effect.map(
        Effect.suspend(() => Random.shuffle(members.filter(eligible))),
        (drawn) => drawn.slice(0, count)
      ),
    forget,
    resize: (size) => {
      wanted = Math.min(size, places.length)
    },
    deploy: (next) => {
      version = next
    },
    restore: Effect.gen(function*() {
      const free = places.filter((place) => !members.some((member) => member.place === place))
      const missing = free.slice(0, Math.max(0, wanted - members.length))
      yield* Effect.forEach(missing, start, { concurrency: "unbounded", discard: true })
      return missing.length
    }),
    started: () => started,
    ended,
    stopAll: Effect.gen(function*() {
      const all = members.splice(0)
      const exits = yield* Effect.forEach(all, ({ worker }) => worker.stop, { concurrency: "unbounded" })
      yield* Effect.forEach(all, ({ scope }) => Scope.close(scope, Exit.void), { discard: true })
      return exits.flatMap((exit, index) =>
        exit.code === 0
          ? []
          : [`${all[index]?.workerId} ended with ${exit.signal ?? exit.code} after SIGTERM`]
      )
    })
  }
  return fleet
})
