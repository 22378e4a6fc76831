/**
 * Decisions in memory. Each decision is one transaction; of two concurrent decisions that change something, one runs
 * again.
 *
 * Rows are not locked. If a decision claims a row while a batch of that row is in flight, the batch finds its fence
 * changed when it commits, and is rolled back. Every candidate is therefore available at once.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import type { Checkpoint } from "../../schema/Checkpoint.ts"
import * as CheckpointRow from "../../schema/Checkpoint.ts"
import * as Plan from "../../schema/Plan.ts"
import { CoordinationStore } from "../../services/CoordinationStore.ts"
import type { GenerationRecord, Handle, MemoryWorld } from "./MemoryWorld.ts"
import { changeWorker, viewOf, wakeOthers } from "./MemoryWorld.ts"

const generationsKept = 100

const setRow = Effect.fnUntraced(function*(world: MemoryWorld, key: string, row: Checkpoint | undefined) {
  let ref = world.rows.get(key)
  if (ref === undefined) {
    ref = TxRef.makeUnsafe<Checkpoint | undefined>(undefined)
    world.rows.set(key, ref)
  }
  yield* TxRef.set(ref, row)
})

/**
 * The decisions of the process of `handle`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (handle: Handle): CoordinationStore["Service"] => {
  const { reach, world } = handle

  const view = Effect.fnUntraced(function*(request: Plan.Request) {
    const { replicaSet } = request.registration
    const names = new Set(request.projections.map(({ name }) => name))
    const now = yield* world.now
    const observerAgeMillis = now - handle.openedAt
    const standing = [...(yield* TxRef.get(world.workers)).values()].filter((worker) => worker.stoppedAt === undefined)
    const generations = (yield* TxRef.get(world.generations)).get(replicaSet)
    const rows: Array<Checkpoint> = []
    for (const ref of world.rows.values()) {
      // A row never changes its projection, so rows of other projections can be left out of the transaction.
      if (ref.value !== undefined && !names.has(ref.value.projection)) continue
      const row = yield* TxRef.get(ref)
      if (row !== undefined && names.has(row.projection)) rows.push(row)
    }
    const newest = generations?.[generations.length - 1]
    return {
      replicaSet,
      workers: standing.filter((worker) => worker.replicaSet === replicaSet).map((worker) => viewOf(worker, now)),
      generation: newest === undefined ? undefined : {
        replicaSet: newest.replicaSet,
        generationId: newest.generationId,
        members: newest.members
      },
      rows: rows.sort((a, b) => a.range.start - b.range.start),
      lockedKeys: new Set(),
      observerAgeMillis,
      foreignCarriers: standing
        .filter((worker) => worker.replicaSet !== replicaSet)
        .map((worker) => ({ ...viewOf(worker, now), replicaSet: worker.replicaSet }))
    } satisfies Plan.View
  })

  const preview = Effect.fnUntraced(function*(request: Plan.Request) {
    return yield* Effect.fromResult(Plan.make(yield* view(request), request))
  })

  const stop = (workerId: string, incarnation: bigint, replicaSet: string, now: number, evictedBy?: string) =>
    changeWorker(
      world,
      { replicaSet, workerId, incarnation },
      (worker) => worker.stoppedAt === undefined ? { ...worker, state: "stopped", stoppedAt: now, evictedBy } : worker
    )

  const write = Effect.fnUntraced(function*(request: Plan.Request, plan: Plan.Plan) {
    const { incarnation, replicaSet, workerId } = request.registration
    const now = yield* world.now
    for (const dead of plan.evict) yield* stop(dead.workerId, dead.incarnation, replicaSet, now, workerId)
    const { carry, form } = plan
    if (carry !== undefined) {
      yield* changeWorker(world, request.registration, (worker) => ({ ...worker, projections: carry }))
    }
    if (form !== undefined) {
      yield* TxRef.update(world.generations, (generations) => {
        const older = (generations.get(replicaSet) ?? []).map((record): GenerationRecord => ({
          ...record,
          state: "superseded"
        }))
        const formed: GenerationRecord = { ...form, leaderId: workerId, state: "pending", formedAt: now }
        return new Map(generations).set(replicaSet, [...older, formed].slice(-generationsKept))
      })
    }
    for (const row of plan.remove) yield* setRow(world, CheckpointRow.key(row), undefined)
    for (const row of plan.create) yield* setRow(world, CheckpointRow.key(row), row)
    for (const row of Plan.written(plan)) yield* setRow(world, CheckpointRow.key(row), row)
    if (request.leaving) yield* stop(workerId, incarnation, replicaSet, now)
  })

  const apply = Effect.fnUntraced(function*(request: Plan.Request) {
    const { changed, plan } = yield* Effect.tx(Effect.gen(function*() {
      const count = yield* TxRef.get(world.decisions)
      const plan = yield* preview(request)
      const changed = request.leaving || !Plan.isEmpty(plan)
      if (changed) {
        yield* write(request, plan)
        yield* TxRef.set(world.decisions, count + 1)
      }
      return { changed, plan }
    }))
    if (changed) yield* wakeOthers(world, request.registration)
    return plan
  })

  return CoordinationStore.of({
    preview: (request) => reach(Effect.tx(preview(request))),
    // Uninterruptible, so that the other workers are woken after every decision that has committed.
    apply: (request) => reach(Effect.uninterruptible(apply(request)))
  })
}
