import { assert, describe, it } from "@effect/vitest"
import { Cause, Effect } from "effect"
import * as Benchmark from "../../bench/Benchmark.ts"
import { atMost, shown } from "../../bench/Measure.ts"
import * as Report from "../../bench/Report.ts"

const benchmark = (name: string) =>
  Benchmark.make({ name, title: name, summary: `Shows ${name}.`, run: Effect.die("unused") })

const result: Benchmark.Result = {
  text: "Medians of 5 rounds.",
  measures: [atMost("p99", 20, "ms", 10), shown("rate", 5000, "events/s")],
  tables: [{ title: "Workers", header: ["workers"], rows: [[1]] }],
  plot: { kind: "bars", title: "Delay", unit: "ms", labels: ["1"], series: [{ name: "p99", values: [20] }] }
}

const outcomes: ReadonlyArray<Benchmark.Outcome> = [
  { benchmark: benchmark("latency"), result, cause: undefined },
  { benchmark: benchmark("broken"), result: undefined, cause: Cause.die("no server") }
]

describe("Report", () => {
  it("prints the measures of all benchmarks as one array", () => {
    assert.deepStrictEqual(JSON.parse(Report.json(outcomes)), [
      { name: "latency: p99", value: 20, unit: "ms", target: "≤ 10", ok: false },
      { name: "latency: rate", value: 5000, unit: "events/s", target: "–", ok: true }
    ])
  })

  it("lists missed targets and failed benchmarks", () => {
    assert.deepStrictEqual(Report.problems(outcomes), [
      "latency: p99 is 20 ms, the target is ≤ 10",
      "broken failed"
    ])
  })

  it("writes a page with measures, tables and the plot", () => {
    const page = Report.page(benchmark("latency"), result)
    for (const part of ["Shows latency.", "| p99 ", "MISSED", "## Workers", "![Delay](latency.svg)"]) {
      assert.include(page, part)
    }
  })
})
