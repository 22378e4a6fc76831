import { assert, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as LagWindow from "../../src/schema/LagWindow.ts"

const Natural = Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: LagWindow.largest })))

it.prop("the lag is exact within the window, and an estimate that is never above the distance beyond it", {
  read: Natural,
  matching: Natural,
  further: Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: 1_000_000_000 })))
}, ({ further, matching, read }) => {
  const window = { read, limit: LagWindow.largest, matching: Math.min(read, matching), oldest: undefined }
  const position = 5n
  const head = position + BigInt(read + (read < LagWindow.largest ? 0 : further))
  const { events, isEstimate } = LagWindow.lag(window, position, head)
  assert.strictEqual(isEstimate, read === LagWindow.largest)
  if (!isEstimate) return assert.strictEqual(events, BigInt(window.matching))
  assert.isTrue(events >= 0n && events <= head - position)
  const exact = Number(head - position) * window.matching / read
  assert.isAtMost(Math.abs(Number(events) - exact), 1 + exact / 1000 + Number(head - position) / 1_000_000)
})
