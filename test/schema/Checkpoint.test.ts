import { assert, describe, it } from "@effect/vitest"
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import * as HashRange from "../../src/schema/HashRange.ts"

const row: Checkpoint.Checkpoint = {
  projection: "orders",
  range: HashRange.partition(1, 2),
  position: 3n,
  replicaSet: "main",
  fence: { workerId: "w1", incarnation: 2n, generationId: 7n },
  filter: "all",
  halt: undefined
}

describe("Checkpoint", () => {
  it("the key of a row consists of its projection and range start", () => {
    assert.strictEqual(Checkpoint.key(row), "orders@2147483648")
    assert.strictEqual(Checkpoint.key({ ...row, range: HashRange.partition(2, 4) }), Checkpoint.key(row))
    assert.notStrictEqual(Checkpoint.key({ ...row, projection: "users" }), Checkpoint.key(row))
  })

  it("a row is held by one incarnation of a worker, in any generation", () => {
    assert.isTrue(Checkpoint.isHeldBy(row, { workerId: "w1", incarnation: 2n }))
    assert.isFalse(Checkpoint.isHeldBy(row, { workerId: "w1", incarnation: 3n }))
    assert.isFalse(Checkpoint.isHeldBy(row, { workerId: "w2", incarnation: 2n }))
    assert.isFalse(Checkpoint.isHeldBy({ ...row, fence: undefined }, { workerId: "w1", incarnation: 2n }))
  })

  it("a row is held as before only with the same range and every part of the fence", () => {
    const held: Checkpoint.Held = { ...row, fence: { workerId: "w1", incarnation: 2n, generationId: 7n } }
    assert.isTrue(Checkpoint.isHeldAs({ ...row, position: 9n, filter: "other" }, held))
    for (const other of [{ workerId: "w2" }, { incarnation: 3n }, { generationId: 8n }]) {
      assert.isFalse(Checkpoint.isHeldAs({ ...row, fence: { ...held.fence, ...other } }, held))
    }
    assert.isFalse(Checkpoint.isHeldAs({ ...row, fence: undefined }, held))
    assert.isFalse(Checkpoint.isHeldAs({ ...row, range: HashRange.partition(0, 2) }, held))
    assert.isFalse(Checkpoint.isHeldAs({ ...row, range: HashRange.partition(2, 4) }, held), "the row was cut")
    assert.isTrue(Checkpoint.isSameFence(undefined, undefined))
  })
})
