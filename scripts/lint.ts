/**
 * `npm run lint`: Effect's own diagnostics on every TypeScript file, oxlint with the project's rules on every file,
 * the words of the Markdown files, and the proof that all of them still refuse what they must: each fixture of test/fixtures/lint
 * has to be reported.
 */
import { spawnSync } from "node:child_process"
import { existsSync, globSync, readFileSync } from "node:fs"
import { relative, resolve } from "node:path"
import { fileURLToPath } from "node:url"
import * as Words from "./Words.ts"

const root = fileURLToPath(new URL("..", import.meta.url))
const fixtures = "test/fixtures/lint"
const problems: Array<string> = []

const run = (command: string, args: ReadonlyArray<string>): { readonly stdout: string; readonly stderr: string } => {
  const result = spawnSync(resolve(root, "node_modules/.bin", command), args, {
    cwd: root,
    encoding: "utf8",
    maxBuffer: 2 ** 28
  })
  if (result.error !== undefined) throw result.error
  return result
}

const parse = (command: string, output: { readonly stdout: string; readonly stderr: string }): unknown => {
  try {
    return JSON.parse(output.stdout)
  } catch {
    throw new Error(`${command} printed no report:\n${output.stdout}${output.stderr}`)
  }
}

interface EffectReport {
  readonly diagnostics: ReadonlyArray<{
    readonly file: string
    readonly line: number
    readonly column: number
    readonly severity: "error" | "warning" | "message"
    readonly name: string
    readonly message: string
  }>
  readonly files?: ReadonlyArray<{ readonly file: string }>
}

const effectDiagnostics = (project: string): EffectReport =>
  parse(
    "effect-tsgo",
    run("effect-tsgo", ["diagnostics", "--project", resolve(root, project), "--format", "json", "--list-files"])
  ) as EffectReport

interface OxlintReport {
  readonly diagnostics: ReadonlyArray<{
    readonly code: string
    readonly filename: string
    readonly message: string
    readonly labels: ReadonlyArray<{ readonly span: { readonly line: number; readonly column: number } }>
  }>
}

const oxlint = (config: string, paths: ReadonlyArray<string>): OxlintReport =>
  parse(
    "oxlint",
    run("oxlint", ["-c", config, "--disable-nested-config", "--format", "json", ...paths])
  ) as OxlintReport

// Which files there are is asked of the disk, not of a configuration: a forgotten folder must not pass for a checked one.
const folders = ["src", "test", "examples", "bench", "scripts"].filter((folder) => existsSync(resolve(root, folder)))
const files = globSync([...folders.map((folder) => `${folder}/**/*.{ts,mts,cts,tsx}`), "*.ts"], {
  cwd: root,
  exclude: ["test/fixtures/**", "**/node_modules/**"]
}).toSorted()

const unchecked = (what: string, checked: Iterable<string>, expected: ReadonlyArray<string>): void => {
  const seen = new Set(Array.from(checked, (file) => relative(root, resolve(root, file))))
  const missing = expected.filter((file) => !seen.has(file))
  if (missing.length > 0) problems.push(`${what} did not check ${missing.length} files:\n  ${missing.join("\n  ")}`)
}

const typed = run("tsc", ["-p", "tsconfig.json", "--listFilesOnly"]).stdout.split("\n").filter((line) => line !== "")
unchecked("tsc -p tsconfig.json", typed, files)

// Type tests consist of lines that must not compile; tsc alone checks those.
const diagnosed = files.filter((file) => !file.startsWith("test/types/"))
const effect = effectDiagnostics("tsconfig.lint.json")
unchecked("effect-tsgo", (effect.files ?? []).map((entry) => entry.file), diagnosed)
for (const entry of effect.diagnostics) {
  const where = `${relative(root, entry.file)}:${entry.line}:${entry.column} ${entry.name}: ${entry.message}`
  if (entry.severity === "message") console.log(`hint  ${where}`)
  else problems.push(where)
}

for (const entry of oxlint(".oxlintrc.json", ["."]).diagnostics) {
  const at = entry.labels[0]?.span
  problems.push(`${entry.filename}:${at?.line ?? 1}:${at?.column ?? 1} ${entry.code}: ${entry.message}`)
}

const wordsIn = (page: string): ReadonlyArray<string> => {
  const text = readFileSync(resolve(root, page), "utf8")
  return Words.find(text.replaceAll("\n", " ")).map(({ index, instead, word }) =>
    `${page}:${text.slice(0, index).split("\n").length} "${word}": write ${instead}`
  )
}
const pages = globSync("{*,docs/**/*,examples/**/*,test/**/*}.md", { cwd: root, exclude: [`${fixtures}/**`] })
  .toSorted()
problems.push(...pages.flatMap(wordsIn))

// The fixtures: what each line must be refused for, in the order in which it stands there.
const refused = (what: string, found: number, expected: number): void => {
  if (found !== expected) {
    problems.push(`${what}: refused ${found} times instead of ${expected}; the rule does not work`)
  }
}
const floating = effectDiagnostics(`${fixtures}/tsconfig.json`).diagnostics
refused("FloatingEffect.ts", floating.filter((entry) => entry.name === "floatingEffect").length, 1)
const refusals = oxlint(`${fixtures}/oxlint.json`, [fixtures]).diagnostics
for (
  const [file, rule, count] of [
    ["DetachedFibers.ts", "detached-fibers", 1],
    ["Direction.ts", "direction", 1],
    ["PureServices.ts", "pure-services", 6],
    ["SkippedTests.ts", "no-skipped-tests", 3],
    ["SqlPlace.ts", "sql-place", 1],
    ["Words.ts", "words", 6]
  ] as const
) {
  const found = refusals.filter((entry) => entry.filename.endsWith(`/${file}`) && entry.code === `project(${rule})`)
  refused(file, found.length, count)
}

refused("Words.md", wordsIn(`${fixtures}/Words.md`).length, 3)

if (problems.length > 0) {
  console.error(`${problems.join("\n")}\n\n${problems.length} problems`)
  process.exitCode = 1
} else {
  console.log(
    `${diagnosed.length} files without Effect diagnostics, ${files.length} type-checked, ${pages.length} pages, all fixtures refused`
  )
}
