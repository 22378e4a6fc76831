import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Rounds from "../../bench/Rounds.ts"

const sample = (eventsPerSecond: number): Rounds.Sample => ({ eventsPerSecond, eventsPerCpuSecond: Number.NaN })

const took = { value: undefined, seconds: 2, cpuSeconds: 1, serverCpuSeconds: 3 }

describe("Rounds", () => {
  it.effect("alternates, and leaves the first round out", () =>
    Effect.gen(function*() {
      const order: Array<string> = []
      const alternative = (name: string) => (round: number) =>
        Effect.sync(() => {
          order.push(`${name}${round}`)
          return round
        })
      assert.deepStrictEqual(yield* Rounds.alternate(2, [alternative("a"), alternative("b")]), [[1, 2], [1, 2]])
      assert.deepStrictEqual(order, ["a0", "b0", "a1", "b1", "a2", "b2"])
    }))

  it.effect("tries the batch sizes again that came close to the best one", () =>
    Effect.gen(function*() {
      const tried: Array<string> = []
      const rates: Record<number, number> = { 100: 10, 1000: 75, 5000: 100 }
      const best = Rounds.bestOf([100, 1000, 5000], (size, round) =>
        Effect.sync(() => {
          tried.push(`${size} in round ${round}`)
          // The second best of the first round is the best of the second one.
          return sample(rates[size]! * (round === 1 && size === 1000 ? 2 : 1))
        }))
      assert.strictEqual((yield* best(0)).eventsPerSecond, 100)
      assert.strictEqual((yield* best(1)).eventsPerSecond, 150)
      assert.deepStrictEqual(tried.slice(3), ["1000 in round 1", "5000 in round 1"])
    }))

  it("adds the CPU time of client and server", () => {
    assert.deepStrictEqual(Rounds.sample(8, took, 100), { eventsPerSecond: 4, eventsPerCpuSecond: 2, batchSize: 100 })
  })

  it("has no measure of CPU time where the server's is unknown", () => {
    const known = [Rounds.sample(8, took)]
    assert.lengthOf(Rounds.cpuMeasure("cpu", known, known, 1), 1)
    assert.lengthOf(Rounds.cpuMeasure("cpu", [sample(8)], known, 1), 0)
    assert.include(Rounds.row("worker", [sample(8)]), "unknown")
  })
})
