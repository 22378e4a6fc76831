/** `docs/performance.md`: text by hand, and between two comments for each benchmark what was recorded last. */
import { Effect } from "effect"
import * as Fs from "node:fs"
import { fileURLToPath } from "node:url"
import type { Benchmark, Result } from "./Benchmark.ts"
import * as Report from "./Report.ts"

const file = fileURLToPath(new URL("../docs/performance.md", import.meta.url))

/** Puts the content between `<!-- name -->` and `<!-- /name -->`; without these comments the page stays as it is. */
export const withSection = (page: string, name: string, content: string): string => {
  const [open, close] = [`<!-- ${name} -->`, `<!-- /${name} -->`]
  const [from, to] = [page.indexOf(open), page.indexOf(close)]
  return from < 0 || to < from ? page : `${page.slice(0, from + open.length)}\n\n${content}\n\n${page.slice(to)}`
}

/** The measures, the plot, and the link to the page with all tables. */
const section = ({ name }: Benchmark, { measures, plot }: Result): string =>
  [
    measures.length === 0 ? "" : Report.measureTable(measures),
    plot === undefined ? "" : `![${plot.title}](measurements/${name}.svg)`,
    `Machine, settings, date and all tables: [${name}](measurements/${name}.md).`
  ].filter((part) => part !== "").join("\n\n")

export const record = (benchmark: Benchmark, result: Result): Effect.Effect<void> =>
  Effect.sync(() => {
    Fs.writeFileSync(file, withSection(Fs.readFileSync(file, "utf8"), benchmark.name, section(benchmark, result)))
  })
