/**
 * `npm run example -- NAME`: runs `examples/NAME/main.ts` on the database of `DATABASE_URL`, or on the embedded PostgreSQL of this
 * checkout. A second word names another program of the folder. This process becomes the program, so that signals and the exit code are
 * the program's own.
 */
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import { globSync } from "node:fs"
import { basename, resolve } from "node:path"
import * as ExampleDatabase from "../src/testing/ExampleDatabase.ts"
import * as Examples from "./Examples.ts"

const fail = (text: string): never => {
  console.error(text)
  process.exit(1)
}

const [name, ...given] = process.argv.slice(2)

if (name === undefined || !Examples.names.includes(name)) {
  const width = Math.max(...Examples.names.map(({ length }) => length))
  const list = Examples.names.map((name) => `  ${name.padEnd(width)}  ${Examples.summary(name)}`).join("\n")
  const problem = name === undefined ? "" : `There is no example "${name}".\n\n`
  fail(`${problem}Usage: npm run example -- NAME [arguments]\n\n${list}\n\nSee examples/README.md.`)
} else {
  const [second] = given
  const isProgram = second !== undefined && !second.startsWith("-")
  const programs = globSync("*.ts", { cwd: resolve(Examples.folder, name) }).map((file) => basename(file, ".ts"))
  const program = isProgram ? second : "main"
  if (!programs.includes(program)) fail(`The example "${name}" has no program "${program}".`)

  const url = await Effect.runPromise(ExampleDatabase.url).catch((error: Error) => fail(error.message))
  const file = resolve(Examples.folder, name, `${program}.ts`)
  const args = ["--conditions=pupsourcing-orchestrator-source", file, ...given.slice(isProgram ? 1 : 0)]
  process.execve!(process.execPath, [process.execPath, ...args], { ...process.env, DATABASE_URL: Redacted.value(url) })
}
