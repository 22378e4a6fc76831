import { assert, describe, it } from "@effect/vitest"
import * as Recovery from "../../bench/hosts/Recovery.ts"

describe("Recovery", () => {
  const delays = [
    { due: 0, millis: 10 },
    { due: 100, millis: 400 },
    { due: 200, millis: 290 },
    { due: 300, millis: 20 }
  ]

  it("returns the part of the due events that is committed at the end of the interval", () => {
    assert.strictEqual(Recovery.throughputKept(delays, 0, 400), 0.5)
    assert.strictEqual(Recovery.throughputKept(delays, 50, 500), 2 / 3)
    assert.strictEqual(Recovery.throughputKept(delays, 0, 501), 1)
  })

  it("returns the time until the last late event is committed", () => {
    assert.strictEqual(Recovery.recoveryTime(delays, 150, 50), 350)
  })

  it("returns zero if the lag is normal at the end of the fault", () => {
    assert.strictEqual(Recovery.recoveryTime(delays, 600, 50), 0)
  })

  it("does not count a later delay once the lag has been normal for a second", () => {
    const later = [...delays, { due: 1600, millis: 500 }]
    assert.strictEqual(Recovery.recoveryTime(later, 150, 50), 350)
    assert.strictEqual(Recovery.recoveryTime([...delays, { due: 1300, millis: 500 }], 150, 50), 1650)
  })
})
