import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import * as Generation from "../../src/schema/Generation.ts"
import * as HashRange from "../../src/schema/HashRange.ts"

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))

const population = 7
const projections = ["orders", "users"]

/** The live workers at one moment, those of them restarted under a new incarnation, and their projections. */
const Moment = Schema.Struct({
  present: int(1, 2 ** population - 1),
  restarted: int(0, 2 ** population - 1),
  mask: int(0, 8)
})
const moments = Arbitrary.array(Arbitrary.schema(Moment), { minLength: 1, maxLength: 12 })

interface Change {
  readonly previous: Generation.Generation | undefined
  readonly live: ReadonlyArray<Generation.Member>
  readonly generation: Generation.Generation
}

const bit = (mask: number, index: number): boolean => (mask & (1 << index)) !== 0

const history = (all: ReadonlyArray<typeof Moment.Type>): ReadonlyArray<Change> => {
  const changes: Array<Change> = []
  let incarnations = 0n
  let known = new Map<number, Generation.Member>()
  let previous: Generation.Generation | undefined
  for (const { mask, present, restarted } of all) {
    const now = new Map<number, Generation.Member>()
    // The order of registration differs from the order of ids.
    for (const index of [3, 0, 5, 1, 6, 2, 4]) {
      if (!bit(present, index)) continue
      const before = known.get(index)
      now.set(
        index,
        before !== undefined && !bit(restarted, index)
          ? before
          : { workerId: `w${index}`, incarnation: ++incarnations, projections: projections.slice((mask + index) % 2) }
      )
    }
    known = now
    const live = [...now.values()].sort((a, b) => a.workerId < b.workerId ? -1 : 1)
    const generation = Generation.next("main", previous, live)
    changes.push({ previous, live, generation })
    previous = generation
  }
  return changes
}

const keyById = (generation: Generation.Generation, workerId: string): number =>
  generation.members.findIndex((member) => member.workerId === workerId)

describe("Generation", () => {
  it.prop("next contains exactly the live workers and increments the generation id", { moments }, ({ moments }) => {
    for (const { generation, live, previous } of history(moments)) {
      assert.isTrue(Generation.isCurrent(generation, live))
      assert.sameMembers([...generation.members], [...live])
      assert.strictEqual(generation.generationId, (previous?.generationId ?? 0n) + 1n)
      for (const [key, member] of generation.members.entries()) {
        assert.strictEqual(Generation.partitionKey(generation, member), key)
        assert.strictEqual(Generation.partitionKey(generation, { ...member, incarnation: 1_000_000n }), -1)
      }
    }
  })

  it.prop("next does not depend on the order of the live workers", { moments, turn: int(0, 6) }, ({
    moments,
    turn
  }) => {
    for (const { generation, live, previous } of history(moments)) {
      const turned = [...live.slice(turn % live.length), ...live.slice(0, turn % live.length)]
      assert.deepStrictEqual(Generation.next("main", previous, turned), generation)
      assert.deepStrictEqual(Generation.next("main", previous, turned.toReversed()), generation)
    }
  })

  it.prop("members keep keys below N; members with higher keys, then newcomers by incarnation, fill the gaps", {
    moments
  }, ({ moments }) => {
    for (const { generation, live, previous } of history(moments)) {
      const oldKey = (member: Generation.Member) => previous === undefined ? -1 : keyById(previous, member.workerId)
      const stays = (member: Generation.Member) => oldKey(member) >= 0 && oldKey(member) < live.length
      for (const member of live.filter(stays)) {
        assert.strictEqual(Generation.partitionKey(generation, member), oldKey(member))
      }
      const moved = generation.members.filter((member) => oldKey(member) >= live.length)
      const fresh = generation.members.filter((member) => oldKey(member) < 0)
      assert.deepStrictEqual(generation.members.filter((member) => !stays(member)), [...moved, ...fresh])
      assert.deepStrictEqual(moved, [...moved].sort((a, b) => oldKey(a) - oldKey(b)))
      assert.deepStrictEqual(fresh, [...fresh].sort((a, b) => a.incarnation < b.incarnation ? -1 : 1))
    }
  })

  it.prop("isCurrent detects every change of members and projections", { moments }, ({ moments }) => {
    const { generation, live } = history(moments).at(-1)!
    const [one, ...rest] = live
    assert.isTrue(Generation.isCurrent(generation, live.toReversed()))
    assert.isFalse(Generation.isCurrent(generation, rest))
    assert.isFalse(Generation.isCurrent(generation, [...live, { ...one!, workerId: "new", incarnation: 99n }]))
    assert.isFalse(Generation.isCurrent(generation, [...rest, { ...one!, workerId: "new" }]))
    assert.isFalse(Generation.isCurrent(generation, [...rest, { ...one!, incarnation: 99n }]))
    assert.isFalse(Generation.isCurrent(generation, [...rest, { ...one!, projections: ["stock"] }]))
    assert.isFalse(
      Generation.isCurrent(generation, [...rest, { ...one!, projections: [...one!.projections, "stock"] }])
    )
    assert.isTrue(
      Generation.isCurrent(generation, [...rest, { ...one!, projections: one!.projections.toReversed() }])
    )
  })

  it.prop("the shares of a projection tile the space among its carriers", { moments }, ({ moments }) => {
    for (const { generation } of history(moments)) {
      for (const projection of [...projections, "stock"]) {
        const carriers = generation.members.filter((member) => member.projections.includes(projection))
        const shares = generation.members.map((member) => Generation.share(generation, projection, member))
        for (const member of generation.members) {
          assert.isUndefined(Generation.share(generation, projection, { ...member, incarnation: 1_000_000n }))
        }
        const given = shares.filter((share) => share !== undefined)
        assert.lengthOf(given, carriers.length)
        if (carriers.length > 0) assert.isTrue(HashRange.tiles(given))
        // Members with higher keys get higher hashes.
        assert.deepStrictEqual(given, [...given].sort((a, b) => a.start - b.start))
      }
    }
  })

  it.prop("each member is watched by exactly one other member", { moments }, ({ moments }) => {
    for (const { generation } of history(moments)) {
      const watched = generation.members.map((member) => Generation.neighbour(generation, member))
      if (generation.members.length < 2) assert.deepStrictEqual(watched, [undefined])
      else assert.sameMembers(watched, [...generation.members])
      for (const [key, member] of watched.entries()) assert.notStrictEqual(member, generation.members[key])
      assert.isUndefined(Generation.neighbour(generation, { workerId: "nobody", incarnation: 0n }))
    }
  })

  describe("movement", () => {
    const member = (index: number, incarnation = index): Generation.Member => ({
      workerId: `w${index}`,
      incarnation: BigInt(incarnation),
      projections: ["orders"]
    })
    const of = (total: number): Generation.Generation =>
      Generation.next("main", undefined, Array.from({ length: total }, (_, index) => member(index)))

    /** The part of the hash space whose owner changes. */
    const moved = (before: Generation.Generation, after: Generation.Generation): number => {
      let stayed = 0
      for (const one of before.members) {
        const old = Generation.share(before, "orders", one)!
        const other = after.members.find(({ workerId }) => workerId === one.workerId)
        const inside = other && HashRange.cut(old, Generation.share(after, "orders", other)!).inside
        if (inside !== undefined) stayed += HashRange.size(inside)
      }
      return HashRange.hashSpace - stayed
    }

    it.prop("adding a member or removing the last one moves half of the space", { total: int(1, 60) }, ({ total }) => {
      const before = of(total)
      const after = Generation.next("main", before, [...before.members, member(total)])
      assert.closeTo(moved(before, after), HashRange.hashSpace / 2, total + 1)
      const back = Generation.next("main", after, after.members.slice(0, -1))
      assert.closeTo(moved(after, back), HashRange.hashSpace / 2, total + 1)
    })

    it.prop("removing a member moves at most half of the space and one share", {
      total: int(2, 60),
      who: int(0, 59)
    }, ({ total, who }) => {
      const before = of(total)
      const after = Generation.next("main", before, before.members.toSpliced(who % total, 1))
      assert.isAtMost(moved(before, after), HashRange.hashSpace / 2 + HashRange.hashSpace / (total - 1) + total)
    })

    it.prop("replacing several members at once moves only their shares", {
      total: int(1, 60),
      gone: Schema.Array(int(0, 59))
    }, ({ gone, total }) => {
      const before = of(total)
      const leavers = [...new Set(gone.map((index) => index % total))]
      const stay = before.members.filter((_, key) => !leavers.includes(key))
      const after = Generation.next("main", before, [...leavers.map((_, index) => member(100 + index)), ...stay])
      const given = leavers.map((key) => HashRange.size(HashRange.partition(key, total))).reduce((a, b) => a + b, 0)
      assert.strictEqual(moved(before, after), given)
    })

    it.prop("a restart under the same id moves no hash", { total: int(1, 60), who: int(0, 59) }, ({ total, who }) => {
      const before = of(total)
      const index = who % total
      const after = Generation.next("main", before, before.members.with(index, member(index, 1000)))
      assert.strictEqual(moved(before, after), 0)
    })
  })
})
