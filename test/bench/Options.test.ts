import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Benchmark from "../../bench/Benchmark.ts"
import * as Options from "../../bench/Options.ts"
import { benchmarks } from "../../bench/Registry.ts"

const named = (name: string, isLong = false) =>
  Benchmark.make({ name, title: name, summary: "", isLong, run: Effect.succeed({ text: "", measures: [] }) })

const registry = [named("first"), named("second"), named("hours", true)]

const names = (...args: ReadonlyArray<string>) => {
  const options = Options.parse(args, registry)
  return typeof options === "string" ? options : options.benchmarks.map(({ name }) => name)
}

describe("Options", () => {
  it("runs everything but the long benchmarks", () => {
    assert.deepStrictEqual(names("--json"), ["first", "second"])
  })

  it("runs the named benchmarks in the order of the registry", () => {
    assert.deepStrictEqual(names("hours", "first"), ["first", "hours"])
  })

  it("states the names if one is unknown", () => {
    assert.strictEqual(names("first", "frist"), "No benchmark is named \"frist\". The names are first, second, hours.")
  })

  it("refuses an unknown option and a number of rounds that is none", () => {
    assert.include(names("--jsno"), "--jsno")
    assert.include(names("--rounds", "many"), "\"many\"")
    assert.include(names("--rounds", "0"), "above 0")
  })
})

describe("Registry", () => {
  it("gives each benchmark a name of its own that can be a file name", () => {
    const all = benchmarks.map(({ name }) => name)
    assert.deepStrictEqual([...new Set(all)], all)
    for (const name of all) assert.match(name, /^[a-z]+(?:-[a-z]+)*$/)
  })
})
