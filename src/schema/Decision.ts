/**
 * Decisions: from what is, to what has to change. Pure; the stores read the view, lock the rows and apply the result
 * in one short transaction.
 *
 * A decision is made by one worker for itself. It moves nobody else's ranges: it frees what the worker has stopped
 * working on and no longer owns, takes what is free or left by the dead in the worker's own share, and forms the next
 * generation when the newest one no longer names exactly the workers that live. All workers doing so converge, because
 * shares of one generation tile the hash space.
 *
 * @since 0.1.0
 */
import * as Checkpoint from "./Checkpoint.ts"
import * as Generation from "./Generation.ts"
import * as HashRange from "./HashRange.ts"
import * as Worker from "./Worker.ts"

/**
 * What a decision sees of a replica set.
 *
 * @category models
 * @since 0.1.0
 */
export interface View {
  readonly replicaSet: string
  /** Workers that have not stopped, the dead among them. */
  readonly workers: ReadonlyArray<Worker.WorkerView>
  /** The newest generation. */
  readonly generation: Generation.Generation | undefined
  /** It is recorded that all its members work in it. */
  readonly active: boolean
  /** All rows of the projections that the deciding worker carries, whoever holds them. */
  readonly rows: ReadonlyArray<Checkpoint.Checkpoint>
  /** Milliseconds since the session that reads this view was opened. */
  readonly observerAgeMillis: number
  /** Workers of other replica sets that have not stopped and carry one of the projections, the dead among them. */
  readonly foreignCarriers: ReadonlyArray<Worker.WorkerView & { readonly replicaSet: string }>
}

/**
 * A projection as the deciding worker carries it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Carried {
  readonly name: string
  readonly filter: string
  /** Where progress begins when the projection has none yet. */
  readonly startPosition: bigint
  /** Takes over progress that was made under another filter, from where it stands. */
  readonly acceptFilterChange: boolean
  /**
   * The worker has given up the projection, because another worker has changed its filter: it claims none of its
   * ranges, releases those that it holds, and no longer carries the projection.
   */
  readonly givenUp?: boolean | undefined
}

/**
 * Who decides, and what it may touch.
 *
 * @category models
 * @since 0.1.0
 */
export interface Request {
  readonly registration: Worker.Registration
  readonly projections: ReadonlyArray<Carried>
  /** Keys (`Checkpoint.key`) of the worker's rows that one of its runners is working on: not to be touched. */
  readonly busy: ReadonlySet<string>
  /** The worker takes nothing more and frees all that is not busy; it is not counted among the living. */
  readonly leaving: boolean
  readonly rules: Worker.LivenessRules
}

/**
 * What stands against a decision.
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
 * What a decision changes.
 *
 * @category models
 * @since 0.1.0
 */
export interface Decision {
  readonly obstacle: Obstacle | undefined
  /** Dead workers to mark as stopped. */
  readonly evict: ReadonlyArray<Worker.WorkerView>
  /** The projections to record for the worker's registration; absent when they do not change. */
  readonly carry: ReadonlyArray<string> | undefined
  /** The generation to insert. */
  readonly form: Generation.Generation | undefined
  /** Whole rows to insert for projections that have none. */
  readonly create: ReadonlyArray<Checkpoint.Checkpoint>
  /** Rows that disappear (merged into a neighbour). */
  readonly remove: ReadonlyArray<Checkpoint.Checkpoint>
  /** Rows to write as they shall be; cut-off parts are among them as rows of their own. */
  readonly put: ReadonlyArray<Checkpoint.Checkpoint>
  /** The rows this worker holds afterwards, busy ones included. */
  readonly held: ReadonlyArray<Checkpoint.Held>
  /** The newest generation afterwards. */
  readonly generation: Generation.Generation | undefined
  /** The worker holds exactly its shares. */
  readonly settled: boolean
  /** What people read of the worker. */
  readonly recorded: Worker.Recorded | undefined
  /** They read of all members that they work in the newest generation, but not of the generation that it is active. */
  readonly activates: boolean
  /**
   * Milliseconds after which time alone may make another decision possible: a missing presence or a silence comes to
   * count, a row that a batch had locked comes free.
   */
  readonly recheckAfterMillis: number | undefined
}

/**
 * Whether there is anything to write.
 *
 * @category guards
 * @since 0.1.0
 */
export const isEmpty = (decision: Decision): boolean =>
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
 * The rows that a decision may change, by key, sorted: the store locks them before it asks for the decision. It may
 * get fewer (a row that a batch has locked is not free yet): the others must not be marked `lockable`.
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

const nothing = (view: View, obstacle: Obstacle | undefined): Decision => ({
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

/** Who lives in another replica set that has the row, and carries its projection there. */
const foreignCarriers = (view: View, request: Request, row: Checkpoint.Checkpoint): View["foreignCarriers"] =>
  view.foreignCarriers.filter((worker) =>
    worker.replicaSet === row.replicaSet && worker.projections.includes(row.projection) &&
    Worker.isAlive(worker, view.observerAgeMillis, request.rules)
  )

/**
 * It has been silent for too long, and lives only because the session that observes it is too young to say otherwise.
 * To fail for it would be in vain: started again, the next session is as young.
 */
const isDoubtful = (worker: Worker.WorkerView, { rules }: Request): boolean =>
  worker.silentForMillis > rules.staleWorkerTimeoutMillis

const obstacleOf = (view: View, request: Request): Obstacle | undefined => {
  if (!view.workers.some((worker) => isSelf(worker, request))) return { _tag: "Evicted" }
  // Who leaves has nothing to take: no obstacle may keep it from giving up what it holds.
  if (request.leaving) return undefined
  for (const projection of request.projections) {
    if (projection.givenUp === true) continue
    for (const row of view.rows) {
      if (row.projection !== projection.name) continue
      const carrier = foreignCarriers(view, request, row).find((other) => !isDoubtful(other, request))
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

/** Neighbours of one holder that stand at the same place become one row. */
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
 * The decision. `lockable` holds the keys of the candidates that could be locked; the view was read after the locks
 * were taken, or its rows were replaced by what the locking statement returned.
 *
 * @category constructors
 * @since 0.1.0
 */
export const decide = (view: View, request: Request, lockable: ReadonlySet<string>): Decision => {
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
  // The last worker to leave forms nothing: there is nobody to assign to, and whoever comes next forms.
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
        // A worker that registered after the one whose handler failed may contain the fix, so it retries. Incarnations
        // order registrations even when the database's clock is set back.
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
    // All or nothing: a projection of which two replica sets have rows would stop the workers of both.
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
        // A free row that somebody else is to take is not worth waiting for.
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
      // What the dead left outside this worker's share is for others to take; nothing is gained by touching it, unless
      // it has to be claimed.
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
      // A kept row renews nothing: its fence stands, and rewriting it would only cost.
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

/** Whether all members are recorded as working in the generation. */
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

/** How soon a row that was locked is asked for again; a batch seldom takes longer. */
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

/** A row of mine that lies wholly in my share and changes in nothing but the number of the generation stays as it is. */
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
