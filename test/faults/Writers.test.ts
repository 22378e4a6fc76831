/**
 * Writers that do not use this library.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import * as Harness from "./Harness.ts"
import { test } from "./Live.ts"

test("events of writers that send no notification are found", function*({ harness }) {
  yield* harness.append(300, { through: "sql" })
  yield* harness.start("a")
  yield* harness.start("b")
  yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
  yield* harness.append(600, { through: "sql", writers: 8 })
  yield* harness.append(100, { through: "store", prefix: "s" })
  const end = yield* harness.quiesce()
  assert.strictEqual(end.events, 1000)
  assert.deepStrictEqual(end.refusals, [])
})
