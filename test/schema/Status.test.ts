import { assert, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as Status from "../../src/schema/Status.ts"

const Natural = Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: Status.lagWindow })))

it.prop("the lag is exact within the window, and an estimate that is never above the distance beyond it", {
  read: Natural,
  matching: Natural,
  further: Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum: 1_000_000_000 })))
}, ({ further, matching, read }) => {
  const window = { read, limit: Status.lagWindow, matching: Math.min(read, matching), oldest: undefined }
  const position = 5n
  const head = position + BigInt(read + (read < Status.lagWindow ? 0 : further))
  const { events, isEstimate } = Status.lag(window, position, head)
  assert.strictEqual(isEstimate, read === Status.lagWindow)
  if (!isEstimate) return assert.strictEqual(events, BigInt(window.matching))
  assert.isTrue(events >= 0n && events <= head - position)
  const exact = Number(head - position) * window.matching / read
  assert.isAtMost(Math.abs(Number(events) - exact), 1 + exact / 1000 + Number(head - position) / 1_000_000)
})
