/** What a benchmark's result looks like on the terminal, on its page, and as JSON. */
import * as Measurement from "../src/testing/Measurement.ts"
import type { Benchmark, Outcome, Result } from "./Benchmark.ts"
import type { Measure } from "./Measure.ts"

/** The result in Markdown, as it is printed and, with the link to its plot, recorded. */
export const markdown = ({ measures, tables = [], text }: Result, plot = ""): string =>
  [
    text,
    measures.length === 0 ? "" : measureTable(measures),
    plot,
    ...tables.map(({ header, rows, text = "", title }) =>
      [`## ${title}`, text, Measurement.table(header, rows)].filter((part) => part !== "").join("\n\n")
    )
  ].filter((part) => part !== "").join("\n\n")

export const measureTable = (measures: ReadonlyArray<Measure>): string =>
  Measurement.table(
    ["measure", "value", "unit", "target", ""],
    measures.map((measure) => [measure.name, measure.value, measure.unit, measure.target, verdict(measure)])
  )

const verdict = ({ ok, target }: Measure): string => !ok ? "MISSED" : target === "–" ? "" : "ok"

export const page = ({ name, summary }: Benchmark, result: Result): string =>
  `${summary}\n\n${markdown(result, result.plot === undefined ? "" : `![${result.plot.title}](${name}.svg)`)}`

/** The measures of all benchmarks, with the name of the benchmark before their own. */
export const json = (outcomes: ReadonlyArray<Outcome>): string =>
  JSON.stringify(
    outcomes.flatMap(({ benchmark, result }) =>
      (result?.measures ?? []).map(({ name, ok, target, unit, value }) => ({
        name: `${benchmark.name}: ${name}`,
        value,
        unit,
        target,
        ok
      }))
    ),
    undefined,
    2
  )

/** One line for each benchmark that failed or missed a target; empty if all is well. */
export const problems = (outcomes: ReadonlyArray<Outcome>): ReadonlyArray<string> =>
  outcomes.flatMap(({ benchmark, result }) => {
    if (result === undefined) return [`${benchmark.name} failed`]
    return result.measures.filter(({ ok }) => !ok).map(({ name, target, unit, value }) =>
      `${benchmark.name}: ${name} is ${value} ${unit}, the target is ${target}`
    )
  })
