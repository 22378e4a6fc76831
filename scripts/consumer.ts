/**
 * `npm run consumer`: the packed library in an empty folder: it imports, its types resolve, its command runs, and every file of
 * examples/ways type-checks and runs there. A way named `*.test.ts` is run by vitest; any other is a program that gets a migrated
 * database of its own, must report within a minute that it processes events, and must exit with code 0 after SIGTERM.
 */
import { spawn } from "node:child_process"
import { globSync, readFileSync, writeFileSync } from "node:fs"
import { basename, join, resolve } from "node:path"
import * as EmptyFolder from "./EmptyFolder.ts"

const ways = Object.fromEntries(
  globSync("examples/ways/*.ts", { cwd: EmptyFolder.root }).toSorted()
    .map((path) => [`ways/${basename(path)}`, readFileSync(resolve(EmptyFolder.root, path), "utf8")])
)
const entry = `import * as Library from "pupsourcing-orchestrator"

const names: ReadonlyArray<string> = Object.keys(Library)
if (names.length === 0) throw new Error("nothing is exported")
console.log(\`imported \${names.length} names\`)
`
const signs = /Processing (?:all )?events/
const bin = "node_modules/.bin/pupsourcing-orchestrator"

/** Runs a program until it reports that it works, then ends it as Kubernetes would. */
const runProgram = (directory: string, file: string, environment: NodeJS.ProcessEnv): Promise<void> =>
  new Promise((done, fail) => {
    const child = spawn(process.execPath, [file], { cwd: directory, env: { ...process.env, ...environment } })
    let output = ""
    let asked = false
    const late = setTimeout(() => child.kill("SIGKILL"), 60_000)
    const hear = (chunk: Buffer) => {
      output += chunk.toString()
      if (!asked && signs.test(output)) {
        asked = true
        child.kill("SIGTERM")
      }
    }
    child.stdout.on("data", hear)
    child.stderr.on("data", hear)
    child.on("error", fail)
    child.on("close", (code, signal) => {
      clearTimeout(late)
      // NodeRuntime.runMain exits with 130 after a signal, unless it is given another teardown.
      if (code === 0 || (asked && code === 130)) done()
      else fail(new Error(`${file} ended with ${code ?? signal}${asked ? " after SIGTERM" : ""}:\n${output}`))
    })
  })

const db = (...args: ReadonlyArray<string>) =>
  EmptyFolder.run(EmptyFolder.root, process.execPath, "scripts/db.ts", "--name", "consumer", ...args).trim()

const consumer = EmptyFolder.make(Object.values(ways))
let databases = 0
try {
  consumer.check({ "index.ts": entry, ...ways })
  console.log(`index.ts and ${Object.keys(ways).length} ways of use type-check (NodeNext, bundler, declarations)`)
  process.stdout.write(EmptyFolder.run(consumer.directory, process.execPath, "index.ts"))
  EmptyFolder.run(consumer.directory, process.execPath, bin, "--help")
  EmptyFolder.run(consumer.directory, process.execPath, bin.replace("pupsourcing-", ""), "--version")
  console.log("both names of the command run")

  for (const file of Object.keys(ways)) {
    const from = performance.now()
    if (file.endsWith(".test.ts")) {
      // Without a configuration of its own, vitest would look for one in the folders above.
      writeFileSync(join(consumer.directory, "vitest.config.mjs"), "export default {}\n")
      EmptyFolder.run(consumer.directory, process.execPath, "node_modules/vitest/vitest.mjs", "run", file)
    } else {
      const url = new URL(db("url"))
      const database = `way_${process.pid}_${++databases}`
      db("sql", `CREATE DATABASE ${database}`)
      url.pathname = `/${database}`
      const environment = { DATABASE_URL: url.href, PORT: "0" }
      EmptyFolder.runWith(environment, consumer.directory, process.execPath, bin, "migrate", "up")
      await runProgram(consumer.directory, file, environment)
    }
    console.log(`${file} ran (${((performance.now() - from) / 1000).toFixed(1)} s)`)
  }
} finally {
  if (databases > 0) db("stop")
  consumer.remove()
}
