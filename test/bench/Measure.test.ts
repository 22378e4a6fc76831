import { assert, describe, it } from "@effect/vitest"
import { atLeast, atMost, median, medianRatio, percentile, shown } from "../../bench/Measure.ts"

describe("Measure", () => {
  it("compares the value itself with the target, not the rounded one", () => {
    assert.deepStrictEqual(atMost("p99", 50.04, "ms", 50), {
      name: "p99",
      value: 50,
      unit: "ms",
      target: "≤ 50",
      ok: false
    })
    assert.isFalse(atLeast("ratio", 0.8999, "ratio", 0.9).ok)
    assert.isTrue(atLeast("ratio", 0.9, "ratio", 0.9).ok)
  })

  it("misses the target when nothing was measured", () => {
    assert.isFalse(atMost("p50", median([]), "ms", 10).ok)
    assert.isFalse(atLeast("ratio", median([]), "ratio", 1).ok)
  })

  it("shows a value without a target", () => {
    const { ok, target } = shown("rate", 123_456, "events/s")
    assert.deepStrictEqual({ ok, target }, { ok: true, target: "–" })
  })

  it("takes percentiles of unsorted values", () => {
    const values = Array.from({ length: 100 }, (_, index) => 99 - index)
    assert.strictEqual(percentile(values, 0.5), 50)
    assert.strictEqual(percentile(values, 0.99), 99)
    assert.strictEqual(percentile(values, 1), 99)
  })

  it("takes the ratio inside each round", () => {
    // The last round is ten times slower for both.
    assert.strictEqual(medianRatio([2, 4, 0.3], [1, 2, 0.1]), 2)
  })
})
