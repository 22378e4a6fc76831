/**
 * Membership in memory. A worker's presence lasts until the scope of its `join` closes or the session of its process
 * ends.
 *
 * @since 0.1.0
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
import { changeWorker, endPresence, viewOf, wakeOthers, workerKey } from "./MemoryWorld.ts"

/** How often a joining worker checks the earlier registration under its id. */
const earlierPollMillis = 100

/** Records a generation as active once all its members are recorded as running in it. For operators to read. */
const activate = Effect.fnUntraced(function*(world: MemoryWorld, generation: Generation.Generation) {
  const workers = yield* TxRef.get(world.workers)
  const isRunning = (member: Generation.Member): boolean => {
    const worker = workers.get(workerKey({ replicaSet: generation.replicaSet, workerId: member.workerId }))
    return worker !== undefined && worker.incarnation === member.incarnation && worker.state === "running" &&
      worker.generationId === generation.generationId
  }
  if (!generation.members.every(isRunning)) return
  yield* TxRef.update(world.generations, (generations) =>
    new Map(generations).set(
      generation.replicaSet,
      (generations.get(generation.replicaSet) ?? []).map((record): GenerationRecord =>
        record.generationId === generation.generationId && record.state === "pending"
          ? { ...record, state: "active" }
          : record
      )
    ))
})

/**
 * Membership for the process of `handle`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (handle: Handle): Membership["Service"] => {
  const { reach, world } = handle

  /**
   * Returns the new registration, or the earlier one, with the milliseconds until it can be replaced. `seen` is
   * the earlier registration when the wait began: if it has sent a heartbeat since then, the id is in use.
   */
  const register = Effect.fnUntraced(function*(
    options: JoinOptions,
    seen: WorkerRecord | undefined
  ): Effect.fn.Return<
    { readonly registered: Worker.Registration; readonly earlier?: never } | {
      readonly registered?: never
      readonly earlier: WorkerRecord
      readonly replaceableInMillis: number
    },
    WorkerIdInUse
  > {
    const now = yield* world.now
    const workers = yield* TxRef.get(world.workers)
    const key = workerKey(options)
    const other = workers.get(key)
    const replaceableInMillis = other === undefined || other.stoppedAt !== undefined
      ? 0
      : Worker.millisUntilReplaceable(viewOf(other, now), options.rules)
    if (other !== undefined && replaceableInMillis > 0) {
      const isInUse = (other.process === handle.process && other.absentSince === undefined) ||
        (seen?.incarnation === other.incarnation && seen.heartbeatAt !== other.heartbeatAt)
      if (!isInUse) return { earlier: other, replaceableInMillis }
      return yield* new WorkerIdInUse({
        replicaSet: options.replicaSet,
        workerId: options.workerId,
        host: "memory",
        pid: other.process,
        since: other.startedAt
      })
    }
    const worker: WorkerRecord = {
      replicaSet: options.replicaSet,
      workerId: options.workerId,
      incarnation: yield* TxRef.modify(world.lastIncarnation, (last) => [last + 1n, last + 1n]),
      startedAt: new Date(now),
      projections: [...options.projections],
      state: "pending",
      generationId: undefined,
      partitionKey: -1,
      heartbeatAt: now,
      absentSince: undefined,
      stoppedAt: undefined,
      evictedBy: undefined,
      process: handle.process
    }
    yield* TxRef.set(world.workers, new Map(workers).set(key, worker))
    const { incarnation, projections, replicaSet, startedAt, workerId } = worker
    return { registered: { replicaSet, workerId, incarnation, startedAt, projections } }
  })

  /** Uninterruptible except while it waits, so that a completed registration always reaches the caller. */
  const join = (options: JoinOptions) =>
    Effect.uninterruptibleMask(Effect.fnUntraced(function*(restore) {
      let seen: WorkerRecord | undefined
      while (true) {
        const result = yield* Effect.tx(register(options, seen))
        if (result.registered === undefined) {
          if (seen?.incarnation !== result.earlier.incarnation) seen = result.earlier
          yield* restore(reach(Effect.sleep(Math.min(earlierPollMillis, result.replaceableInMillis))))
          continue
        }
        const { registered } = result
        handle.present.add(registered)
        // Not through `reach`, because the scope also closes after the process was cut off. Presence has then ended
        // already.
        yield* Effect.addFinalizer(() =>
          Effect.suspend(() => handle.present.delete(registered) ? endPresence(world, registered) : Effect.void)
        )
        yield* wakeOthers(world, registered)
        return registered
      }
    }))

  const heartbeat = Effect.fnUntraced(function*(registration: Worker.Registration) {
    const { replicaSet, workerId } = registration
    const now = yield* world.now
    const before = yield* changeWorker(
      world,
      registration,
      (worker) => worker.stoppedAt === undefined ? { ...worker, heartbeatAt: now } : worker
    )
    if (before === undefined) {
      // After the server has lost its last commits, an earlier registration may be recorded, or none. In both cases no
      // other process has taken the id.
      const row = (yield* TxRef.get(world.workers)).get(workerKey(registration))
      return yield* row !== undefined && row.incarnation > registration.incarnation
        ? new WorkerReplaced({ replicaSet, workerId })
        : new WorkerEvicted({ replicaSet, workerId, reason: "missing" })
    }
    if (before.stoppedAt !== undefined) return yield* new WorkerEvicted({ replicaSet, workerId, reason: "evicted" })
  })

  const report = Effect.fnUntraced(function*(
    registration: Worker.Registration,
    at: { readonly state: Worker.WorkerState; readonly generation: Generation.Generation | undefined }
  ) {
    const before = yield* changeWorker(world, registration, (worker) =>
      worker.stoppedAt === undefined
        ? {
          ...worker,
          state: at.state,
          generationId: at.generation?.generationId,
          partitionKey: at.generation === undefined ? -1 : Generation.partitionKey(at.generation, registration)
        }
        : worker)
    if (before?.stoppedAt === undefined && at.generation !== undefined) yield* activate(world, at.generation)
  })

  const departed: Membership["Service"]["departed"] = Effect.fnUntraced(function*({ replicaSet }, members) {
    const workers = yield* TxRef.get(world.workers)
    const incarnations = members.flatMap(({ workerId }) => {
      const worker = workers.get(workerKey({ replicaSet, workerId }))
      return worker?.stoppedAt !== undefined && worker.evictedBy === undefined ? [worker.incarnation] : []
    })
    return new Set(incarnations)
  })

  const wakeUps = (registration: Worker.Registration) =>
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

  const watch = (registration: Worker.Registration, generation: Generation.Generation) =>
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
      if (isPresent) return Effect.void
      return Effect.forEach(
        [...world.listeners].filter((listener) => listener.registration.incarnation === registration.incarnation),
        ({ queue }) => Queue.offer(queue, undefined),
        { discard: true }
      )
    })

  return Membership.of({
    join: (options) => reach(join(options)),
    heartbeat: (registration) => reach(heartbeat(registration)),
    report: (registration, at) => reach(Effect.tx(report(registration, at))),
    departed: (registration, members) => reach(Effect.tx(departed(registration, members))),
    wakeUps: (registration) => reach(wakeUps(registration)),
    watch: (registration, generation) => reach(watch(registration, generation))
  })
}
