/**
 * The part of a plan that concerns the ranges of one projection: a range is cut at the borders of all parts, each piece
 * goes to the worker to whose part it belongs, and adjacent ranges of one worker are merged, but never those of two
 * parts.
 */
import * as Checkpoint from "./Checkpoint.ts"
import * as HashRange from "./HashRange.ts"

/** What the plan for the ranges of one projection is computed from. */
export interface Input {
  readonly replicaSet: string
  readonly projection: { readonly name: string; readonly filter: string; readonly startPosition: bigint }
  readonly worker: { readonly workerId: string; readonly incarnation: bigint }
  /** What the worker is to own; undefined if it has no share. */
  readonly assignment: Assignment | undefined
  /** What the other live workers are to own. Evaluated only if a row changes. */
  readonly others: () => ReadonlyArray<Assignment>
  /** Whether one worker must own all rows, as one row: only then are the events handled in global order. */
  readonly isIndivisible: boolean
  /** Whether the worker carries the projection; if not, it gives away all of its ranges. */
  readonly isCarried: boolean
  /** The rows of the projection, regardless of their owner. */
  readonly rows: ReadonlyArray<Checkpoint.Checkpoint>
  /** Keys of the rows that no live worker processes: see `Plan.candidates`. */
  readonly candidateKeys: ReadonlySet<string>
  /** Keys of the rows that a batch has locked. */
  readonly lockedKeys: ReadonlySet<string>
  /**
   * Whether a worker of another replica set may still work on rows of the projection; the plan does not change these. It
   * has given up the projection but not released the rows, or its heartbeat is stale and the observing session is too
   * young to evict it. If a carrier is not stale, no plan is made (`ProjectionInOtherReplicaSet`).
   */
  readonly isDoubted: boolean
}

/** A share of a projection's hash space, and the fence under which it is claimed. */
export interface Assignment {
  readonly share: HashRange.HashRange
  /** The parts of the share that have ranges of their own; they tile it. */
  readonly parts: ReadonlyArray<HashRange.HashRange>
  readonly fence: Checkpoint.Fence
}

/** Returns the assignment of adjacent parts; undefined for none. */
export const assign = (
  parts: ReadonlyArray<HashRange.HashRange>,
  fence: Checkpoint.Fence
): Assignment | undefined => {
  const share = HashRange.span(parts)
  return share === undefined ? undefined : { share, parts, fence }
}

/** Whether a range lies within one of the parts. */
export const isInPart = (parts: ReadonlyArray<HashRange.HashRange>, range: HashRange.HashRange): boolean =>
  parts.some((part) => HashRange.contains(part, range))

/** The changes of rows that a plan makes. */
export interface Changes {
  /** The rows to insert for projections that have none; each covers the whole hash space. */
  readonly create: ReadonlyArray<Checkpoint.Checkpoint>
  /** Rows to write without an owner, because no live worker has a share of the projection, or none may claim it yet. */
  readonly release: ReadonlyArray<Checkpoint.Checkpoint>
  /** Rows to write with the fence of another worker, to whose share they belong. */
  readonly handOver: ReadonlyArray<Checkpoint.Held>
  /** Rows to write with the worker's fence that the worker did not own, or not entirely. */
  readonly claim: ReadonlyArray<Checkpoint.Held>
  /** Rows to write with the worker's newest fence that the worker owned before, because their content changes. */
  readonly renew: ReadonlyArray<Checkpoint.Held>
  /** Rows to delete, because they were merged into a neighbour. */
  readonly remove: ReadonlyArray<Checkpoint.Checkpoint>
  /** The rows that are written or deleted, as they were before. */
  readonly replaced: ReadonlyArray<Checkpoint.Checkpoint>
}

/** The changes to the ranges of one projection, and their result. */
export interface RangePlan extends Changes {
  /** The rows that the worker owns afterwards. */
  readonly ownedRows: ReadonlyArray<Checkpoint.Held>
  /** Whether these tile the worker's share, and each of them lies within one part. */
  readonly isComplete: boolean
  /** Whether the plan must be made again when a batch has released a row. */
  readonly isWaitingForLock: boolean
}

/** Returns the changes to the ranges of one projection. */
export const make = (input: Input): RangePlan => {
  const { assignment, others, rows, worker } = input
  const isOwned = (row: Checkpoint.Checkpoint): row is Checkpoint.Held => Checkpoint.isHeldBy(row, worker)
  const isOthers = (row: Checkpoint.Checkpoint): row is Checkpoint.Held => row.fence !== undefined && !isOwned(row)
  const create = createFirstRow(input)
  const canGive = canBeGiven(input)
  const actions = rows.map((row) => actionOn(row, input, canGive))
  const before = [...rows.filter((_, index) => actions[index] === "change"), ...create]
  const owners = before.length === 0 || !canGive ? [] : [...(assignment === undefined ? [] : [assignment]), ...others()]
  const after = merge(before.flatMap((row) => cut(row, input, owners)), owners.flatMap(({ parts }) => parts))
    .map((row) => before.find(isUnchanged(row)) ?? row)

  const changed = after.filter((row) => !before.includes(row))
  const owned = changed.filter(isOwned)
  const isRenewed = ({ range }: Checkpoint.Checkpoint) =>
    before.every((old) => isOwned(old) || !HashRange.overlaps(old.range, range))
  const ownedRows = [...rows.filter((_, index) => actions[index] !== "change"), ...after].filter(isOwned)
  return {
    create,
    release: changed.filter(({ fence }) => fence === undefined),
    handOver: changed.filter(isOthers),
    claim: owned.filter((row) => !isRenewed(row)),
    renew: owned.filter(isRenewed),
    remove: before.filter((row) => !after.some(({ range }) => range.start === row.range.start)),
    replaced: before.filter((row) => !after.includes(row)),
    ownedRows,
    isComplete: isComplete(ownedRows.map(({ range }) => range), assignment),
    isWaitingForLock: actions.includes("wait")
  }
}

const isComplete = (owned: ReadonlyArray<HashRange.HashRange>, assignment: Assignment | undefined): boolean =>
  assignment === undefined
    ? owned.length === 0
    : HashRange.tiles(owned, assignment.share) && owned.every((range) => isInPart(assignment.parts, range))

/** The first row of a projection without progress: free, and for the whole hash space. */
const createFirstRow = ({ isCarried, projection, replicaSet, rows }: Input): ReadonlyArray<Checkpoint.Checkpoint> =>
  rows.length > 0 || !isCarried ? [] : [{
    projection: projection.name,
    range: HashRange.whole,
    position: projection.startPosition,
    replicaSet,
    fence: undefined,
    filter: projection.filter,
    halt: undefined
  }]

/** Whether to change a row, to leave it to another worker or to its runner, or to wait until a batch unlocks it. */
const actionOn = (row: Checkpoint.Checkpoint, input: Input, canGive: boolean): "change" | "keep" | "wait" => {
  const { assignment, candidateKeys, isDoubted, lockedKeys, replicaSet, worker } = input
  const key = Checkpoint.key(row)
  if (!candidateKeys.has(key)) return "keep"
  const isOwn = Checkpoint.isHeldBy(row, worker)
  if (lockedKeys.has(key)) {
    const concernsWorker = isOwn || (assignment !== undefined && HashRange.overlaps(row.range, assignment.share))
    return concernsWorker ? "wait" : "keep"
  }
  if (row.replicaSet !== replicaSet) {
    if (assignment === undefined) return isOwn ? "change" : "keep"
    if (isDoubted) return "keep"
    // All rows of another replica set move to this one, those outside this worker's share as well.
    return canChangeAll(input, (other) => other.replicaSet !== replicaSet) ? "change" : "wait"
  }
  // A worker without a share still gives up its own rows.
  return canGive || (isOwn && assignment === undefined) ? "change" : "keep"
}

/** Whether the rows can have the owners that they belong to: in global order, one worker must get all of them. */
const canBeGiven = (input: Input): boolean =>
  !input.isIndivisible || input.rows.length < 2 || canChangeAll(input, () => true)

/**
 * Whether all of these rows can be changed now. The rows of another replica set are claimed in one decision: if both
 * replica sets had rows of the projection, the workers of both would fail.
 */
const canChangeAll = (
  { candidateKeys, lockedKeys, rows }: Input,
  isOneOf: (row: Checkpoint.Checkpoint) => boolean
): boolean =>
  rows.filter(isOneOf).every((row) => candidateKeys.has(Checkpoint.key(row)) && !lockedKeys.has(Checkpoint.key(row)))

/** Cuts a row at the borders of all parts, and gives each piece to the worker to whose part it belongs. */
const cut = (
  row: Checkpoint.Checkpoint,
  { assignment, projection, replicaSet }: Input,
  owners: ReadonlyArray<Assignment>
): ReadonlyArray<Checkpoint.Checkpoint> => {
  const pieces = owners.flatMap((one) => {
    // Whether progress under another filter counts is decided by the projection's definition in the owner.
    const filter = one === assignment ? projection.filter : row.filter
    return one.parts.flatMap((part) => HashRange.cut(row.range, part).inside ?? [])
      .map((range) => give(row, range, one.fence, { replicaSet, filter }))
  })
  const rest = HashRange.gaps(pieces.map(({ range }) => range), row.range)
  return [...pieces, ...rest.map((range) => release(row, range, replicaSet))]
}

/** Clears the fence, so that the worker to whose share the range will belong can claim it. */
const release = (
  row: Checkpoint.Checkpoint,
  range: HashRange.HashRange,
  replicaSet: string
): Checkpoint.Checkpoint => ({ ...row, range, fence: undefined, replicaSet, halt: haltIn(row, range) })

/** Writes a worker's fence, after which every write under an earlier fence is refused. */
const give = (
  row: Checkpoint.Checkpoint,
  range: HashRange.HashRange,
  fence: Checkpoint.Fence,
  under: { readonly replicaSet: string; readonly filter: string }
): Checkpoint.Checkpoint => {
  const halt = haltIn(row, range)
  // A worker that registered after the one whose handler failed may contain the fix, so it retries the event.
  // Incarnations order registrations even when the database's clock is set back.
  const isRetried = halt !== undefined && fence.incarnation > halt.incarnation
  return { ...row, ...under, range, fence, halt: isRetried ? undefined : halt }
}

const haltIn = (row: Checkpoint.Checkpoint, range: HashRange.HashRange): Checkpoint.Halt | undefined =>
  row.halt !== undefined && HashRange.includes(range, row.halt.hash) ? row.halt : undefined

/** Merges adjacent rows that have the same owner, position and filter, and no halt, except at the borders of parts. */
const merge = (
  rows: ReadonlyArray<Checkpoint.Checkpoint>,
  parts: ReadonlyArray<HashRange.HashRange>
): ReadonlyArray<Checkpoint.Checkpoint> => {
  const borders = new Set(parts.map(({ start }) => start))
  const merged: Array<Checkpoint.Checkpoint> = []
  for (const row of [...rows].sort((a, b) => a.range.start - b.range.start)) {
    const last = merged[merged.length - 1]
    if (last !== undefined && !borders.has(row.range.start) && canMerge(last, row)) {
      merged[merged.length - 1] = { ...last, range: { start: last.range.start, end: row.range.end } }
    } else {
      merged.push(row)
    }
  }
  return merged
}

const canMerge = (left: Checkpoint.Checkpoint, right: Checkpoint.Checkpoint): boolean =>
  left.range.end === right.range.start && left.position === right.position && left.filter === right.filter &&
  left.halt === undefined && right.halt === undefined && Checkpoint.hasSameOwner(left, right)

/**
 * Whether a row changes in nothing but the generation of its fence. Such a row is not written: its old fence remains
 * valid.
 */
const isUnchanged = (after: Checkpoint.Checkpoint) => (before: Checkpoint.Checkpoint): boolean =>
  HashRange.equals(before.range, after.range) && before.position === after.position &&
  before.replicaSet === after.replicaSet && before.filter === after.filter && before.halt === after.halt &&
  Checkpoint.hasSameOwner(before, after)
