import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as RangePlan from "../../src/schema/RangePlan.ts"

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))

const self = { workerId: "self", incarnation: 5n }

/** One row of a projection; `owner` is a live worker, a dead one, or none. */
const Row = Schema.Struct({
  length: int(1, 4),
  owner: Schema.Literals(["self", "other", "dead", "none"]),
  position: int(0, 1),
  halted: Schema.Literals(["no", "no", "earlier", "later"]),
  state: Schema.Literals(["idle", "idle", "idle", "active", "locked"])
})
const rows = Arbitrary.array(Arbitrary.schema(Row), { maxLength: 8 })

/**
 * The start and end of the share in eighths of the space, none if the start is not before the end, and the length of its
 * parts.
 */
const share = Schema.Struct({ start: int(0, 7), end: int(0, 8), part: int(1, 8) })
type Share = typeof share.Type

const partsOf = ({ end, part, start }: Share): ReadonlyArray<HashRange.HashRange> =>
  Array.from({ length: Math.max(0, Math.ceil((end - start) / part)) }, (_, index) => ({
    start: HashRange.partition(start + index * part, 8).start,
    end: HashRange.partition(Math.min(end, start + (index + 1) * part) - 1, 8).end
  }))

/** Two other workers, whose shares are the hashes before and after the share. */
const othersOf = ({ end, start }: Share): ReadonlyArray<RangePlan.Assignment> => {
  const before = { start: 0, end: HashRange.partition(start, 8).start }
  const after = { start: end === 8 ? HashRange.hashSpace : HashRange.partition(end, 8).start, end: HashRange.hashSpace }
  return (start < end ? [before, after] : [HashRange.whole]).filter(({ end, start }) => start < end)
    .map((range, index) =>
      RangePlan.assign([range], { workerId: index === 0 ? "other" : "third", incarnation: 4n, generationId: 2n })!
    )
}

interface World {
  readonly rows: ReadonlyArray<Checkpoint.Checkpoint>
  readonly input: RangePlan.Input
}

const worldOf = (
  given: ReadonlyArray<typeof Row.Type>,
  share: Share,
  { foreign, isAlone }: { readonly foreign: boolean; readonly isAlone: boolean }
): World => {
  const total = given.reduce((sum, { length }) => sum + length, 0)
  const [candidateKeys, lockedKeys] = [new Set<string>(), new Set<string>()]
  let offset = 0
  const rows = given.map(({ halted, length, owner, position, state }): Checkpoint.Checkpoint => {
    const range = {
      start: HashRange.partition(offset, total).start,
      end: HashRange.partition(offset + length - 1, total).end
    }
    offset += length
    const row: Checkpoint.Checkpoint = {
      projection: "orders",
      range,
      position: BigInt(position),
      replicaSet: foreign ? "other" : "main",
      filter: "all",
      fence: owner === "none" ? undefined : {
        workerId: owner,
        incarnation: owner === "self" ? self.incarnation : 4n,
        generationId: 1n
      },
      halt: halted === "no" ? undefined : {
        since: new Date(0),
        error: "broken",
        position: 2n,
        eventId: "e",
        hash: range.start,
        incarnation: halted === "earlier" ? 3n : 6n
      }
    }
    const isActive = owner === "self" ? state === "active" : owner === "other"
    if (!isActive) candidateKeys.add(Checkpoint.key(row))
    if (state === "locked") lockedKeys.add(Checkpoint.key(row))
    return row
  })
  return {
    rows,
    input: {
      replicaSet: "main",
      projection: { name: "orders", filter: "all", startPosition: 7n },
      worker: self,
      assignment: RangePlan.assign(partsOf(share), { ...self, generationId: 2n }),
      others: () => isAlone ? [] : othersOf(share),
      isIndivisible: false,
      isCarried: share.start < share.end,
      rows,
      candidateKeys,
      lockedKeys,
      isDoubted: false
    }
  }
}

const written = ({ claim, handOver, release, renew }: RangePlan.RangePlan) => [
  ...release,
  ...handOver,
  ...claim,
  ...renew
]

const apply = (rows: ReadonlyArray<Checkpoint.Checkpoint>, plan: RangePlan.RangePlan) => {
  const after = new Map([...rows, ...plan.create].map((row) => [Checkpoint.key(row), row]))
  for (const row of plan.remove) after.delete(Checkpoint.key(row))
  for (const row of written(plan)) after.set(Checkpoint.key(row), row)
  return [...after.values()].sort((a, b) => a.range.start - b.range.start)
}

const rowAt = (rows: ReadonlyArray<Checkpoint.Checkpoint>, hash: number) =>
  rows.find(({ range }) => HashRange.includes(range, hash))

/** The fence of the other worker to whose share a hash belongs. */
const ownerOf = ({ others }: RangePlan.Input, hash: number) =>
  others().find(({ share }) => HashRange.includes(share, hash))?.fence

const isMine = (row: Checkpoint.Checkpoint | undefined) => row !== undefined && Checkpoint.isHeldBy(row, self)

const options = (seed: string) => ({ arbitrary: { runs: 2000, size: 40, seed } })

describe("RangePlan", () => {
  it.prop(
    "each hash keeps its position and its one row, and changes its owner only by a claim, a hand-over or a release",
    { rows, share, foreign: Schema.Boolean, isAlone: Schema.Boolean },
    ({ rows: given, share, ...options }) => {
      const { input, rows: before } = worldOf(given, share, options)
      const plan = RangePlan.make(input)
      const after = apply(before, plan)
      if (after.length > 0) assert.isTrue(HashRange.tiles(after.map(({ range }) => range)))
      // A plan takes over all rows of another replica set or none.
      if (input.assignment !== undefined) assert.lengthOf(new Set(after.map(({ replicaSet }) => replicaSet)), 1)
      const isIn = (rows: ReadonlyArray<Checkpoint.Checkpoint>, hash: number) => rowAt(rows, hash) !== undefined
      for (const hash of [...before, ...after].flatMap(({ range }) => [range.start, range.end - 1])) {
        const [was, now] = [rowAt(before, hash), rowAt(after, hash)!]
        assert.strictEqual(now.position, was?.position ?? input.projection.startPosition)
        const isInShare = input.assignment !== undefined && HashRange.includes(input.assignment.share, hash)
        if (isIn(plan.claim, hash)) assert.isTrue(isInShare, "claimed outside the share")
        if (isIn(plan.renew, hash)) assert.isTrue(isMine(was) && isInShare, "renewed what it did not own")
        if (isIn(plan.release, hash)) assert.isTrue(now.fence === undefined && ownerOf(input, hash) === undefined)
        if (isIn(plan.handOver, hash)) assert.deepStrictEqual(now.fence, ownerOf(input, hash))
        if (!isMine(was) && isMine(now)) assert.isTrue(isIn(plan.claim, hash))
        if (isMine(was) && !isMine(now)) {
          assert.isTrue((isIn(plan.release, hash) || isIn(plan.handOver, hash)) && !isInShare)
        }
        if (was === undefined) continue
        const key = Checkpoint.key(was)
        if (!input.candidateKeys.has(key) || input.lockedKeys.has(key)) assert.strictEqual(now, was)
        if (was.halt?.hash !== hash) continue
        const isRetried = isIn(written(plan), hash) && now.fence !== undefined &&
          was.halt.incarnation < now.fence.incarnation
        assert.strictEqual(now.halt, isRetried ? undefined : was.halt)
      }
    },
    options("owners")
  )

  it.prop(
    "one plan makes every possible change: it claims, releases and merges all, and the next one is empty",
    { rows, share, foreign: Schema.Boolean, isAlone: Schema.Boolean },
    ({ rows: given, share, ...options }) => {
      const { input, rows: before } = worldOf(given, share, options)
      const plan = RangePlan.make(input)
      const after = apply(before, plan)
      const isCandidate = (row: Checkpoint.Checkpoint) => {
        const was = rowAt(before, row.range.start)
        if (row.fence !== undefined && !isMine(row) && row !== was) return false
        return was === undefined || input.candidateKeys.has(Checkpoint.key(was))
      }
      const candidateKeys = new Set(after.filter(isCandidate).map(Checkpoint.key))
      const again = RangePlan.make({ ...input, rows: after, candidateKeys })
      assert.deepStrictEqual([...again.create, ...written(again), ...again.remove], [])
      assert.deepStrictEqual(again.ownedRows, plan.ownedRows)
      assert.strictEqual(again.isComplete, plan.isComplete)
      const owned = plan.ownedRows.map(({ range }) => range)
      assert.strictEqual(
        plan.isComplete,
        input.assignment === undefined
          ? owned.length === 0
          : input.assignment.parts.every((part) =>
            HashRange.tiles(owned.filter((range) => HashRange.contains(part, range)), part)
          ) && HashRange.tiles(owned, input.assignment.share)
      )
      const isFree = (row: Checkpoint.Checkpoint) => isCandidate(row) && !input.lockedKeys.has(Checkpoint.key(row))
      for (const [index, right] of after.entries()) {
        const left = after[index - 1]
        if (left === undefined || ![left, right].every((row) => isFree(row) && isMine(row))) continue
        // Rows of another replica set are left alone until all of them can be claimed.
        if (right.replicaSet !== input.replicaSet) continue
        const isSplit = left.position !== right.position || left.halt !== undefined || right.halt !== undefined ||
          input.assignment?.parts.some(({ start }) => start === right.range.start)
        assert.isTrue(isSplit, "adjacent rows that could have been merged")
      }
    },
    options("completeness")
  )

  it.prop(
    "no row that the plan writes with the worker's fence lies in two parts",
    { rows, share, foreign: Schema.Boolean, isAlone: Schema.Boolean },
    ({ rows: given, share, ...options }) => {
      const { input } = worldOf(given, share, options)
      const { claim, renew } = RangePlan.make(input)
      for (const { range } of [...claim, ...renew]) assert.isTrue(RangePlan.isInPart(input.assignment!.parts, range))
    },
    options("parts")
  )
})
