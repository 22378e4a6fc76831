import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import * as HashRange from "../../src/schema/HashRange.ts"

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))

const range = Arbitrary.map(
  Arbitrary.all([Arbitrary.schema(int(0, 1000)), Arbitrary.schema(int(1, 1000))]),
  ([start, length]): HashRange.HashRange => ({ start, end: start + length })
)

describe("HashRange", () => {
  it.prop("the partitions of any total tile the space and differ in size by at most one", { total: int(1, 3000) }, ({
    total
  }) => {
    const all = Array.from({ length: total }, (_, key) => HashRange.partition(key, total))
    assert.isTrue(HashRange.tiles(all))
    const sizes = all.map(HashRange.size)
    assert.isAtMost(Math.max(...sizes) - Math.min(...sizes), 1)
  })

  it.prop("partition borders are exact for totals below two million", {
    total: int(1, 2_000_000),
    part: int(0, 100)
  }, ({
    part,
    total
  }) => {
    const key = Math.floor((total - 1) * part / 100)
    const exact = (numerator: number) => Number(BigInt(numerator) * 2n ** 32n / BigInt(total))
    assert.deepStrictEqual(HashRange.partition(key, total), { start: exact(key), end: exact(key + 1) })
  })

  it.prop("the parts of a cut tile the range, and only the inner one lies in the border", { range, border: range }, ({
    border,
    range
  }) => {
    const { after, before, inside } = HashRange.cut(range, border)
    const parts = [before, inside, after].filter((part) => part !== undefined)
    assert.isTrue(HashRange.tiles(parts, range))
    assert.strictEqual(inside !== undefined, HashRange.overlaps(range, border))
    if (inside !== undefined) assert.isTrue(HashRange.contains(border, inside))
    for (const outside of [before, after]) {
      if (outside !== undefined) assert.isFalse(HashRange.overlaps(outside, border))
    }
    assert.strictEqual(before === undefined && after === undefined, HashRange.contains(border, range))
  })

  it.prop("contains requires every hash, overlaps a shared one", { a: range, b: range }, ({ a, b }) => {
    const hashes = Array.from({ length: HashRange.size(b) }, (_, index) => b.start + index)
    assert.strictEqual(HashRange.contains(a, b), hashes.every((hash) => HashRange.includes(a, hash)))
    assert.isTrue(hashes.every((hash) => HashRange.includes(b, hash)))
    assert.isFalse(HashRange.includes(b, b.end) || HashRange.includes(b, b.start - 1))
    assert.strictEqual(HashRange.overlaps(a, b), hashes.some((hash) => HashRange.includes(a, hash)))
  })

  it.prop(
    "ranges tile in any order, but not with a hole or an overlap",
    { borders: Arbitrary.array(Arbitrary.schema(int(1, HashRange.hashSpace - 2))), at: int(0, 100) },
    ({ at, borders }) => {
      const cuts = [...new Set([0, ...borders, HashRange.hashSpace])].sort((a, b) => a - b)
      const ranges = cuts.slice(1).map((end, index) => ({ start: cuts[index]!, end })).reverse()
      assert.isTrue(HashRange.tiles(ranges))
      const index = at % ranges.length
      const one = ranges[index]!
      assert.isFalse(HashRange.tiles(ranges.toSpliced(index, 1)))
      assert.isFalse(HashRange.tiles([...ranges, one]))
      assert.isFalse(HashRange.tiles(ranges.with(index, { start: one.start, end: one.end - 1 })))
      assert.isFalse(HashRange.tiles(ranges.with(index, { start: one.start + 1, end: one.end })))
      assert.isFalse(HashRange.tiles(ranges.with(index, { start: one.start, end: one.end + 1 })))
    }
  )

  it("no ranges do not tile, and an empty range is invalid", () => {
    assert.isFalse(HashRange.tiles([]))
    assert.isFalse(HashRange.tiles([{ start: 0, end: 0 }, HashRange.whole]))
    assert.strictEqual(HashRange.format(HashRange.whole), "[0, 4294967296)")
    assert.strictEqual(HashRange.format({ start: 1, end: 2 }), "[1, 2)")
  })
})
