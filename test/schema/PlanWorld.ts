/**
 * A model of workers, rows and generations in which decisions are made one after another, as under the stores' lock.
 * Every applied decision is checked against the rules for decisions.
 */
import { assert } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import * as Generation from "../../src/schema/Generation.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as Plan from "../../src/schema/Plan.ts"
import * as Worker from "../../src/schema/Worker.ts"

export const rules: Worker.LivenessRules = {
  staleWorkerTimeoutMillis: 30_000,
  heartbeatIntervalMillis: 5_000,
  presenceGraceMillis: 100
}

export const projectionNames = ["orders", "users", "stock"] as const

export interface WorldWorker {
  readonly registration: Worker.Registration
  carried: ReadonlyArray<Plan.Carried>
  /** The projections recorded in the worker's row. */
  registered: ReadonlyArray<string>
  /** Keys of the rows that have a runner. */
  readonly activeKeys: Set<string>
  silentForMillis: number
  absentForMillis: number | undefined
  /** Makes no further decision or progress; the other workers may not have detected it yet. */
  dead: boolean
}

export interface World {
  /** Workers that have not stopped, of all replica sets. */
  workers: Array<WorldWorker>
  rows: Map<string, Checkpoint.Checkpoint>
  readonly generations: Map<string, Generation.Generation>
  /** Keys of rows locked by an open transaction. */
  readonly locked: Set<string>
  /** The fences under which rows were owned that have another owner now; see `fenceKey`. */
  readonly lost: Set<string>
  now: number
  incarnations: bigint
  /** The largest number of workers of one replica set that were registered at the same time. */
  crowd: number
}

export const make = (): World => ({
  workers: [],
  rows: new Map(),
  generations: new Map(),
  locked: new Set(),
  lost: new Set(),
  now: 1_000,
  incarnations: 0n,
  crowd: 0
})

export const rowsOf = (world: World, projection: string): ReadonlyArray<Checkpoint.Checkpoint> =>
  [...world.rows.values()].filter((row) => row.projection === projection).sort((a, b) => a.range.start - b.range.start)

export const rowAt = (rows: ReadonlyArray<Checkpoint.Checkpoint>, hash: number): Checkpoint.Checkpoint => {
  const found = rows.filter((row) => HashRange.includes(row.range, hash))
  assert.strictEqual(found.length, 1, `${found.length} rows cover hash ${hash}`)
  return found[0]!
}

export const heldBy = (world: World, worker: WorldWorker): ReadonlyArray<Checkpoint.Held> =>
  [...world.rows.values()].filter((row): row is Checkpoint.Held => Checkpoint.isHeldBy(row, worker.registration))

export const join = (
  world: World,
  options: {
    readonly workerId: string
    readonly projections: ReadonlyArray<string>
    readonly replicaSet?: string
    readonly filter?: string
    readonly replacesFilter?: ReadonlyArray<string>
    readonly startPosition?: bigint
    readonly concurrency?: number
    /** The projections that this worker orders globally. */
    readonly global?: ReadonlyArray<string>
  }
): WorldWorker => {
  const replicaSet = options.replicaSet ?? "main"
  world.workers = world.workers.filter(({ registration }) =>
    registration.replicaSet !== replicaSet || registration.workerId !== options.workerId
  )
  const worker: WorldWorker = {
    registration: {
      replicaSet,
      workerId: options.workerId,
      incarnation: ++world.incarnations,
      startedAt: new Date(world.now),
      projections: options.projections
    },
    carried: options.projections.map((name) => ({
      name,
      filter: options.filter ?? "all",
      startPosition: options.startPosition ?? 0n,
      replacesFilter: options.replacesFilter,
      ...(options.global?.includes(name) === true
        ? { ordering: "global" }
        : { concurrency: options.concurrency ?? 1 })
    })),
    registered: options.projections,
    activeKeys: new Set(),
    silentForMillis: 0,
    absentForMillis: undefined,
    dead: false
  }
  world.workers.push(worker)
  world.crowd = Math.max(
    world.crowd,
    world.workers.filter(({ registration }) => registration.replicaSet === replicaSet).length
  )
  return worker
}

const viewOfWorker = (worker: WorldWorker): Worker.WorkerView => ({
  workerId: worker.registration.workerId,
  incarnation: worker.registration.incarnation,
  startedAt: worker.registration.startedAt,
  projections: worker.registered,
  silentForMillis: worker.silentForMillis,
  absentForMillis: worker.absentForMillis
})

export const oldObserver = 2 * rules.heartbeatIntervalMillis

export const viewFor = (world: World, worker: WorldWorker, observerAgeMillis = oldObserver): Plan.View => {
  const { replicaSet } = worker.registration
  return {
    replicaSet,
    workers: world.workers.filter((other) => other.registration.replicaSet === replicaSet).map(viewOfWorker),
    generation: world.generations.get(replicaSet),
    // The newest first: the order of rows must not matter.
    rows: [...world.rows.values()].filter((row) => worker.registration.projections.includes(row.projection)).reverse(),
    rowAges: new Map(),
    withoutParked: new Set(),
    lockedKeys: world.locked,
    observerAgeMillis,
    foreignWorkers: world.workers
      .filter((other) => other.registration.replicaSet !== replicaSet)
      .map((other) => ({ ...viewOfWorker(other), replicaSet: other.registration.replicaSet }))
  }
}

export const requestOf = (worker: WorldWorker, leaving = false): Plan.Request => ({
  registration: worker.registration,
  projections: worker.carried,
  activeKeys: worker.activeKeys,
  leaving,
  rules
})

/** The parts of a projection that a generation assigns to the worker. */
export const partsOf = (
  generation: Generation.Generation | undefined,
  projection: string,
  worker: WorldWorker
): ReadonlyArray<HashRange.HashRange> => {
  const carried = worker.carried.find(({ name }) => name === projection)
  return generation === undefined || carried === undefined
    ? []
    : Generation.parts(generation, carried, worker.registration)
}

const isIn = (parts: ReadonlyArray<HashRange.HashRange>, range: HashRange.HashRange): boolean =>
  parts.some((part) => HashRange.contains(part, range))

/** Closes the active rows that do not lie entirely within one part of its share, as a worker does before it decides. */
export const closeUnassigned = (world: World, worker: WorldWorker): void => {
  const view = { ...viewFor(world, worker), lockedKeys: new Set<string>() }
  const plan = Plan.make(view, requestOf(worker))
  const generation = Result.isSuccess(plan) ? plan.success.generation : view.generation
  for (const row of heldBy(world, worker)) {
    if (!isIn(partsOf(generation, row.projection, worker), row.range)) worker.activeKeys.delete(Checkpoint.key(row))
  }
}

export const workOnAll = (world: World, worker: WorldWorker): void => {
  for (const row of heldBy(world, worker)) {
    if (row.halt === undefined) worker.activeKeys.add(Checkpoint.key(row))
  }
}

interface Options {
  readonly leaving?: boolean
  readonly observerAgeMillis?: number
}

/** Decides and returns the plan, which must exist. */
export const decide = (world: World, worker: WorldWorker, options?: Options): Plan.Plan => {
  const result = attempt(world, worker, options)
  return Result.isSuccess(result) ? result.success : assert.fail(result.failure.message)
}

/** Decides and returns why there is no plan. */
export const errorOf = (world: World, worker: WorldWorker, options?: Options): Plan.PlanError => {
  const result = attempt(world, worker, options)
  return Result.isFailure(result) ? result.failure : assert.fail("There is a plan.")
}

/** Makes a plan, applies it as a store does, and checks its effects. */
export const attempt = (
  world: World,
  worker: WorldWorker,
  options?: Options
): Result.Result<Plan.Plan, Plan.PlanError> => {
  const leaving = options?.leaving ?? false
  const request = requestOf(worker, leaving)
  const view = viewFor(world, worker, options?.observerAgeMillis)
  const result = Plan.make(view, request)
  const candidates = new Set(Plan.candidates(view, request).map(Checkpoint.key))
  const lockedKeys = new Set([...world.locked].filter((key) => candidates.has(key)))
  assert.deepStrictEqual(Plan.make({ ...view, lockedKeys }, request), result, "depends on locks of other rows")
  if (Result.isSuccess(result)) {
    const before = new Map(world.rows)
    const plan = result.success
    apply(world, worker, plan)
    check(world, { before, candidates, leaving, plan, view, worker })
  }
  if (leaving) {
    world.workers = world.workers.filter((other) => other !== worker)
  } else if (Result.isSuccess(result)) {
    const again = Result.getOrThrow(Plan.make(viewFor(world, worker, options?.observerAgeMillis), request))
    assert.isTrue(Plan.isEmpty(again), "a decision of the same worker must not be followed by further changes")
    assert.deepStrictEqual(sorted(again.ownedRows), sorted(result.success.ownedRows))
    assert.strictEqual(again.isComplete, result.success.isComplete)
  }
  return result
}

const apply = (world: World, worker: WorldWorker, plan: Plan.Plan): void => {
  const stopped = new Set(plan.evict.map(({ incarnation }) => incarnation))
  world.workers = world.workers.filter(({ registration }) => !stopped.has(registration.incarnation))
  if (plan.carry !== undefined) worker.registered = plan.carry
  if (plan.form !== undefined) world.generations.set(worker.registration.replicaSet, plan.form)
  for (const row of plan.create) {
    assert.lengthOf(rowsOf(world, row.projection), 0, "created beside other rows")
    world.rows.set(Checkpoint.key(row), row)
  }
  for (const row of plan.remove) {
    assert.isTrue(world.rows.delete(Checkpoint.key(row)), "removed a missing row")
  }
  for (const row of Plan.written(plan)) world.rows.set(Checkpoint.key(row), row)
}

const sorted = (rows: ReadonlyArray<Checkpoint.Checkpoint>): ReadonlyArray<Checkpoint.Checkpoint> =>
  [...rows].sort((a, b) => Checkpoint.key(a) < Checkpoint.key(b) ? -1 : 1)

/** The hashes at the borders of all ranges, before and after, and at halts: at least one in each piece. */
const samples = (...sides: ReadonlyArray<ReadonlyArray<Checkpoint.Checkpoint>>): ReadonlyArray<number> => [
  ...new Set(
    sides.flat().flatMap(({ halt, range }) => [
      range.start,
      range.end - 1,
      ...(halt === undefined ? [] : [halt.hash])
    ])
  )
]

const isHeld = (row: Checkpoint.Checkpoint): row is Checkpoint.Held => row.fence !== undefined

/** What a write of progress compares, besides the position. */
const fenceKey = ({ fence, projection, range }: Checkpoint.Held): string =>
  [projection, range.start, range.end, fence.workerId, fence.incarnation, fence.generationId].join()

const check = (
  world: World,
  { before, candidates, leaving, plan, view, worker }: {
    readonly before: ReadonlyMap<string, Checkpoint.Checkpoint>
    /** Keys of the rows that the plan may change. */
    readonly candidates: ReadonlySet<string>
    readonly plan: Plan.Plan
    readonly leaving: boolean
    readonly view: Plan.View
    readonly worker: WorldWorker
  }
): void => {
  const self = worker.registration
  const isFree = (row: Checkpoint.Checkpoint) =>
    candidates.has(Checkpoint.key(row)) && !world.locked.has(Checkpoint.key(row))
  const isMine = (row: Checkpoint.Checkpoint) => Checkpoint.isHeldBy(row, self)
  const living = view.workers.filter((other) =>
    other.incarnation === self.incarnation ? !leaving : Worker.isAlive(other, view.observerAgeMillis, rules)
  )
  const othersRow = (row: Checkpoint.Checkpoint) =>
    !isMine(row) && living.some((other) => Checkpoint.isHeldBy(row, other))
  for (const row of Plan.candidates(view, requestOf(worker, leaving))) {
    assert.isFalse(othersRow(row) || (isMine(row) && worker.activeKeys.has(Checkpoint.key(row))), "no candidate")
  }
  const isCarriedThere = (row: Checkpoint.Checkpoint) =>
    view.foreignWorkers.some((other) =>
      other.replicaSet === row.replicaSet &&
      (other.projections.includes(row.projection) || Checkpoint.isHeldBy(row, other)) &&
      Worker.isAlive(other, view.observerAgeMillis, rules)
    )
  const unclaimable = new Set(
    [...before.values()]
      .filter((row) => row.replicaSet !== self.replicaSet && (!isFree(row) || isCarriedThere(row)))
      .map((row) => row.projection)
  )
  const ownsSome = (name: string) => partsOf(plan.generation, name, worker).length > 0 && !leaving
  const isKept = (row: Checkpoint.Checkpoint) =>
    (row.replicaSet !== self.replicaSet && (unclaimable.has(row.projection) || !ownsSome(row.projection))) ||
    othersRow(row) || (isMine(row) && worker.activeKeys.has(Checkpoint.key(row))) || !isFree(row)
  // Rows of a projection that the worker orders globally are claimed or handed over all together.
  const isGlobal = (name: string) => worker.carried.some((one) => one.name === name && one.ordering === "global")
  const heldBack = new Set(self.projections.filter((name) => {
    const rows = [...before.values()].filter((row) => row.projection === name)
    return isGlobal(name) && rows.length > 1 && rows.some(isKept)
  }))
  const untouchable = (row: Checkpoint.Checkpoint) =>
    isKept(row) || (heldBack.has(row.projection) && (ownsSome(row.projection) || !isMine(row)))

  for (const [key, row] of before) {
    if (!self.projections.includes(row.projection)) {
      assert.deepStrictEqual(world.rows.get(key), row, `${key}: the worker does not carry it`)
    } else if (untouchable(row)) {
      assert.deepStrictEqual(world.rows.get(key), row, `${key}: the worker must not change it`)
    }
  }

  for (const other of plan.evict) assert.isFalse(living.includes(other), "evicted a live worker")
  assert.lengthOf(plan.evict, view.workers.filter((other) => !living.includes(other)).length - (leaving ? 1 : 0))
  // The projections as registered after the decision.
  const members = living.map((other) => ({
    ...other,
    projections: other.incarnation === self.incarnation ? worker.registered : other.projections
  }))
  const isGivenUp = (name: string) => worker.carried.some((one) => one.name === name && one.givenUp === true)
  assert.deepStrictEqual(
    worker.registered,
    leaving ? worker.registered : self.projections.filter((name) => !isGivenUp(name))
  )
  if (plan.form !== undefined) {
    assert.strictEqual(plan.form.generationId, (view.generation?.generationId ?? 0n) + 1n)
    const isRegained = plan.replaced.some((row) => row.replicaSet !== self.replicaSet)
    assert.isTrue(isRegained || view.generation === undefined || !Generation.isCurrent(view.generation, members))
  }
  if (living.length > 0) assert.isTrue(Generation.isCurrent(plan.generation!, members))
  assert.deepStrictEqual(world.generations.get(self.replicaSet), plan.generation)
  if (leaving && plan.form !== undefined) assert.strictEqual(Generation.partitionKey(plan.form, self), -1)

  for (const row of plan.release) assert.isUndefined(row.fence)
  for (const row of [...plan.claim, ...plan.renew]) assert.isTrue(isMine(row))
  for (const row of plan.handOver) {
    assert.isTrue(living.some((other) => Checkpoint.isHeldBy(row, other)) && !isMine(row), "handed to no live worker")
  }
  const ownerAt = (name: string, hash: number) => {
    const carried = worker.carried.find((one) => one.name === name)!
    return living.find((member) =>
      !(carried.givenUp === true && member.incarnation === self.incarnation) && plan.generation !== undefined &&
      Generation.parts(plan.generation, carried, member).some((part) => HashRange.includes(part, hash))
    )
  }
  for (const name of self.projections) {
    const old = [...before.values()].filter((row) => row.projection === name)
    const rows = rowsOf(world, name)
    if (rows.length === 0) {
      assert.isTrue(leaving || isGivenUp(name))
      continue
    }
    assert.isTrue(HashRange.tiles(rows.map(({ range }) => range)), `${name} does not tile`)
    assert.strictEqual(new Set(rows.map(({ replicaSet }) => replicaSet)).size, 1, `two replica sets have ${name}`)
    const parts = leaving ? [] : partsOf(plan.generation, name, worker)
    const share = HashRange.span(parts)
    if (!isGlobal(name)) assert.strictEqual(share !== undefined, !leaving && !isGivenUp(name))
    if (share !== undefined && isGlobal(name) && rows.some(isMine)) assert.lengthOf(rows, 1, `${name} is divided`)
    for (const row of rows) {
      if (row.halt !== undefined) assert.isTrue(HashRange.includes(row.range, row.halt.hash), "a halt outside its row")
      const was = before.get(Checkpoint.key(row))
      if (!isHeld(row) || was === row) continue
      assert.isFalse(world.lost.has(fenceKey(row)), "a fence that its owner has lost before is valid again")
      if (was !== undefined && Checkpoint.hasSameOwner(was, row)) {
        assert.notDeepEqual({ ...row, fence: was.fence }, was, "an unchanged row was written again")
      }
      assert.strictEqual(row.fence.generationId, plan.generation!.generationId, "an old fence on a new row")
      const owner = plan.generation!.members.find((member) => Checkpoint.isHeldBy(row, member))!
      const ownParts = Generation.parts(plan.generation!, worker.carried.find((one) => one.name === name)!, owner)
      assert.isTrue(isIn(ownParts, row.range), "the changed row does not lie in one part of its owner's share")
      assert.strictEqual(row.replicaSet, self.replicaSet)
    }
    for (const hash of samples(old, rows)) {
      const now = rowAt(rows, hash)
      if (old.length === 0) {
        assert.strictEqual(now.position, worker.carried.find((one) => one.name === name)!.startPosition)
        continue
      }
      const was = rowAt(old, hash)
      assert.strictEqual(now.position, was.position, `${name}: position at ${hash}`)
      const inShare = share !== undefined && HashRange.includes(share, hash)
      const isAmong = (rows: ReadonlyArray<Checkpoint.Checkpoint>) =>
        rows.some((row) => row.projection === name && HashRange.includes(row.range, hash))
      if (isMine(now) && !isMine(was)) {
        assert.isTrue(inShare, "claimed a hash outside its share")
        assert.isTrue(isAmong(plan.claim), "claimed without a claim")
      }
      if (!isMine(now) && isMine(was)) {
        assert.isTrue(isAmong(plan.release) || isAmong(plan.handOver), "given away without a hand-over or a release")
      }
      if (isAmong(plan.renew)) assert.isTrue(isMine(was), "renewed what it did not own")
      if (!untouchable(was)) {
        assert.strictEqual(isMine(now), inShare, `${name}: ${hash} ${inShare ? "not claimed" : "not released"}`)
        const owner = heldBack.has(name) ? undefined : ownerAt(name, hash)
        assert.strictEqual(now.fence?.incarnation, owner?.incarnation, `${name}: owner at ${hash}`)
        if (inShare) assert.strictEqual(now.filter, worker.carried.find((one) => one.name === name)!.filter)
        if (inShare) assert.strictEqual(now.replicaSet, self.replicaSet, "not moved to this replica set")
      }
      if (!inShare) assert.strictEqual(now.filter, was.filter)
      if (now.filter !== was.filter) {
        const { replacesFilter } = worker.carried.find((one) => one.name === name)!
        assert.include(replacesFilter ?? [], was.filter, "continues progress of a filter that it does not replace")
      }
      if (was.halt?.hash === hash) {
        if (now.halt === undefined) {
          assert.isTrue(now.fence !== undefined && now.fence.incarnation > was.halt.incarnation, "a halt vanished")
        } else assert.deepStrictEqual(now.halt, was.halt)
      } else if (now.halt?.hash === hash) {
        assert.fail("a halt appeared")
      }
    }
    if (leaving) {
      for (const row of rows) if (isMine(row)) assert.isTrue(untouchable(row))
    }
  }

  for (const row of plan.replaced) {
    const now = world.rows.get(Checkpoint.key(row))
    if (isHeld(row) && (now === undefined || !Checkpoint.hasSameOwner(row, now))) world.lost.add(fenceKey(row))
  }

  const owned = heldBy(world, worker)
  assert.deepStrictEqual(sorted(plan.ownedRows), sorted(owned))
  const isComplete = !leaving && self.projections.every((name) => {
    const ranges = owned.filter((row) => row.projection === name).map(({ range }) => range)
    const parts = partsOf(plan.generation, name, worker)
    const share = HashRange.span(parts)
    return share === undefined
      ? ranges.length === 0
      : HashRange.tiles(ranges, share) && ranges.every((range) => isIn(parts, range))
  })
  assert.strictEqual(plan.isComplete, isComplete)
  const waits = [...before.values()].some((row) => {
    if (!self.projections.includes(row.projection) || isFree(row) || othersRow(row)) return false
    if (isMine(row)) return !worker.activeKeys.has(Checkpoint.key(row))
    const share = leaving ? undefined : Generation.share(plan.generation!, row.projection, self)
    return share !== undefined && HashRange.overlaps(row.range, share)
  })
  if (waits) assert.isDefined(plan.recheckAfterMillis, "waits for a lock without a recheck")
}

/**
 * Lets each worker in turn close the rows outside its share and decide, until a whole round changes nothing. Returns
 * the number of rounds that changed something.
 */
export const converge = (
  world: World,
  options: { readonly idle: boolean; readonly order: (round: number) => ReadonlyArray<WorldWorker> }
): number => {
  for (let round = 0; round <= 4; round++) {
    let changed = false
    for (const worker of options.order(round)) {
      if (options.idle) worker.activeKeys.clear()
      else closeUnassigned(world, worker)
      if (!Plan.isEmpty(decide(world, worker))) changed = true
      if (!options.idle) workOnAll(world, worker)
    }
    if (!changed) return round
  }
  return assert.fail("no fixed point")
}
