import { assert, describe, it } from "@effect/vitest"
import * as Result from "effect/Result"
import * as Schema from "effect/Schema"
import * as Json from "../../src/schema/Json.ts"

describe("Json", () => {
  it.prop("writes the text of JSON.stringify for every JSON value", { value: Schema.Json }, ({ value }) => {
    assert.deepStrictEqual(Json.encode("value", value), Result.succeed(JSON.stringify(value)))
  }, { arbitrary: { runs: 500, seed: "json" } })

  it("writes values up to 1000 levels deep and refuses deeper ones", () => {
    const nested = (levels: number): unknown => levels === 0 ? 1 : { in: nested(levels - 1) }
    assert.deepStrictEqual(Json.encode("value", nested(1000)), Result.succeed(JSON.stringify(nested(1000))))
    assert.deepStrictEqual(
      Json.encode("value", nested(1001)),
      Result.fail("value.in.in.in.in.in.in.in.in.in.in....in is nested more than 1000 levels deep")
    )
  })

  it("cuts long keys in the path", () => {
    assert.deepStrictEqual(
      Json.encode("value", { ["k".repeat(1000)]: Number.NaN }),
      Result.fail(`value["${"k".repeat(40)}..."] is NaN: JSON would write null`)
    )
  })

  it("refuses texts and keys that textProblem refuses", () => {
    const problem = (text: string) => text === "bad" ? "is bad" : undefined
    assert.deepStrictEqual(Json.encode("value", { a: ["bad"] }, problem), Result.fail("value.a[0] is bad"))
    assert.deepStrictEqual(Json.encode("value", { a: { bad: 1 } }, problem), Result.fail("value.a.bad is bad"))
  })
})
