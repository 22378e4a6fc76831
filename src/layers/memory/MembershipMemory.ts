/**
 * Membership in memory. A worker's presence lasts until the scope of its `join` closes or the session of its process
 * ends.
 */
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as TxRef from "effect/TxRef"
import { WorkerEvicted, WorkerIdInUse, WorkerReplaced } from "../../schema/Errors.ts"
import * as Generation from "../../schema/Generation.ts"
import * as Worker from "../../schema/Worker.ts"
import type { JoinOptions } from "../../services/Membership.ts"
import { Membership } from "../../services/Membership.ts"
import type { GenerationRecord, Handle, Listener, MemoryWorld, WorkerRecord } from "./MemoryWorld.ts"
import { changeWorker, endPresence, viewOf, wake, workerKey } from "./MemoryWorld.ts"

/** How often a joining worker checks the earlier registration under its id. */
const earlierPollMillis = 100

/** Membership for the process of `handle`. */
export const make = (handle: Handle): Membership => {
  const { reach, world } = handle
  return Membership.of({
    join: (options) => reach(join(handle, options)),
    heartbeat: (registration, displayed) => reach(Effect.tx(heartbeat(world, registration, displayed))),
    departed: (registration, members) => reach(Effect.tx(departed(world, registration, members))),
    wakeUps: (registration) => reach(wakeUps(world, registration)),
    watch: (registration, generation) => reach(watch(world, registration, generation)),
    // There is no database, so there are no sessions.
    connections: Effect.succeed({ isListening: true, sessions: 0 })
  })
}

/** Uninterruptible except while it waits, so that a completed registration always reaches the caller. */
const join = (handle: Handle, options: JoinOptions) =>
  Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
    let first: WorkerRecord | undefined
    while (true) {
      const result = yield* Effect.tx(register(handle, options, first))
      if (result._tag === "Earlier") {
        if (first?.incarnation !== result.earlier.incarnation) first = result.earlier
        yield* restore(handle.reach(Effect.sleep(Math.min(earlierPollMillis, result.replaceableInMillis))))
        continue
      }
      const { registration } = result
      handle.present.add(registration)
      // Not through `reach`, because the scope also closes after the process was cut off. Presence has then ended
      // already.
      yield* Effect.addFinalizer(() =>
        Effect.suspend(() =>
          handle.present.delete(registration) ? endPresence(handle.world, registration) : Effect.void
        )
      )
      return registration
    }
  }))

type Registered =
  | { readonly _tag: "Registered"; readonly registration: Worker.Registration }
  | { readonly _tag: "Earlier"; readonly earlier: WorkerRecord; readonly replaceableInMillis: number }

/**
 * Returns the new registration, or the earlier one if that must not be replaced yet. `first` is the earlier registration
 * when the wait began: if it has sent a heartbeat since then, the id is in use.
 */
const register = Effect.fnUntraced(function*(
  { process, world }: Handle,
  { projections, replicaSet, rules, workerId }: JoinOptions,
  first: WorkerRecord | undefined
): Effect.fn.Return<Registered, WorkerIdInUse> {
  const now = yield* world.now
  const workers = yield* TxRef.get(world.workers)
  const key = workerKey({ replicaSet, workerId })
  const earlier = workers.get(key)
  if (earlier !== undefined && earlier.stoppedAt === undefined) {
    const replaceableInMillis = Worker.millisUntilReplaceable(viewOf(earlier, now), rules)
    if (replaceableInMillis > 0) {
      const isInUse = (earlier.process === process && earlier.absentSince === undefined) ||
        (first?.incarnation === earlier.incarnation && first.heartbeatAt !== earlier.heartbeatAt)
      if (!isInUse) return { _tag: "Earlier", earlier, replaceableInMillis }
      return yield* new WorkerIdInUse({
        replicaSet,
        workerId,
        host: "memory",
        pid: earlier.process,
        since: earlier.startedAt
      })
    }
  }
  const registration: Worker.Registration = {
    replicaSet,
    workerId,
    incarnation: yield* TxRef.modify(world.lastIncarnation, (last) => [last + 1n, last + 1n]),
    startedAt: new Date(now),
    projections: [...projections]
  }
  const worker: WorkerRecord = {
    ...registration,
    state: "pending",
    generationId: undefined,
    partitionKey: -1,
    heartbeatAt: now,
    absentSince: undefined,
    stoppedAt: undefined,
    evictedBy: undefined,
    process
  }
  yield* TxRef.set(world.workers, new Map(workers).set(key, worker))
  return { _tag: "Registered", registration }
})

const heartbeat = Effect.fnUntraced(function*(
  world: MemoryWorld,
  registration: Worker.Registration,
  displayed: Worker.Displayed | undefined
) {
  const { incarnation, replicaSet, workerId } = registration
  const now = yield* world.now
  const before = yield* changeWorker(
    world,
    registration,
    (worker) => worker.stoppedAt === undefined ? { ...worker, ...displayed, heartbeatAt: now } : worker
  )
  if (before === undefined) {
    // After the server has lost its last commits, an earlier registration may be recorded, or none. In both cases no
    // other process has taken the id.
    const row = (yield* TxRef.get(world.workers)).get(workerKey(registration))
    return yield* row !== undefined && row.incarnation > incarnation
      ? new WorkerReplaced({ replicaSet, workerId })
      : new WorkerEvicted({ replicaSet, workerId, reason: "missing" })
  }
  if (before.stoppedAt !== undefined) return yield* new WorkerEvicted({ replicaSet, workerId, reason: "evicted" })
  if (displayed?.state === "running") yield* activate(world, replicaSet, displayed.generationId)
})

/** Records a generation as active once all its members are recorded as running in it. For operators to read. */
const activate = Effect.fnUntraced(function*(
  world: MemoryWorld,
  replicaSet: string,
  generationId: bigint | undefined
) {
  const workers = yield* TxRef.get(world.workers)
  const isRunning = ({ incarnation, workerId }: Generation.Member): boolean => {
    const worker = workers.get(workerKey({ replicaSet, workerId }))
    return worker?.incarnation === incarnation && worker.state === "running" && worker.generationId === generationId
  }
  yield* TxRef.update(world.generations, (all) => {
    const generations = all.get(replicaSet) ?? []
    const pending = generations.find((record) => record.generationId === generationId && record.state === "pending")
    if (pending === undefined || !pending.members.every(isRunning)) return all
    const active: GenerationRecord = { ...pending, state: "active" }
    return new Map(all).set(replicaSet, generations.map((record) => record === pending ? active : record))
  })
})

const departed = Effect.fnUntraced(function*(
  world: MemoryWorld,
  { replicaSet }: Worker.Registration,
  members: ReadonlyArray<Generation.Member>
) {
  const workers = yield* TxRef.get(world.workers)
  const incarnations = members.flatMap(({ workerId }) => {
    const worker = workers.get(workerKey({ replicaSet, workerId }))
    return worker?.stoppedAt !== undefined && worker.evictedBy === undefined ? [worker.incarnation] : []
  })
  return new Set(incarnations)
})

const wakeUps = (world: MemoryWorld, registration: Worker.Registration) =>
  Effect.map(
    Effect.acquireRelease(
      Effect.map(Queue.sliding<void>(1), (queue) => {
        const listener: Listener = { registration, queue }
        world.listeners.add(listener)
        return listener
      }),
      (listener) => {
        world.listeners.delete(listener)
        world.watched.delete(registration.incarnation)
        return Queue.shutdown(listener.queue)
      }
    ),
    (listener): Queue.Dequeue<void> => listener.queue
  )

const watch = (world: MemoryWorld, registration: Worker.Registration, generation: Generation.Generation) =>
  Effect.suspend(() => {
    const neighbour = Generation.neighbour(generation, registration)
    if (neighbour === undefined) {
      world.watched.delete(registration.incarnation)
      return Effect.void
    }
    world.watched.set(registration.incarnation, neighbour)
    const worker = world.workers.value.get(
      workerKey({ replicaSet: registration.replicaSet, workerId: neighbour.workerId })
    )
    const isPresent = worker?.incarnation === neighbour.incarnation && worker.absentSince === undefined
    return isPresent
      ? Effect.void
      : wake(world, (listener) => listener.registration.incarnation === registration.incarnation)
  })
