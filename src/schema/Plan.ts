/**
 * Plans: the changes that a worker makes to its replica set, computed from the state of the replica set. Pure: a
 * decision is the short transaction in which a store reads the view, locks the rows, and applies the plan.
 *
 * A worker never changes a range that another live worker owns. It evicts dead workers, forms the next generation when
 * the members of the newest one are not exactly the live workers, and gives every range that no live worker processes to
 * the worker to whose share it belongs: free and orphaned ranges, and its own whose runners have ended. Workers that all
 * follow this rule converge, because the shares of one generation tile the hash space.
 */
import * as Result from "effect/Result"
import * as Checkpoint from "./Checkpoint.ts"
import {
  OrderingChanged,
  ProjectionInOtherReplicaSet,
  type SelectionChanged,
  selectionChanged,
  WorkerEvicted
} from "./Errors.ts"
import * as Generation from "./Generation.ts"
import * as HashRange from "./HashRange.ts"
import * as RangePlan from "./RangePlan.ts"
import * as Succession from "./Succession.ts"
import * as Worker from "./Worker.ts"

/** The state of a replica set from which a plan is computed. */
export interface View {
  readonly replicaSet: string
  /** Workers that have not stopped, including dead ones. */
  readonly workers: ReadonlyArray<Worker.WorkerView>
  /** The newest generation. */
  readonly generation: Generation.Generation | undefined
  /** All rows of the planning worker's projections, regardless of their owner. */
  readonly rows: ReadonlyArray<Checkpoint.Checkpoint>
  /** The ages of the rows by `Checkpoint.key`. They are only reported; no plan depends on them. */
  readonly rowAges: ReadonlyMap<string, Succession.RowAge>
  /** Keys (`Checkpoint.key`) of rows whose ranges have no parked events; at least the planning worker's own ones. */
  readonly withoutParked: ReadonlySet<string>
  /**
   * Keys (`Checkpoint.key`) of the `candidates` that the decision could not lock, because a batch holds their locks.
   * Empty in a preview, which locks nothing. For a plan that is applied, the store locks all other candidates first, and
   * `rows` contains these as they were read under their locks: before, a batch may have moved their positions.
   */
  readonly lockedKeys: ReadonlySet<string>
  /** Milliseconds since the session that reads this view was opened. */
  readonly observerAgeMillis: number
  /**
   * Workers of other replica sets that have not stopped, including dead ones; at least those that carry one of the
   * projections or own one of the rows.
   */
  readonly foreignWorkers: ReadonlyArray<Worker.WorkerView & { readonly replicaSet: string }>
}

/** A projection of the planning worker. */
export interface Carried extends Generation.Division {
  /** The filter and the partition key, in the form of `EventFilter.canonical`. */
  readonly filter: string
  /** The position at which a projection without progress starts. */
  readonly startPosition: bigint
  /**
   * Filters from whose progress the projection also continues, in the form of `filter` and with the same partition key.
   * Progress under any other filter belongs to another version of the projection.
   */
  readonly replacesFilter?: ReadonlyArray<string> | undefined
  /**
   * The worker has given up the projection, because another worker has changed its filter or its partition key: it
   * claims none of its ranges, releases those that it owns, and no longer carries the projection.
   */
  readonly givenUp?: boolean | undefined
}

/** The worker that plans, and the limits of what its plan may change. */
export interface Request {
  readonly registration: Worker.Registration
  readonly projections: ReadonlyArray<Carried>
  /** Keys (`Checkpoint.key`) of the worker's rows that one of its runners is processing. A plan does not change them. */
  readonly activeKeys: ReadonlySet<string>
  /** Keys (`Checkpoint.key`) of the rows that the worker owned after its previous plan. Others were handed to it. */
  readonly ownedKeys?: ReadonlySet<string>
  /** The worker is leaving: it gets no ranges, gives away all rows that are not active, and does not count as alive. */
  readonly leaving: boolean
  readonly rules: Worker.LivenessRules
}

/** The changes that a decision makes. */
export interface Plan extends RangePlan.Changes {
  /** Dead workers to mark as stopped. */
  readonly evict: ReadonlyArray<Worker.WorkerView>
  /** The projections to record in the worker's registration; undefined if they do not change. */
  readonly carry: ReadonlyArray<string> | undefined
  /** The generation to insert. */
  readonly form: Generation.Generation | undefined
  /** The newest generation after the decision. */
  readonly generation: Generation.Generation | undefined
  /** The rows that this worker owns after the decision, including active ones. */
  readonly ownedRows: ReadonlyArray<Checkpoint.Held>
  /** The ranges that another worker had before: claimed ones, and those that were handed to this worker. */
  readonly successions: ReadonlyArray<Succession.Succession>
  /** Whether the worker owns exactly its shares. */
  readonly isComplete: boolean
  /**
   * Milliseconds after which another decision may become possible merely because time has passed: a missing presence or
   * missed heartbeats begin to count, or a row that a batch had locked is free again. Undefined if there is nothing to
   * wait for.
   */
  readonly recheckAfterMillis: number | undefined
  /**
   * Keys (`Checkpoint.key`) of written rows, and of rows that were handed to this worker since its previous plan, whose
   * ranges have no parked events, so that their runners need not read any. This is read when the row has the worker's
   * fence, or in the statement that writes it, because an earlier owner cannot commit any more then.
   */
  readonly withoutParked: ReadonlySet<string>
}

/** Why a worker can make no plan: it must end, or give up the projection. */
export type PlanError = OrderingChanged | ProjectionInOtherReplicaSet | SelectionChanged | WorkerEvicted

/** Returns the changes that the worker makes now, or why it can make none. */
export const make = (view: View, request: Request): Result.Result<Plan, PlanError> => {
  const rowsOf = byProjection(view.rows)
  const error = findError(view, request, rowsOf)
  if (error !== undefined) return Result.fail(error)

  const evict = deadWorkers(view, request)
  const carry = changedProjections(view, request)
  const members = membersOf(view, request, carry)
  const rangesIn = (generation: Generation.Generation | undefined) =>
    request.projections.map((projection) =>
      RangePlan.make(rangesOf(view, request, projection, generation, rowsOf(projection.name)))
    )
  const formed = formGeneration(view, members)
  const planned = rangesIn(formed ?? view.generation)
  const form = formed === undefined && claimsFromElsewhere(view, planned)
    ? Generation.next(view.replicaSet, view.generation, members)
    : formed
  const generation = form ?? view.generation
  const ranges = form === formed ? planned : rangesIn(form)
  const claim = ranges.flatMap(({ claim }) => claim)
  const isWaitingForLock = ranges.some((one) => one.isWaitingForLock)
  return Result.succeed({
    evict,
    carry,
    form,
    generation,
    create: ranges.flatMap(({ create }) => create),
    release: ranges.flatMap(({ release }) => release),
    handOver: ranges.flatMap(({ handOver }) => handOver),
    claim,
    renew: ranges.flatMap(({ renew }) => renew),
    remove: ranges.flatMap(({ remove }) => remove),
    replaced: ranges.flatMap(({ replaced }) => replaced),
    ownedRows: ranges.flatMap(({ ownedRows }) => ownedRows),
    successions: [
      ...claim.flatMap((held) => Succession.of([held], rowsOf(held.projection), view.rowAges)),
      ...handedOver(view, request)
    ],
    isComplete: generation !== undefined && !request.leaving && ranges.every((one) => one.isComplete),
    recheckAfterMillis: recheckAfter(view, request, isWaitingForLock),
    withoutParked: handedOverWithoutParked(view, request, ranges)
  })
}

/** Divides the rows once, because a worker can have thousands of projections. */
const byProjection = (rows: ReadonlyArray<Checkpoint.Checkpoint>): RowsOf => {
  const divided = new Map<string, Array<Checkpoint.Checkpoint>>()
  for (const row of rows) {
    const others = divided.get(row.projection)
    if (others === undefined) divided.set(row.projection, [row])
    else others.push(row)
  }
  return (projection) => divided.get(projection) ?? []
}

/** The rows of a projection, regardless of their owner. */
type RowsOf = (projection: string) => ReadonlyArray<Checkpoint.Checkpoint>

/**
 * Only rows that were handed to the worker since its previous plan: a server that loses the last change of the parked
 * events has then lost the fence as well. A row whose fence is older is read again by its runner. A row that is written
 * may get a larger range.
 */
const handedOverWithoutParked = (
  { withoutParked }: View,
  { ownedKeys = new Set() }: Request,
  changes: ReadonlyArray<RangePlan.Changes>
): ReadonlySet<string> => {
  const others = new Set([...ownedKeys, ...changes.flatMap(written).map(Checkpoint.key)])
  return new Set([...withoutParked].filter((key) => !others.has(key)))
}

/** Whether the plan changes nothing. The stop of a leaving worker is not part of the plan and does not count. */
export const isEmpty = (plan: Plan): boolean =>
  plan.evict.length === 0 && plan.carry === undefined && plan.form === undefined && plan.create.length === 0 &&
  plan.remove.length === 0 && written(plan).length === 0

/** The rows to write with their new content. Parts that were cut off are new rows among them. */
export const written = (
  { claim, handOver, release, renew }: RangePlan.Changes
): ReadonlyArray<Checkpoint.Checkpoint> => [...release, ...handOver, ...claim, ...renew]

/**
 * Whether the plan changes nothing but rows of the worker. No other live worker changes these, so no lock has to exclude
 * other decisions while they are written.
 */
export const changesOwnRowsOnly = (plan: Plan, { leaving, registration }: Request): boolean =>
  !leaving && plan.evict.length === 0 && plan.carry === undefined && plan.form === undefined &&
  plan.create.length === 0 && plan.replaced.every((row) => Checkpoint.isHeldBy(row, registration))

/** The workers to wake after the plan was applied: all of the replica set, or those that a range was handed to. */
export const concerned = (plan: Plan, { leaving }: Request): "all" | ReadonlySet<bigint> =>
  leaving || plan.evict.length > 0 || plan.carry !== undefined || plan.form !== undefined ||
    plan.release.length > 0 || changesFilter(plan)
    ? "all"
    : new Set(plan.handOver.map(({ fence }) => fence.incarnation))

/** Whether progress continues under another filter, so that workers with the old one must give up the projection. */
const changesFilter = (plan: Plan): boolean => {
  const replacedOf = byProjection(plan.replaced)
  return written(plan).some((row) =>
    replacedOf(row.projection).some((old) => old.filter !== row.filter && HashRange.overlaps(old.range, row.range))
  )
}

/**
 * The rows that a plan may change, sorted by key: the free and orphaned ones, and the worker's own that are not active.
 * A store locks them before it makes the plan that it applies.
 */
export const candidates = (view: View, request: Request): ReadonlyArray<Checkpoint.Checkpoint> =>
  view.rows
    .filter((row) => isCandidate(row, view, request))
    .sort((a, b) =>
      a.projection !== b.projection
        ? a.projection < b.projection ? -1 : 1
        : a.range.start - b.range.start
    )

const isCandidate = (row: Checkpoint.Checkpoint, view: View, request: Request): boolean =>
  Checkpoint.isHeldBy(row, request.registration)
    ? !request.activeKeys.has(Checkpoint.key(row))
    : !view.workers.some((worker) => Checkpoint.isHeldBy(row, worker) && isAlive(worker, view, request))

const isSelf = (worker: Worker.WorkerView, { registration }: Request): boolean =>
  worker.workerId === registration.workerId && worker.incarnation === registration.incarnation

const selfIn = (view: View, request: Request): Worker.WorkerView | undefined =>
  view.workers.find((worker) => isSelf(worker, request))

const isAlive = (worker: Worker.WorkerView, view: View, request: Request): boolean =>
  isSelf(worker, request) ? !request.leaving : Worker.isAlive(worker, view.observerAgeMillis, request.rules)

const findError = (view: View, request: Request, rowsOf: RowsOf): PlanError | undefined => {
  const { replicaSet, workerId } = request.registration
  if (selfIn(view, request) === undefined) return new WorkerEvicted({ replicaSet, workerId, reason: "evicted" })
  // A leaving worker claims nothing, so nothing may keep it from releasing what it owns.
  if (request.leaving) return undefined
  for (const projection of request.projections) {
    const { filter, givenUp, name, replacesFilter } = projection
    if (givenUp === true) continue
    const rows = rowsOf(name)
    if (projection.ordering === "global") {
      const error = findOrderingError(view, request, name, rows)
      if (error !== undefined) return error
    }
    for (const row of rows) {
      // A stale worker counts as alive only because the observing session is young. Failing because of it would not
      // help: after a restart the next session is as young.
      const carrier = foreignWorkers(view, request, row).find((other) =>
        other.projections.includes(name) && !Worker.isStale(other, request.rules)
      )
      if (carrier !== undefined) {
        const { replicaSet: otherReplicaSet, workerId } = carrier
        return new ProjectionInOtherReplicaSet({ projection: name, replicaSet, otherReplicaSet, workerId })
      }
      if (row.filter === filter || replacesFilter?.includes(row.filter) === true) continue
      return selectionError(rows, projection, row.filter)
    }
  }
  return undefined
}

/** The error names every other recorded filter, because a projection must replace all of them at once. */
const selectionError = (
  rows: ReadonlyArray<Checkpoint.Checkpoint>,
  { filter: given, name }: Carried,
  recorded: string
): SelectionChanged => {
  const alsoRecorded = [...new Set(rows.map(({ filter }) => filter))].filter((other) =>
    other !== given && other !== recorded
  )
  return selectionChanged({
    projection: name,
    recorded,
    given,
    ...(alsoRecorded.length === 0 ? {} : { alsoRecorded })
  })
}

/**
 * Returns why a projection cannot be ordered globally now, if it has several ranges: it was divided among workers. A
 * stale or absent worker does not count: this worker waits until it can claim the ranges.
 */
const findOrderingError = (
  view: View,
  request: Request,
  projection: string,
  rows: ReadonlyArray<Checkpoint.Checkpoint>
): OrderingChanged | undefined => {
  if (rows.length < 2) return undefined
  const holder = view.workers.find((worker) =>
    !isSelf(worker, request) && rows.some((row) => Checkpoint.isHeldBy(row, worker)) &&
    worker.absentForMillis === undefined && !Worker.isStale(worker, request.rules)
  )
  const positions = rows.map(({ position }) => position).sort((a, b) => a < b ? -1 : a > b ? 1 : 0)
  const [lowest, highest] = [positions[0]!, positions[positions.length - 1]!]
  const isHalted = rows.some(({ halt }) => halt !== undefined)
  if (holder === undefined && lowest === highest && !isHalted) return undefined
  return new OrderingChanged({
    projection,
    ranges: rows.length,
    lowest,
    highest,
    isHalted,
    ...(holder === undefined ? {} : { workerId: holder.workerId })
  })
}

/**
 * Returns the live workers of the row's replica set, if that is another one, that carry the projection or still own the
 * row. A worker that has given up the projection may own it until its batch has ended.
 */
const foreignWorkers = (view: View, request: Request, row: Checkpoint.Checkpoint): View["foreignWorkers"] =>
  view.foreignWorkers.filter((worker) =>
    worker.replicaSet === row.replicaSet &&
    (worker.projections.includes(row.projection) || Checkpoint.isHeldBy(row, worker)) &&
    Worker.isAlive(worker, view.observerAgeMillis, request.rules)
  )

const deadWorkers = (view: View, request: Request): ReadonlyArray<Worker.WorkerView> =>
  view.workers.filter((worker) => !isSelf(worker, request) && !isAlive(worker, view, request))

/** The registered projections without those that the worker has given up; undefined if that changes nothing. */
const changedProjections = (view: View, request: Request): ReadonlyArray<string> | undefined => {
  const registered = selfIn(view, request)?.projections ?? []
  const givenUp = new Set(request.projections.filter(({ givenUp }) => givenUp === true).map(({ name }) => name))
  const kept = registered.filter((name) => !givenUp.has(name))
  return request.leaving || kept.length === registered.length ? undefined : kept
}

/** The live workers, as they are listed in a generation. */
const membersOf = (
  view: View,
  request: Request,
  carry: ReadonlyArray<string> | undefined
): ReadonlyArray<Generation.Member> =>
  view.workers.filter((worker) => isAlive(worker, view, request)).map((worker) => ({
    workerId: worker.workerId,
    incarnation: worker.incarnation,
    projections: isSelf(worker, request) ? carry ?? worker.projections : worker.projections
  }))

/**
 * The next generation, if the members of the newest one are not exactly the live workers. The last worker to leave
 * forms none: there are no members, and the next worker to join forms one.
 */
const formGeneration = (
  { generation, replicaSet }: View,
  members: ReadonlyArray<Generation.Member>
): Generation.Generation | undefined => {
  if (members.length === 0) return undefined
  if (generation !== undefined && Generation.isCurrent(generation, members)) return undefined
  return Generation.next(replicaSet, generation, members)
}

/**
 * Whether rows come from another replica set. A worker that owned one of them before may not know yet that it has lost
 * it. Under the same generation, its old fence would be valid again.
 */
const claimsFromElsewhere = ({ replicaSet }: View, ranges: ReadonlyArray<RangePlan.Changes>): boolean =>
  ranges.some(({ replaced }) => replaced.some((row) => row.replicaSet !== replicaSet))

/** The rows that another worker has handed to this one. */
const handedOver = (
  { rowAges, rows }: View,
  { activeKeys, ownedKeys = new Set(), registration }: Request
): ReadonlyArray<Succession.Succession> =>
  rows.filter((row) => {
    const key = Checkpoint.key(row)
    return Checkpoint.isHeldBy(row, registration) && !activeKeys.has(key) && !ownedKeys.has(key)
  }).flatMap((row) => Succession.ofHandedOver(row, rowAges))

/** The parts of a projection's hash space that the generation assigns to a worker; empty if it assigns none. */
export const parts = (
  generation: Generation.Generation | undefined,
  projection: Carried,
  worker: Pick<Worker.Registration, "incarnation" | "workerId">
): ReadonlyArray<HashRange.HashRange> =>
  generation === undefined || projection.givenUp === true ? [] : Generation.parts(generation, projection, worker)

const fenceOf = (
  { incarnation, workerId }: Pick<Worker.Registration, "incarnation" | "workerId">,
  generation: Generation.Generation | undefined
): Checkpoint.Fence => ({ workerId, incarnation, generationId: generation?.generationId ?? 0n })

/** If no other worker is alive, the members of the newest generation may all be gone. */
const assignmentsOfOthers = (
  view: View,
  request: Request,
  projection: Carried,
  generation: Generation.Generation | undefined
): ReadonlyArray<RangePlan.Assignment> => {
  if (generation === undefined) return []
  const living = new Set(
    view.workers.filter((worker) => !isSelf(worker, request) && isAlive(worker, view, request))
      .map(({ incarnation }) => incarnation)
  )
  return Generation.divide(generation, projection).flatMap(({ member, parts }) =>
    living.has(member.incarnation) ? RangePlan.assign(parts, fenceOf(member, generation)) ?? [] : []
  )
}

/** What the plan for the ranges of one projection is computed from. */
const rangesOf = (
  view: View,
  request: Request,
  projection: Carried,
  generation: Generation.Generation | undefined,
  rows: ReadonlyArray<Checkpoint.Checkpoint>
): RangePlan.Input => {
  return {
    replicaSet: view.replicaSet,
    projection,
    worker: request.registration,
    assignment: request.leaving ? undefined : RangePlan.assign(
      parts(generation, projection, request.registration),
      fenceOf(request.registration, generation)
    ),
    others: () => assignmentsOfOthers(view, request, projection, generation),
    isIndivisible: projection.ordering === "global",
    isCarried: !request.leaving && projection.givenUp !== true,
    rows,
    candidateKeys: new Set(rows.filter((row) => isCandidate(row, view, request)).map(Checkpoint.key)),
    lockedKeys: view.lockedKeys,
    isDoubted: rows.some((row) => foreignWorkers(view, request, row).length > 0)
  }
}

/** Delay before a locked row is tried again; a batch seldom takes longer. */
const lockedRowRecheckMillis = 10

const recheckAfter = (view: View, request: Request, isWaitingForLock: boolean): number | undefined => {
  const others = view.workers.filter((worker) => !isSelf(worker, request) && isAlive(worker, view, request))
  const waits = [...others, ...view.rows.flatMap((row) => foreignWorkers(view, request, row))]
    .map((worker) => Worker.millisToLive(worker, view.observerAgeMillis, request.rules))
  if (isWaitingForLock) waits.push(lockedRowRecheckMillis)
  return waits.length === 0 ? undefined : Math.max(1, Math.ceil(Math.min(...waits)))
}
