import { assert, it } from "@effect/vitest"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Calibration from "./Calibration.ts"

const { loop, statements } = Calibration.reference

it("the slower of the two measurements decides, between 1 and 10", () => {
  const cases: ReadonlyArray<readonly [loop: number, statements: number, slowness: number]> = [
    [loop, statements, 1],
    [loop / 2, statements / 2, 1],
    [loop * 2, statements, 2],
    [loop, statements * 3.01, 3.1],
    [loop * 2, statements * 100, 10]
  ]
  for (const [loop, statements, slowness] of cases) {
    assert.strictEqual(Calibration.slownessOf({ loop, statements }), slowness)
  }
})

it("the measurement of this run reaches test processes, and scales their limits", () => {
  assert.isDefined(process.env[PostgresTest.serverVariable])
  const slowness = Number(process.env[TimeLimits.variable])
  assert.isAtLeast(slowness, 1)
  assert.strictEqual(TimeLimits.slowness, slowness)
  assert.strictEqual(TimeLimits.scaledMillis(1000), Math.ceil(1000 * slowness))
})
