/**
 * Writers that do not use this library.
 *
 * @module-tag long
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Harness from "./Harness.ts"

describe("writers", { concurrent: false }, () => {
  it.live("events of writers that send no notification are found", () =>
    Effect.gen(function*() {
      const harness = yield* Harness.Harness
      yield* harness.append(300, { through: "sql" })
      yield* harness.start("a")
      yield* harness.start("b")
      yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
      yield* harness.append(600, { through: "sql", writers: 8 })
      yield* harness.append(100, { through: "store", prefix: "s" })
      const end = yield* harness.quiesce()
      assert.strictEqual(end.events, 1000)
      assert.deepStrictEqual(end.refusals, [])
    }).pipe(Effect.scoped, Effect.provide(Harness.layer)))
})
