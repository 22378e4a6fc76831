import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Checkpoint from "../../../src/schema/Checkpoint.ts"
import * as Merging from "../../../src/services/worker/Merging.ts"
import type { Ranges } from "../../../src/services/worker/Ranges.ts"
import * as RangeState from "../../../src/services/worker/RangeState.ts"

const seconds = (n: number): bigint => BigInt(n) * 1_000_000_000n

/** The open ranges of a worker, and the starts of those that were closed. */
const rangesOf = (
  given: ReadonlyArray<Partial<RangeState.RangeState> & { readonly range: readonly [number, number] }>
) => {
  const all = new Map(given.map(({ range: [start, end], ...state }) => {
    const held = {
      projection: "users",
      range: { start, end },
      position: 5n,
      replicaSet: "main",
      fence: { workerId: "a", incarnation: 1n, generationId: 1n },
      filter: "",
      halt: undefined
    }
    return [Checkpoint.key(held), { ...RangeState.make(held, 0n), ...state }]
  }))
  const closed: Array<number> = []
  const ranges: Ranges = {
    all,
    open: () => Effect.void,
    close: (key) => Effect.sync(() => closed.push(all.get(key)!.held.range.start)),
    closeAll: () => Effect.void
  }
  return { all, closed, ranges }
}

const anyTwo = () => true

it.effect("closes adjacent ranges at the same position, at most every five seconds", () =>
  Effect.gen(function*() {
    const { closed, ranges } = rangesOf([{ range: [0, 1] }, { range: [1, 2] }, { range: [2, 3] }, { range: [4, 5] }])
    const merging = Merging.make(seconds(10))
    yield* Merging.closeAdjacent(merging, ranges, seconds(15), anyTwo)
    assert.deepStrictEqual(closed, [])
    yield* Merging.closeAdjacent(merging, ranges, seconds(16), anyTwo)
    assert.deepStrictEqual(closed, [0, 1, 2])
    yield* Merging.closeAdjacent(merging, ranges, seconds(20), anyTwo)
    assert.strictEqual(closed.length, 3)
  }))

it.effect("does not close adjacent ranges of different parts of the share", () =>
  Effect.gen(function*() {
    const { closed, ranges } = rangesOf([{ range: [0, 1] }, { range: [1, 2] }, { range: [2, 3] }])
    yield* Merging.closeAdjacent(Merging.make(seconds(10)), ranges, seconds(16), (_, right) => right.range.start === 2)
    assert.deepStrictEqual(closed, [1, 2])
  }))

const halt = { error: "", position: 6n, eventId: "" }

it.effect.each(
  [
    ["is at another position", { handledUpTo: 6n }],
    ["is closing", { closing: true }],
    ["is halted", { halt }],
    ["has a slow batch", { batchSince: seconds(15) }]
  ] as const
)("does not close a range for a neighbour that %s", ([, state]) =>
  Effect.gen(function*() {
    const { closed, ranges } = rangesOf([{ range: [0, 1] }, { range: [1, 2], ...state }])
    yield* Merging.closeAdjacent(Merging.make(seconds(10)), ranges, seconds(16), anyTwo)
    assert.deepStrictEqual(closed, [])
  }))

it.effect("opens no range of the projection until all have closed, but waits for a slow one for 250 ms only", () =>
  Effect.gen(function*() {
    const { all, ranges } = rangesOf([{ range: [0, 1] }, { range: [1, 2] }])
    const merging = Merging.make(seconds(0))
    assert.strictEqual(Merging.patienceMillis(merging), Infinity)
    yield* Merging.closeAdjacent(merging, ranges, seconds(6), anyTwo)
    all.delete([...all.keys()][0]!)
    Merging.forgetEnded(merging, new Set(all.keys()), seconds(6) + 250_000_000n)
    assert.deepStrictEqual([...Merging.projections(merging, ranges)], ["users"])
    assert.strictEqual(Merging.patienceMillis(merging), 251)
    Merging.forgetEnded(merging, new Set(all.keys()), seconds(6) + 251_000_000n)
    assert.strictEqual(Merging.projections(merging, ranges).size, 0)
  }))
