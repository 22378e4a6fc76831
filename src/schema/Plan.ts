/**
 * Decisions: the changes that a worker has to make, computed from the state of its replica set. Pure: the stores read
 * the view, lock the rows and apply the result in one short transaction.
 *
 * A worker decides only for itself and never changes a range that another live worker holds. It releases ranges that it
 * no longer owns and whose runners have ended, claims the free and orphaned ranges in its own share, and forms the next
 * generation when the members of the newest one are not exactly the live workers. Workers that all follow this rule
 * converge, because the shares of one generation tile the hash space.
 *
 * @since 0.1.0
 */
import * as Checkpoint from "./Checkpoint.ts"
import * as Generation from "./Generation.ts"
import * as HashRange from "./HashRange.ts"
import * as Worker from "./Worker.ts"

/**
 * The state of a replica set from which a decision is computed.
 *
 * @category models
 * @since 0.1.0
 */
export interface View {
  readonly replicaSet: string
  /** Workers that have not stopped, including dead ones. */
  readonly workers: ReadonlyArray<Worker.WorkerView>
  /** The newest generation. */
  readonly generation: Generation.Generation | undefined
  /** Whether the newest generation is recorded as active: all its members have been recorded as running in it. */
  readonly active: boolean
  /** All rows of the deciding worker's projections, regardless of their holder. */
  readonly rows: ReadonlyArray<Checkpoint.Checkpoint>
  /** Milliseconds since the session that reads this view was opened. */
  readonly observerAgeMillis: number
  /**
   * Workers of other replica sets that have not stopped, including dead ones; at least those that carry one of the
   * projections.
   */
  readonly foreignCarriers: ReadonlyArray<Worker.WorkerView & { readonly replicaSet: string }>
}

/**
 * A projection of the deciding worker.
 *
 * @category models
 * @since 0.1.0
 */
export interface Carried {
  readonly name: string
  readonly filter: string
  /** The position at which a projection without progress starts. */
  readonly startPosition: bigint
  /** Whether to continue from the current position if progress was made under another filter. */
  readonly acceptFilterChange: boolean
  /**
   * The worker has given up the projection, because another worker has changed its filter: it claims none of its
   * ranges, releases those that it holds, and no longer carries the projection.
   */
  readonly givenUp?: boolean | undefined
}

/**
 * The worker that decides, and the limits of what its decision may change.
 *
 * @category models
 * @since 0.1.0
 */
export interface Request {
  readonly registration: Worker.Registration
  readonly projections: ReadonlyArray<Carried>
  /**
   * Keys (`Checkpoint.key`) of the worker's rows that one of its runners is processing. A decision does not change
   * them.
   */
  readonly busy: ReadonlySet<string>
  /** The worker is leaving: it claims nothing, releases all rows that are not busy, and does not count as alive. */
  readonly leaving: boolean
  readonly rules: Worker.LivenessRules
}

/**
 * The reason why no decision can be made.
 *
 * @category models
 * @since 0.1.0
 */
export type Obstacle =
  | { readonly _tag: "Evicted" }
  | { readonly _tag: "FilterChanged"; readonly projection: string; readonly recorded: string; readonly given: string }
  | {
    readonly _tag: "ProjectionInOtherReplicaSet"
    readonly projection: string
    readonly otherReplicaSet: string
    readonly workerId: string
  }

/**
 * The changes that a decision makes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Plan {
  readonly obstacle: Obstacle | undefined
  /** Dead workers to mark as stopped. */
  readonly evict: ReadonlyArray<Worker.WorkerView>
  /** The projections to record in the worker's registration; undefined if they do not change. */
  readonly carry: ReadonlyArray<string> | undefined
  /** The generation to insert. */
  readonly form: Generation.Generation | undefined
  /** The rows to insert for projections that have none; each covers the whole hash space. */
  readonly create: ReadonlyArray<Checkpoint.Checkpoint>
  /** Rows to delete, because they were merged into a neighbour. */
  readonly remove: ReadonlyArray<Checkpoint.Checkpoint>
  /** Rows to write with their new content. Parts that were cut off are new rows among them. */
  readonly put: ReadonlyArray<Checkpoint.Checkpoint>
  /** The rows that this worker holds after the decision, including busy ones. */
  readonly held: ReadonlyArray<Checkpoint.Held>
  /** The newest generation after the decision. */
  readonly generation: Generation.Generation | undefined
  /** Whether the worker holds exactly its shares. */
  readonly settled: boolean
  /** The state that is recorded for the worker, for operators to read. */
  readonly recorded: Worker.Recorded | undefined
  /**
   * Whether all members are recorded as running in the newest generation, but the generation is not recorded as active.
   */
  readonly activates: boolean
  /**
   * Milliseconds after which another decision may become possible merely because time has passed: a missing presence or
   * missed heartbeats begin to count, or a row that a batch had locked is free again. Undefined if there is nothing to
   * wait for.
   */
  readonly recheckAfterMillis: number | undefined
}

/**
 * Whether the decision changes nothing. The stop of a leaving worker is not part of the decision and does not count.
 *
 * @category guards
 * @since 0.1.0
 */
export const isEmpty = (decision: Plan): boolean =>
  decision.evict.length === 0 && decision.carry === undefined && decision.form === undefined &&
  decision.create.length === 0 &&
  decision.remove.length === 0 && decision.put.length === 0

const alive = (view: View, request: Request): ReadonlyArray<Worker.WorkerView> =>
  view.workers.filter((worker) =>
    isSelf(worker, request) ? !request.leaving : Worker.isAlive(worker, view.observerAgeMillis, request.rules)
  )

const isSelf = (worker: { readonly workerId: string; readonly incarnation: bigint }, request: Request): boolean =>
  worker.workerId === request.registration.workerId && worker.incarnation === request.registration.incarnation

const isOrphan = (
  row: Checkpoint.Checkpoint,
  living: ReadonlyArray<Worker.WorkerView>,
  request: Request
): boolean =>
  row.fence === undefined ||
  (!isSelf(row.fence, request) && !living.some((worker) => Checkpoint.isHeldBy(row, worker)))

/**
 * The rows that a decision may change, sorted by key. The store locks them before it calls `decide`. It may not get all
 * of them, because a row that a batch has locked is not free yet; such a row must not be in `lockable`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const candidates = (view: View, request: Request): ReadonlyArray<Checkpoint.Checkpoint> => {
  const living = alive(view, request)
  return view.rows
    .filter((row) =>
      (Checkpoint.isHeldBy(row, request.registration) && !request.busy.has(Checkpoint.key(row))) ||
      isOrphan(row, living, request)
    )
    .sort((a, b) =>
      a.projection !== b.projection
        ? a.projection < b.projection ? -1 : 1
        : a.range.start - b.range.start
    )
}

const nothing = (view: View, obstacle: Obstacle | undefined): Plan => ({
  obstacle,
  evict: [],
  carry: undefined,
  form: undefined,
  create: [],
  remove: [],
  put: [],
  held: [],
  generation: view.generation,
  settled: false,
  recorded: undefined,
  activates: false,
  recheckAfterMillis: undefined
})

/** Returns the live workers that carry the row's projection in the replica set of the row, if that is another one. */
const foreignCarriers = (view: View, request: Request, row: Checkpoint.Checkpoint): View["foreignCarriers"] =>
  view.foreignCarriers.filter((worker) =>
    worker.replicaSet === row.replicaSet && worker.projections.includes(row.projection) &&
    Worker.isAlive(worker, view.observerAgeMillis, request.rules)
  )

const obstacleOf = (view: View, request: Request): Obstacle | undefined => {
  if (!view.workers.some((worker) => isSelf(worker, request))) return { _tag: "Evicted" }
  // A leaving worker claims nothing, so no obstacle may keep it from releasing what it holds.
  if (request.leaving) return undefined
  for (const projection of request.projections) {
    if (projection.givenUp === true) continue
    for (const row of view.rows) {
      if (row.projection !== projection.name) continue
      // A stale worker counts as alive only because the observing session is young. Failing because of it would not
      // help: after a restart the next session is as young.
      const carrier = foreignCarriers(view, request, row).find((other) => !Worker.isStale(other, request.rules))
      if (carrier !== undefined) {
        return {
          _tag: "ProjectionInOtherReplicaSet",
          projection: projection.name,
          otherReplicaSet: carrier.replicaSet,
          workerId: carrier.workerId
        }
      }
      if (row.filter !== projection.filter && !projection.acceptFilterChange) {
        return {
          _tag: "FilterChanged",
          projection: projection.name,
          recorded: row.filter,
          given: projection.filter
        }
      }
    }
  }
  return undefined
}

const haltIn = (row: Checkpoint.Checkpoint, range: HashRange.HashRange): Checkpoint.Halt | undefined =>
  row.halt !== undefined && HashRange.includes(range, row.halt.hash) ? row.halt : undefined

/** Merges neighbouring rows that have the same holder, position and filter, and no halt. */
const merged = (rows: ReadonlyArray<Checkpoint.Checkpoint>): ReadonlyArray<Checkpoint.Checkpoint> => {
  const out: Array<Checkpoint.Checkpoint> = []
  for (const row of [...rows].sort((a, b) => a.range.start - b.range.start)) {
    const last = out[out.length - 1]
    if (
      last !== undefined && last.range.end === row.range.start && last.position === row.position &&
      last.halt === undefined && row.halt === undefined && last.filter === row.filter &&
      last.fence?.workerId === row.fence?.workerId && last.fence?.incarnation === row.fence?.incarnation
    ) {
      out[out.length - 1] = { ...last, range: { start: last.range.start, end: row.range.end } }
    } else {
      out.push(row)
    }
  }
  return out
}

const same = (a: Checkpoint.Checkpoint, b: Checkpoint.Checkpoint): boolean =>
  a.range.end === b.range.end && a.position === b.position && a.replicaSet === b.replicaSet &&
  a.filter === b.filter && a.halt === b.halt &&
  a.fence?.workerId === b.fence?.workerId && a.fence?.incarnation === b.fence?.incarnation &&
  a.fence?.generationId === b.fence?.generationId

/**
 * Returns the decision. `lockable` contains the keys of the candidates that could be locked. A decision that is to be
 * applied needs a view that was read after the locks were acquired, or whose rows were replaced by those that the
 * locking statement returned.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (view: View, request: Request, lockable: ReadonlySet<string>): Plan => {
  const obstacle = obstacleOf(view, request)
  if (obstacle !== undefined) return nothing(view, obstacle)

  const self = request.registration
  const living = alive(view, request)
  const recorded = view.workers.find((worker) => isSelf(worker, request))
  const givenUp = new Set(request.projections.filter((projection) => projection.givenUp).map(({ name }) => name))
  const carried = recorded?.projections.filter((name) => !givenUp.has(name))
  const carry = request.leaving || carried?.length === recorded?.projections.length ? undefined : carried
  const members = living.map((worker) => ({
    workerId: worker.workerId,
    incarnation: worker.incarnation,
    projections: isSelf(worker, request) ? carry ?? worker.projections : worker.projections
  }))
  const stale = view.generation === undefined
    ? members.length > 0
    : !Generation.isCurrent(view.generation, members)
  // The last worker to leave forms no generation: there are no members, and the next worker to join forms one.
  const form = stale && members.length > 0 ? Generation.next(view.replicaSet, view.generation, members) : undefined
  const generation = form ?? view.generation
  const evict = view.workers.filter((worker) => !isSelf(worker, request) && !living.includes(worker))

  const create: Array<Checkpoint.Checkpoint> = []
  const remove: Array<Checkpoint.Checkpoint> = []
  const put: Array<Checkpoint.Checkpoint> = []
  const held: Array<Checkpoint.Held> = []
  let settled = generation !== undefined && !request.leaving
  let awaitsLock = false

  for (const projection of request.projections) {
    const share = request.leaving || projection.givenUp === true || generation === undefined
      ? undefined
      : Generation.share(generation, projection.name, self)
    const fence: Checkpoint.Fence | undefined = generation === undefined ? undefined : {
      workerId: self.workerId,
      incarnation: self.incarnation,
      generationId: generation.generationId
    }
    const take = (row: Checkpoint.Checkpoint, range: HashRange.HashRange): Checkpoint.Checkpoint => {
      const halt = haltIn(row, range)
      return {
        ...row,
        range,
        fence,
        replicaSet: view.replicaSet,
        filter: projection.filter,
        // A worker that registered after the one whose handler failed may contain the fix, so it retries the event.
        // Incarnations order registrations even when the database's clock is set back.
        halt: halt !== undefined && self.incarnation > halt.incarnation ? undefined : halt
      }
    }
    const free = (row: Checkpoint.Checkpoint, range: HashRange.HashRange): Checkpoint.Checkpoint => ({
      ...row,
      range,
      fence: undefined,
      replicaSet: view.replicaSet,
      halt: haltIn(row, range)
    })

    const rows = view.rows.filter((row) => row.projection === projection.name)
    if (rows.length === 0 && !request.leaving && projection.givenUp !== true) {
      const row: Checkpoint.Checkpoint = {
        projection: projection.name,
        range: HashRange.whole,
        position: projection.startPosition,
        replicaSet: view.replicaSet,
        fence: undefined,
        filter: projection.filter,
        halt: undefined
      }
      create.push(row)
      rows.push(row)
    }
    const isForeign = (row: Checkpoint.Checkpoint): boolean => row.replicaSet !== view.replicaSet
    const isDoubted = rows.some((row) => foreignCarriers(view, request, row).length > 0)
    // Claim all rows of another replica set or none: if both replica sets had rows of the projection, the workers of
    // both would fail.
    const claimable = !isDoubted && rows.every((row) => !isForeign(row) || lockable.has(Checkpoint.key(row)))
    const kept: Array<Checkpoint.Checkpoint> = []
    const touched: Array<Checkpoint.Checkpoint> = []
    const after: Array<Checkpoint.Checkpoint> = []
    for (const row of rows) {
      const mine = Checkpoint.isHeldBy(row, self)
      const created = create.includes(row)
      if ((mine && request.busy.has(Checkpoint.key(row))) || (!mine && !isOrphan(row, living, request))) {
        kept.push(row)
        continue
      }
      if (!created && !lockable.has(Checkpoint.key(row))) {
        // A free row outside this worker's share is another worker's to claim; do not wait for it.
        awaitsLock = awaitsLock || mine || (share !== undefined && HashRange.overlaps(row.range, share))
        kept.push(row)
        continue
      }
      if (isForeign(row) && !claimable) {
        awaitsLock = awaitsLock || (share !== undefined && !isDoubted)
        kept.push(row)
        continue
      }
      const { after: right, before: left, inside } = share === undefined
        ? { before: row.range, inside: undefined, after: undefined }
        : HashRange.cut(row.range, share)
      // Orphaned rows outside this worker's share are left to the workers that will claim them. Rows of another replica
      // set are changed nevertheless, because all of them must move to this one.
      if (inside === undefined && !mine && (share === undefined || !isForeign(row))) {
        kept.push(row)
        continue
      }
      if (!created) touched.push(row)
      if (left !== undefined) after.push(free(row, left))
      if (inside !== undefined) after.push(take(row, inside))
      if (right !== undefined) after.push(free(row, right))
    }
    const results = merged(after)
    for (const result of results) {
      const before = [...touched, ...create].find((row) =>
        row.projection === result.projection && row.range.start === result.range.start
      )
      // A row that stays with its holder is not rewritten: its fence remains valid, so the write would be wasted.
      if (before === undefined || !isUntouched(before, result)) put.push(result)
    }
    for (const row of touched) {
      if (!results.some((result) => result.range.start === row.range.start)) remove.push(row)
    }
    const mineNow = [...kept, ...results.map((result) => untouchedOf(result, touched))]
      .filter((row): row is Checkpoint.Held => Checkpoint.isHeldBy(row, self))
    held.push(...mineNow)
    settled = settled && (
      share === undefined ? mineNow.length === 0 : HashRange.tiles(mineNow.map((row) => row.range), share)
    )
  }

  return {
    obstacle: undefined,
    evict,
    carry,
    form,
    create,
    remove,
    put,
    held,
    generation,
    settled,
    recorded: recorded?.recorded,
    activates: form === undefined && !view.active && view.generation !== undefined &&
      isRunning(view.generation, view.workers),
    recheckAfterMillis: recheckAfter(view, request, living, awaitsLock)
  }
}

/** Whether all members are recorded as running in the generation. */
const isRunning = (
  { generationId, members }: Generation.Generation,
  workers: ReadonlyArray<Worker.WorkerView>
): boolean =>
  members.every((member) =>
    workers.some(({ incarnation, recorded, workerId }) =>
      workerId === member.workerId && incarnation === member.incarnation && recorded.state === "running" &&
      recorded.generationId === generationId
    )
  )

/** Delay before a locked row is tried again; a batch seldom takes longer. */
const lockedRowRecheckMillis = 10

const recheckAfter = (
  view: View,
  request: Request,
  living: ReadonlyArray<Worker.WorkerView>,
  awaitsLock: boolean
): number | undefined => {
  const others = living.filter((worker) => !isSelf(worker, request))
  const waits = [...others, ...view.rows.flatMap((row) => foreignCarriers(view, request, row))]
    .map((worker) => Worker.millisToLive(worker, view.observerAgeMillis, request.rules))
  if (awaitsLock) waits.push(lockedRowRecheckMillis)
  return waits.length === 0 ? undefined : Math.max(1, Math.ceil(Math.min(...waits)))
}

/** Whether the row changes in nothing but the generation of its fence; such a row is not rewritten. */
const isUntouched = (before: Checkpoint.Checkpoint, after: Checkpoint.Checkpoint): boolean =>
  same(before, after) ||
  (before.fence !== undefined && after.fence !== undefined &&
    same({ ...before, fence: after.fence }, after) &&
    before.fence.workerId === after.fence.workerId && before.fence.incarnation === after.fence.incarnation)

const untouchedOf = (
  result: Checkpoint.Checkpoint,
  touched: ReadonlyArray<Checkpoint.Checkpoint>
): Checkpoint.Checkpoint => {
  const before = touched.find((row) => row.range.start === result.range.start)
  return before !== undefined && isUntouched(before, result) ? before : result
}
