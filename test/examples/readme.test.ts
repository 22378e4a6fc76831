import { assert, it } from "@effect/vitest"
import * as Fs from "node:fs"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Links from "../../scripts/Links.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))
const read = (path: string): string => Fs.readFileSync(Path.join(root, path), "utf8")

const blocksOf = (text: string, language: string): ReadonlyArray<string> =>
  [...text.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\`$`, "gm"))].map((match) => match[1]!)

const ways = Fs.readdirSync(Path.join(root, "examples/ways")).filter((file) => file.endsWith(".ts"))
const documents = [
  "README.md",
  "CHANGELOG.md",
  "CONTRIBUTING.md",
  "SECURITY.md",
  ...["docs", "examples", "test"].flatMap((folder) =>
    Fs.readdirSync(Path.join(root, folder), { recursive: true, encoding: "utf8" })
      .filter((file) => file.endsWith(".md"))
      .map((file) => Path.join(folder, file))
  )
]

/** The page that shows each way of use. */
const pages: Record<string, string> = {
  "program.ts": "README.md",
  "users.test.ts": "docs/testing.md",
  "http.ts": "docs/hosting.md"
}

it("examples/ways contains the three ways of use", () => {
  assert.sameMembers(ways, Object.keys(pages))
})

it.each(ways)("one page quotes examples/ways/%s verbatim, and README.md links to the file", (file) => {
  assert.include(blocksOf(read(pages[file]!), "ts"), read(`examples/ways/${file}`))
  assert.include(read("README.md"), `(examples/ways/${file})`)
})

it("every link of the documents has an existing target", () => {
  const { count, problems } = Links.check(root, documents)
  assert.isAbove(count, 100)
  assert.deepStrictEqual(problems, [])
})

it("docs/measurements/README.md lists every measurement", () => {
  const index = read("docs/measurements/README.md")
  for (const file of Fs.readdirSync(Path.join(root, "docs/measurements"))) {
    if (file.endsWith(".md") && file !== "README.md") assert.include(index, `(${file})`)
  }
})

it("every npm script that the documents name exists", () => {
  const { scripts } = JSON.parse(read("package.json")) as { readonly scripts: Readonly<Record<string, string>> }
  for (const document of documents) {
    for (const [, name] of read(document).matchAll(/npm run ([a-z:]+)/g)) {
      assert.property(scripts, name!, `${document} names npm run ${name}`)
    }
  }
})

it("docs/reliability.md names tests and faults that exist", () => {
  const section = read("docs/reliability.md").split("## Bugs of comparable systems")[1]!
  const sources = Fs.readdirSync(Path.join(root, "test"), { recursive: true, encoding: "utf8" })
    .filter((file) => file.endsWith(".ts") && !file.startsWith("examples"))
    .map((file) => read(Path.join("test", file)))
    .join("\n")
  const named = [...section.matchAll(/“([^…”]+)”/g)].map((match) => match[1]!)
  assert.isAtLeast(named.length, 40)
  assert.deepStrictEqual(named.filter((name) => !sources.includes(`"${name}"`)), [])
})

it.each(["architecture", "generation-switch", "glossary"])(
  "docs/%s.md names files and functions that exist",
  (page) => {
    const places = [...read(`docs/${page}.md`).matchAll(/`(src\/[\w/.]+\.ts)`((?:,? `\w+`)*)/g)]
    assert.isAtLeast(places.length, 25)
    for (const [, path, names] of places) {
      const source = read(path!)
      for (const [, name] of names!.matchAll(/`(\w+)`/g)) {
        assert.match(source, new RegExp(`\\b(?:const|class) ${name}\\b`), `${path} has no ${name}`)
      }
    }
  }
)
