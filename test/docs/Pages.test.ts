/** Tests that the documentation lists what the code has. */
import { assert, it } from "@effect/vitest"
import { Duration, Result } from "effect"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Errors from "../../src/schema/Errors.ts"
import * as Settings from "../../src/services/Settings.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const read = (path: string): string => Fs.readFileSync(Path.join(root, path), "utf8")

/** The rows of the tables of a section, as cells. */
const rowsOf = (page: string, heading: string): ReadonlyArray<ReadonlyArray<string>> =>
  read(page).split(`\n## ${heading}\n`)[1]!.split("\n## ")[0]!.split("\n")
    .filter((line) => line.startsWith("| `"))
    .map((line) => line.slice(2, -2).split(" | "))

const settings = Object.keys(Result.getOrThrow(Settings.make({ replicaSet: "a" })))

it("docs/configuration.md lists every setting with its default", () => {
  const show = (value: Duration.Duration | number): string => {
    if (!Duration.isDuration(value)) return String(value)
    const millis = Duration.toMillis(value)
    return millis < 1000 ? `${millis} ms` : `${millis / 1000} s`
  }
  const shown = {
    ...Object.fromEntries(Object.entries(Settings.defaults).map(([name, value]) => [name, show(value)])),
    batchBytes: `${Settings.defaults.batchBytes / 2 ** 20} MiB`,
    replicaSet: "required",
    projections: "required",
    workerId: "generated"
  }
  const listed = rowsOf("docs/configuration.md", "Settings").map(([name, value]) => [name!.slice(1, -1), value])
  assert.deepStrictEqual(Object.fromEntries(listed), shown)
  assert.sameMembers(listed.map(([name]) => name!), [...settings, "projections"])
})

it("docs/configuration.md states for every setting when to change it", () => {
  const described = rowsOf("docs/configuration.md", "When to change a setting").map(([name]) => name!.slice(1, -1))
  assert.sameMembers(described, settings.filter((name) => name !== "replicaSet"))
})

it("docs/getting-started.md has the defaults of docs/configuration.md", () => {
  const all = new Map(rowsOf("docs/configuration.md", "Settings").map(([name, value]) => [name, value]))
  for (const [name, value] of rowsOf("docs/getting-started.md", "Configuration options")) {
    assert.strictEqual(value, all.get(name!), name!)
  }
})

it("docs/troubleshooting.md names every error that users can receive", () => {
  const named = new Set(Array.from(read("docs/troubleshooting.md").matchAll(/`(\w+)`/g), (match) => match[1]!))
  const defined = Object.entries(Errors).flatMap(([name, value]) =>
    "prototype" in value && value.prototype instanceof Error ? [name] : []
  )
  assert.deepStrictEqual(defined.filter((name) => name !== "WorkerEvicted" && !named.has(name)), [])
})

it("docs/troubleshooting.md quotes messages that the code contains", () => {
  // The reason of a reconfiguration is inserted into a text, and Node.js prints the others.
  const composed = ["Worker lost, reconfiguring...", "Unknown file extension \".ts\"", "Cannot find package"]
  const source = `${Fs.globSync("src/**/*.ts", { cwd: root }).map(read).join("\n")}\n${composed.join("\n")}`
  const isCommand = /^(?:SELECT|CREATE|ON CONFLICT|IF NOT|npx|npm|node|GET|CMD|migrate) ?/
  const quotes = [...read("docs/troubleshooting.md").matchAll(/`([^`\n]+)`/g)].map((match) => match[1]!)
    .filter((text) => text.split(" ").length > 2 && !/[={}]/.test(text) && !isCommand.test(text))
  assert.isAtLeast(quotes.length, 8)
  const parts = quotes.flatMap((quote) => quote.split("…").map((part) => part.replaceAll(/^[\s)]+|[\s(]+$/g, "")))
  assert.deepStrictEqual(parts.filter((part) => part !== "" && !source.includes(part)), [])
})

it("docs/README.md lists every page", () => {
  const index = read("docs/README.md")
  const pages = Fs.readdirSync(Path.join(root, "docs")).filter((file) => file.endsWith(".md") && file !== "README.md")
  assert.deepStrictEqual(pages.filter((page) => !index.includes(`(${page})`)), [])
})
