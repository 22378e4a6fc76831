import { assert, describe, it } from "@effect/vitest"
import type { Entry } from "../../bench/hosts/Messages.ts"
import * as Timeline from "../../bench/hosts/Timeline.ts"

const range = (start: number, end: number) => ({ start, end })

const entry = (at: number, tag: Entry["tag"], worker: string, more: Partial<Entry> = {}): Entry => ({
  at,
  tag,
  worker,
  host: 0,
  projection: "users",
  ...more
})

/** A has everything; B joins and gets the upper half. A's report of the stop may arrive after B's of the claim. */
const join = [
  entry(0, "RangeClaimed", "a", { range: range(0, 100) }),
  entry(12, "RangeClaimed", "a", { range: range(0, 50) }),
  entry(15, "RangeClaimed", "b", { range: range(50, 100) }),
  entry(10, "RangeStopped", "a", { range: range(0, 100) })
]

describe("Timeline", () => {
  it("returns the pause of each part of a range that is divided", () => {
    assert.sameDeepMembers([...Timeline.gaps(join, "users", 0)], [
      { before: "a", after: "a", from: 10, pause: 2 },
      { before: "a", after: "b", from: 10, pause: 5 }
    ])
  })

  it("counts a pause once, however many parts the range has later", () => {
    const later = entry(90, "RangeClaimed", "c", { range: range(75, 100) })
    assert.strictEqual(Timeline.gaps([...join, later], "users", 0).filter(({ after }) => after === "b").length, 1)
  })

  it("ignores pauses before the given time, and other projections", () => {
    assert.deepStrictEqual(Timeline.gaps(join, "users", 20), [])
    assert.deepStrictEqual(Timeline.gaps(join, "orders", 0), [])
  })

  it("counts the moves of a hash to another worker, not the claims by the same one", () => {
    const moves = [...join, entry(20, "RangeClaimed", "a", { range: range(75, 100) })]
    assert.strictEqual(Timeline.mostMoves(join, "users", 1, 100), 1)
    assert.strictEqual(Timeline.mostMoves(moves, "users", 1, 100), 2)
    assert.strictEqual(Timeline.mostMoves(moves, "users", 16, 100), 1)
  })

  it("returns the delay until the first commit that contains the hash and reaches the position", () => {
    const commits = [
      entry(10, "BatchCommitted", "a", { range: range(0, 50), position: 2 }),
      entry(20, "BatchCommitted", "b", { range: range(50, 100), position: 1 }),
      entry(30, "BatchCommitted", "b", { range: range(50, 100), position: 3 })
    ]
    const hashes = new Map([[1, 7], [2, 60], [3, 70], [4, 70]])
    assert.deepStrictEqual(
      Timeline.delays([1, 2, 3, 4], { positions: [1, 2, 3, 4] }, hashes, commits, "users"),
      [{ due: 1, millis: 9 }, { due: 2, millis: 28 }, { due: 3, millis: 27 }]
    )
  })
})
