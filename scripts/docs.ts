/**
 * `npm run docs`: every `ts` block of README.md and docs is type-checked against the packed library, and every block of a
 * docstring that imports what it uses.
 */
import { globSync, readFileSync } from "node:fs"
import { resolve } from "node:path"
import * as EmptyFolder from "./EmptyFolder.ts"

const pages = globSync(["README.md", "docs/**/*.md", "src/**/*.ts"], { cwd: EmptyFolder.root }).toSorted()
const blocks: Record<string, string> = {}
for (const page of pages) {
  const text = readFileSync(resolve(EmptyFolder.root, page), "utf8")
  // In a docstring, each line begins with an asterisk.
  const lines = (page.endsWith(".ts") ? text.replaceAll(/^ *\*(?: |$)/gm, "") : text).split("\n")
  let start: number | undefined
  // A block that is named like a file can be imported by the others of its page.
  let file: string | undefined
  for (const [index, line] of lines.entries()) {
    const opening = start === undefined ? /^\s*```(?:ts|typescript)\b(?: (\S+\.ts)$)?/.exec(line) : null
    if (opening !== null) {
      start = index + 1
      file = opening[1]
    } else if (start !== undefined && /^\s*```\s*$/.test(line)) {
      // As many empty lines in front as the page has: an error then names the page's own line. `export {}` makes it a module.
      const block = lines.slice(start, index).join("\n")
      if (!page.endsWith(".ts") || /^import /m.test(block)) {
        blocks[file === undefined ? `${page}.${start}.ts` : `${page.replace(/\.md$/, "")}/${file}`] = `${
          "\n".repeat(start)
        }${block}\nexport {}\n`
      }
      start = undefined
    }
  }
  if (start !== undefined) throw new Error(`${page}:${start}: the block is not closed`)
}

const count = Object.keys(blocks).length
if (count === 0) throw new Error(`no ts block found in README.md, docs or src`)
const consumer = EmptyFolder.make(Object.values(blocks))
try {
  consumer.check(blocks)
  console.log(`${count} ts blocks of ${pages.length} files type-check`)
} finally {
  consumer.remove()
}
