import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import * as Announcement from "../../src/schema/Announcement.ts"
import * as HashRange from "../../src/schema/HashRange.ts"

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))

const hash = Arbitrary.schema(int(0, HashRange.hashSpace - 1))

/** At least one. */
const hashes = Arbitrary.map(Arbitrary.all([hash, Arbitrary.array(hash)]), ([first, rest]) => [first, ...rest])

const part = Arbitrary.map(
  Arbitrary.all([Arbitrary.schema(int(1, 100)), Arbitrary.schema(int(0, 99))]),
  ([total, key]) => HashRange.partition(key % total, total)
)

/** Different hashes, as many as given. */
const distinct = (count: number) => Array.from({ length: count }, (_, index) => HashRange.hashSpace - 1 - index)

/** Whether both concern the same ranges, among those that one of the hashes can distinguish. */
const concernSame = (a: Announcement.Announcement, b: Announcement.Announcement, hashes: ReadonlyArray<number>) =>
  [undefined, ...hashes.map((start) => ({ start, end: start + 1 }))].every((range) =>
    Announcement.concerns(a, range) === Announcement.concerns(b, range)
  )

describe("Announcement", () => {
  it.prop("a payload concerns the ranges of its hashes and no others", { hashes, part }, ({ hashes, part }) => {
    const decoded = Announcement.decode(Announcement.encode(Announcement.make(hashes)))
    const isConcerned = new Set(hashes).size > Announcement.maxHashes ||
      hashes.some((hash) => HashRange.includes(part, hash))
    assert.strictEqual(Announcement.concerns(decoded, part), isConcerned)
    assert.isTrue(Announcement.concerns(decoded, undefined))
  })

  it.prop("merging loses no hash, in any order", { a: hashes, b: hashes, c: hashes }, ({ a, b, c }) => {
    const every = [...a, ...b, ...c]
    const merged = Announcement.merge(
      Announcement.merge(Announcement.make(a), Announcement.make(b)),
      Announcement.make(c)
    )
    for (const start of every) assert.isTrue(Announcement.concerns(merged, { start, end: start + 1 }))
    const other = Announcement.merge(
      Announcement.make(c),
      Announcement.merge(Announcement.make(a), Announcement.make(b))
    )
    assert.isTrue(concernSame(merged, other, every))
    assert.isTrue(concernSame(merged, Announcement.make(every), every))
  })

  it("the largest payload is accepted by NOTIFY, and more hashes concern all", () => {
    const most = Announcement.make(distinct(Announcement.maxHashes))
    const payload = Announcement.encode(most)
    assert.isBelow(payload.length, 8000)
    assert.deepStrictEqual(Announcement.decode(payload), most)
    const more = Announcement.merge(most, Announcement.make([0]))
    assert.strictEqual(more, Announcement.all)
    assert.strictEqual(Announcement.merge(Announcement.make([0]), more), Announcement.all)
    assert.strictEqual(Announcement.encode(more), "appended")
    assert.strictEqual(
      Announcement.decode(`appended:${distinct(Announcement.maxHashes + 1).join(",")}`),
      Announcement.all
    )
  })

  it("other payloads concern all readers", () => {
    for (
      const payload of [
        "",
        "appended",
        // Go services notify with the last position.
        "123456",
        "{\"position\":\"2\"}",
        "appended:",
        "appended:1,",
        "appended:,1",
        "appended:-1",
        "appended:1.5",
        "appended:1e3",
        "appended: 1",
        "appended:1;2",
        "appended:4294967296",
        "appended:1,99999999999",
        "appended:1\n",
        "appended:1\nappended:2",
        "x appended:1",
        "Appended:1"
      ]
    ) assert.strictEqual(Announcement.decode(payload), Announcement.all, JSON.stringify(payload))
    assert.deepStrictEqual(
      Announcement.decode("appended:0,4294967295"),
      Announcement.make([0, HashRange.hashSpace - 1])
    )
  })
})
