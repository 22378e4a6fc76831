/**
 * `npm run docs`: checks the documentation.
 *
 * - Every `ts` block of README.md, docs and examples, and every block of a docstring that imports what it uses, is type-checked against the
 *   packed library. A block that is named like a file (`ts users.ts`) can be imported by the others of its page.
 * - Every link between the pages leads to a file and a heading that exist.
 * - The `sh` and `sql` blocks of README.md are run in this checkout, and those of docs/getting-started.md in an empty folder in which the
 *   packed library is installed; see `Walkthrough.ts`. Each page gets an empty database.
 */
import { globSync, readFileSync, writeFileSync } from "node:fs"
import { delimiter, dirname, join } from "node:path"
import * as EmptyFolder from "./EmptyFolder.ts"
import * as Links from "./Links.ts"
import * as Markdown from "./Markdown.ts"
import * as Walkthrough from "./Walkthrough.ts"

const read = (path: string): string => readFileSync(join(EmptyFolder.root, path), "utf8")

/** The page's blocks; in a docstring, each line begins with an asterisk. */
const blocksOf = (page: string): ReadonlyArray<Markdown.Block> => {
  const text = read(page)
  return Markdown.blocks(page, page.endsWith(".ts") ? text.replaceAll(/^ *\*(?: |$)/gm, "") : text)
}

/** The name of the file that a block is, for the other blocks of its page. */
const fileNameOf = ({ label, language }: Markdown.Block): string | undefined =>
  language === "ts" && label.endsWith(".ts") ? label : undefined

/** The `ts` blocks as files. As many empty lines in front as the page has: an error then names the page's own line. */
const filesOf = (page: string): ReadonlyArray<readonly [path: string, text: string]> =>
  blocksOf(page).filter(({ language, text }) =>
    (language === "ts" || language === "typescript") && (!page.endsWith(".ts") || /^import /m.test(text))
  ).map((block) => {
    const name = fileNameOf(block)
    const path = name === undefined ? `${page}.${block.line}.ts` : join(page.replace(/\.md$/, ""), name)
    // `export {}` makes it a module.
    return [path, `${"\n".repeat(block.line)}${block.text}\nexport {}\n`]
  })

/** Commands that are not run here, and what runs them instead. */
const coveredBySteps: Record<string, string> = {
  "npm ci": "npm ci",
  "npm run demo": "npm run demo",
  "npm test": "npm run test:all"
}

/** Whether something else runs the block: a step of `.ci/run`, or the installation of the tarball. */
const isCovered = (block: Markdown.Block): boolean => {
  const commands = block.text.split("\n").flatMap((line) => line.replace(/#.*/, "").split("&&"))
    .map((command) => command.trim()).filter((command) => command !== "")
  const isInstallation = (command: string) => command.startsWith("npm install pupsourcing-orchestrator ")
  if (block.language !== "sh" || !commands.some((command) => command in coveredBySteps || isInstallation(command))) {
    return false
  }
  for (const command of commands) {
    const step = coveredBySteps[command]
    if (isInstallation(command)) {
      const installed = new Set(command.split(" ").slice(3))
      const missing = EmptyFolder.requiredPeers.filter((peer) => !installed.has(peer))
      if (missing.length > 0) throw new Error(`"${command}" does not install ${missing.join(", ")}`)
    } else if (step === undefined || !read(".ci/run").includes(` ${step}`)) {
      throw new Error(`"${command}" is neither run here nor by a step of .ci/run`)
    }
  }
  return true
}

const db = (...args: ReadonlyArray<string>) =>
  EmptyFolder.run(EmptyFolder.root, process.execPath, "scripts/db.ts", "--name", "docs", ...args).trim()

const walk = async (page: string, cwd: string): Promise<void> => {
  const from = performance.now()
  const database = `docs_${process.pid}_${page.replaceAll(/\W/g, "_").toLowerCase()}`
  db("sql", `CREATE DATABASE ${database}`)
  const url = new URL(db("url"))
  url.pathname = `/${database}`
  const blocks = blocksOf(page)
  const covered = new Set(blocks.filter(isCovered))
  try {
    const counts = await Walkthrough.run({
      page,
      blocks: blocks.filter((block) => !covered.has(block)),
      cwd,
      environment: {
        ...EmptyFolder.environment,
        DATABASE_URL: url.href,
        PATH: [dirname(process.execPath), process.env["PATH"]].join(delimiter)
      },
      sqlCommand: `node ${join(EmptyFolder.root, "scripts/db.ts")} sql "$STATEMENT"`
    })
    console.log(
      `${page}: ${counts.commands} commands, ${counts.terminals} terminals and ${counts.statements} SQL statements ran, ` +
        `${counts.lines} lines of output found, ${covered.size} sh block run by another step ` +
        `(${((performance.now() - from) / 1000).toFixed(1)} s)`
    )
  } finally {
    db("sql", `DROP DATABASE ${database} WITH (FORCE)`)
  }
}

const pages = globSync(["*.md", "{docs,examples,test}/**/*.md"], {
  cwd: EmptyFolder.root,
  exclude: ["test/fixtures/**", "docs/api/**"]
}).toSorted()
const links = Links.check(EmptyFolder.root, pages)
if (links.problems.length > 0) throw new Error(links.problems.join("\n"))
console.log(`${links.count} links of ${pages.length} pages lead to a file and a heading`)

const sources = globSync(["README.md", "{docs,examples}/**/*.md", "src/**/*.ts"], { cwd: EmptyFolder.root }).toSorted()
const files = Object.fromEntries(sources.flatMap(filesOf))
const consumer = EmptyFolder.make(Object.values(files))
try {
  consumer.check(files)
  console.log(`${Object.keys(files).length} ts blocks of ${sources.length} files type-check`)

  const tutorial = "docs/getting-started.md"
  for (const block of blocksOf(tutorial)) {
    const name = fileNameOf(block)
    if (name === undefined) continue
    writeFileSync(join(consumer.directory, name), block.text)
  }
  await Promise.all([walk("README.md", EmptyFolder.root), walk(tutorial, consumer.directory)])
} finally {
  db("stop")
  consumer.remove()
}
