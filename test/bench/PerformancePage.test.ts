import { assert, describe, it } from "@effect/vitest"
import { readFileSync } from "node:fs"
import * as PerformancePage from "../../bench/PerformancePage.ts"
import { benchmarks } from "../../bench/Registry.ts"

const page = "# Page\n\n<!-- upsert -->\n\nold\n\n<!-- /upsert -->\n\n<!-- upsert-batch -->\n<!-- /upsert-batch -->\n"

describe("PerformancePage", () => {
  it("replaces the section of one benchmark only, any number of times", () => {
    const once = PerformancePage.withSection(page, "upsert", "new")
    assert.strictEqual(once, page.replace("old", "new"))
    assert.strictEqual(PerformancePage.withSection(once, "upsert", "new"), once)
    assert.include(PerformancePage.withSection(page, "upsert-batch", "new"), "old")
  })

  it("leaves a page without the section as it is", () => {
    assert.strictEqual(PerformancePage.withSection(page, "start", "new"), page)
    assert.strictEqual(
      PerformancePage.withSection("<!-- /start --><!-- start -->", "start", "new"),
      "<!-- /start --><!-- start -->"
    )
  })

  it("has a section for each benchmark", () => {
    const text = readFileSync("docs/performance.md", "utf8")
    const missing = benchmarks.filter(({ name }) => PerformancePage.withSection(text, name, "\0") === text)
    assert.deepStrictEqual(missing.map(({ name }) => name), [])
  })
})
