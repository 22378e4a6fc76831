/**
 * The coordination store in memory. Each decision is one transaction; of two concurrent decisions that change something,
 * one runs again.
 *
 * Rows are not locked. If a decision claims a row while a batch of that row is in flight, the batch finds its fence
 * changed when it commits, and is rolled back. Every candidate is therefore available at once.
 */
import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import * as Checkpoint from "../../schema/Checkpoint.ts"
import * as HashRange from "../../schema/HashRange.ts"
import * as Plan from "../../schema/Plan.ts"
import type { RowAge } from "../../schema/Succession.ts"
import { CoordinationStore } from "../../services/CoordinationStore.ts"
import type { GenerationRecord, Handle, MemoryWorld, RowRecord, WorkerRecord } from "./MemoryWorld.ts"
import { changeWorker, toCheckpoint, viewOf, wakeOthers, workerKey } from "./MemoryWorld.ts"

/** How many generations are kept for people to read. */
const keptGenerations = 100

/** The coordination store for the process of `handle`. */
export const make = (handle: Handle): CoordinationStore =>
  CoordinationStore.of({
    preview: (request) => handle.reach(Effect.tx(plan(handle, request))),
    // Uninterruptible, so that the other workers are woken after every decision that has committed.
    apply: (request, previewed) => handle.reach(Effect.uninterruptible(apply(handle, request, previewed)))
  })

const apply = Effect.fnUntraced(function*(handle: Handle, request: Plan.Request, previewed: Plan.Plan | undefined) {
  const isOwn = previewed !== undefined && Plan.changesOwnRowsOnly(previewed, request)
  const written = isOwn ? yield* Effect.tx(writeOwn(handle, request, previewed)) : undefined
  const { isChanged, plan } = written ?? (yield* Effect.tx(decide(handle, request)))
  if (isChanged) yield* wakeOthers(handle.world, request.registration, Plan.concerned(plan, request))
  return plan
})

/** Writes a plan that changes only rows of this worker. Returns undefined if one of them has changed. */
const writeOwn = Effect.fnUntraced(function*({ world }: Handle, request: Plan.Request, plan: Plan.Plan) {
  for (const row of plan.replaced) {
    const ref = world.rows.get(Checkpoint.key(row))
    const now = ref === undefined ? undefined : yield* TxRef.get(ref)
    const isSame = now !== undefined && HashRange.equals(now.range, row.range) && now.position === row.position &&
      now.replicaSet === row.replicaSet && Checkpoint.isSameFence(now.fence, row.fence) && now.filter === row.filter &&
      now.halt === row.halt
    if (!isSame) return undefined
  }
  yield* write(world, request, plan)
  return { plan: yield* withParked(world, plan), isChanged: true }
})

/** One decision, in a transaction. */
const decide = Effect.fnUntraced(function*(handle: Handle, request: Plan.Request) {
  const { world } = handle
  const count = yield* TxRef.get(world.decisions)
  const made = yield* plan(handle, request)
  const isChanged = request.leaving || !Plan.isEmpty(made)
  if (!isChanged) return { plan: made, isChanged }
  yield* write(world, request, made)
  yield* TxRef.set(world.decisions, count + 1)
  return { plan: yield* withParked(world, made), isChanged }
})

/** The plan after its rows were written: those of them that are without parked events are known as well. */
const withParked = Effect.fnUntraced(function*(world: MemoryWorld, plan: Plan.Plan) {
  const written = yield* keysWithoutParked(world, Plan.written(plan))
  return { ...plan, withoutParked: new Set([...plan.withoutParked, ...written]) }
})

/** The keys of the rows whose ranges have no parked events. */
const keysWithoutParked = Effect.fnUntraced(function*(world: MemoryWorld, rows: ReadonlyArray<Checkpoint.Checkpoint>) {
  const keys = new Set<string>()
  for (const row of rows) {
    const ref = world.parked.get(row.projection)
    const parked = ref === undefined ? [] : yield* TxRef.get(ref)
    if (!parked.some(({ keyHash }) => HashRange.includes(row.range, keyHash))) keys.add(Checkpoint.key(row))
  }
  return keys
})

const plan = (handle: Handle, request: Plan.Request) =>
  Effect.flatMap(read(handle, request), (view) => Effect.fromResult(Plan.make(view, request)))

const read = Effect.fnUntraced(function*({ openedAt, world }: Handle, request: Plan.Request) {
  const { replicaSet } = request.registration
  const names = new Set(request.projections.map(({ name }) => name))
  const now = yield* world.now
  const records = yield* TxRef.get(world.workers)
  const workers = [...records.values()]
    .filter(({ stoppedAt }) => stoppedAt === undefined)
    .map((worker) => ({ ...viewOf(worker, now), replicaSet: worker.replicaSet }))
  const newest = (yield* TxRef.get(world.generations)).get(replicaSet)?.at(-1)
  const rows: Array<Checkpoint.Checkpoint> = []
  const rowAges = new Map<string, RowAge>()
  for (const ref of world.rows.values()) {
    // A row never changes its projection, so rows of other projections can be left out of the transaction.
    if (ref.value !== undefined && !names.has(ref.value.projection)) continue
    const row = yield* TxRef.get(ref)
    if (row === undefined || !names.has(row.projection)) continue
    rows.push(toCheckpoint(row))
    rowAges.set(Checkpoint.key(row), ageOf(row, records, now))
  }
  return {
    replicaSet,
    workers: workers.filter((worker) => worker.replicaSet === replicaSet),
    foreignWorkers: workers.filter((worker) => worker.replicaSet !== replicaSet),
    generation: newest === undefined ? undefined : {
      replicaSet,
      generationId: newest.generationId,
      members: newest.members
    },
    rows: rows.sort((a, b) => a.range.start - b.range.start),
    rowAges,
    withoutParked: yield* keysWithoutParked(
      world,
      rows.filter((row) => Checkpoint.isHeldBy(row, request.registration))
    ),
    lockedKeys: new Set<string>(),
    observerAgeMillis: now - openedAt
  } satisfies Plan.View
})

const ageOf = (
  { changedAt = 0, fence, replicaSet }: RowRecord,
  workers: ReadonlyMap<string, WorkerRecord>,
  now: number
): RowAge => {
  const owner = fence === undefined ? undefined : workers.get(workerKey({ replicaSet, workerId: fence.workerId }))
  return {
    unchangedForMillis: now - changedAt,
    ownerSilentForMillis: owner?.incarnation === fence?.incarnation && owner !== undefined
      ? now - owner.heartbeatAt
      : undefined
  }
}

const write = Effect.fnUntraced(function*(
  world: MemoryWorld,
  { leaving, registration }: Plan.Request,
  plan: Plan.Plan
) {
  const { carry, create, evict, form, remove } = plan
  const { replicaSet, workerId } = registration
  const now = yield* world.now
  for (const dead of evict) yield* stopWorker(world, { ...dead, replicaSet }, now, workerId)
  if (leaving) yield* stopWorker(world, registration, now, undefined)
  if (carry !== undefined) {
    yield* changeWorker(world, registration, (worker) => ({ ...worker, projections: carry }))
  }
  if (form !== undefined) {
    yield* TxRef.update(world.generations, (generations) => {
      const older = (generations.get(replicaSet) ?? []).map((record): GenerationRecord => ({
        ...record,
        state: "superseded"
      }))
      const formed: GenerationRecord = { ...form, leaderId: workerId, state: "pending", formedAt: now }
      return new Map(generations).set(replicaSet, [...older, formed].slice(-keptGenerations))
    })
  }
  for (const row of remove) yield* setRow(world, Checkpoint.key(row), undefined)
  for (const row of [...create, ...Plan.written(plan)]) {
    yield* setRow(world, Checkpoint.key(row), { ...row, changedAt: now })
  }
})

const stopWorker = (
  world: MemoryWorld,
  worker: { readonly replicaSet: string; readonly workerId: string; readonly incarnation: bigint },
  now: number,
  evictedBy: string | undefined
) =>
  changeWorker(
    world,
    worker,
    (worker) => worker.stoppedAt === undefined ? { ...worker, state: "stopped", stoppedAt: now, evictedBy } : worker
  )

const setRow = (world: MemoryWorld, key: string, row: RowRecord | undefined) =>
  Effect.suspend(() => {
    let ref = world.rows.get(key)
    if (ref === undefined) {
      ref = TxRef.makeUnsafe<RowRecord | undefined>(undefined)
      world.rows.set(key, ref)
    }
    return TxRef.set(ref, row)
  })
