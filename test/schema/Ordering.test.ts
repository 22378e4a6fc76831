import { assert, describe, it } from "@effect/vitest"
import { Arbitrary, Schema } from "effect"
import * as Ordering from "../../src/schema/Ordering.ts"

const workerIds = Arbitrary.array(Arbitrary.schema(Schema.String), { minLength: 1, maxLength: 8 })
const names = Array.from({ length: 60 }, (_, index) => `projection-${index}`)

describe("Ordering", () => {
  it("a projection without workers has no owner", () => {
    assert.isUndefined(Ordering.owner("users", []))
  })

  it.prop("the owner is one of the workers, whatever their order", { workerIds }, ({ workerIds }) => {
    for (const name of names) {
      const owner = Ordering.owner(name, workerIds)
      assert.include(workerIds, owner)
      assert.strictEqual(Ordering.owner(name, workerIds.toReversed()), owner)
    }
  })

  it.prop(
    "a worker that joins takes over only what it owns; when it leaves, everything is as before",
    { workerIds, newcomer: Schema.String },
    ({ newcomer, workerIds }) => {
      for (const name of names) {
        const after = Ordering.owner(name, [...workerIds, newcomer])
        if (after !== newcomer) assert.strictEqual(after, Ordering.owner(name, workerIds))
      }
    }
  )

  it("spreads projections over workers with similar ids and names", () => {
    for (const total of [2, 3, 8]) {
      const workers = Array.from({ length: total }, (_, index) => `worker-${index}`)
      const owned = new Map(workers.map((id) => [id, 0]))
      for (let index = 0; index < 2000; index++) {
        const owner = Ordering.owner(`projection-${index}`, workers)!
        owned.set(owner, owned.get(owner)! + 1)
      }
      // Of a fair draw, six standard deviations.
      const expected = 2000 / total
      for (const count of owned.values()) assert.closeTo(count, expected, 6 * Math.sqrt(expected))
    }
  })
})
