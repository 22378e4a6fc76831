/**
 * `npm run runtimes`: runs the programs of docs/where-it-runs.md with the packed library under every runtime and bundler that the page
 * names, against the embedded PostgreSQL.
 */
import { spawn, spawnSync } from "node:child_process"
import { readFileSync, writeFileSync } from "node:fs"
import { join, resolve } from "node:path"
import * as EmptyFolder from "./EmptyFolder.ts"

/** The oldest version that the package supports. */
const oldest = "22.19.0"

/** Pinned, because they are not dependencies of the project and have no lock file. */
const tools = { bun: "1.4.5", deno: "2.9.6", esbuild: "0.28.2", node: oldest, tsx: "4.23.15" }

const page = readFileSync(resolve(EmptyFolder.root, "docs/where-it-runs.md"), "utf8")
const block = (name: string): string => {
  const text = [...page.matchAll(/^```ts (\S+)\n([\s\S]*?)^```$/gm)].find((match) => match[1] === name)?.[2]
  if (text === undefined) throw new Error(`docs/where-it-runs.md has no block ${name}`)
  return text
}
const programs = { "work.ts": block("work.ts"), "worker.ts": block("worker.ts"), "commonjs.cts": block("commonjs") }

const db = (...args: ReadonlyArray<string>) =>
  EmptyFolder.run(EmptyFolder.root, process.execPath, "scripts/db.ts", "--name", "runtimes", ...args).trim()

const url = db("url")
const consumer = EmptyFolder.make(Object.values(programs))
const bin = (name: string) => join(consumer.directory, "node_modules/.bin", name)
const node = process.execPath
const run = (command: string, ...args: ReadonlyArray<string>) =>
  EmptyFolder.runWith({ DATABASE_URL: url }, consumer.directory, command, ...args)

const tsc = (...options: ReadonlyArray<string>) =>
  run(bin("tsc"), "--target", "es2022", "--strict", "--skipLibCheck", "--types", "node", ...options)
const esbuild = (file: string, outfile: string, ...options: ReadonlyArray<string>) =>
  run(bin("esbuild"), file, "--bundle", `--outfile=${outfile}`, "--log-level=error", ...options)

/** Runs the program that ends by itself. */
const work = (name: string, command: string, ...args: ReadonlyArray<string>) => {
  const handled = /handled (\d+) events/.exec(run(command, ...args))?.[1]
  if (handled === undefined) throw new Error(`${name} has handled nothing`)
  console.log(`${name}: handled ${handled} events`)
}

/** Runs a worker until it processes events, ends it as a supervisor does, and requires exit code 0. */
const worker = (name: string, command: string, ...args: ReadonlyArray<string>): Promise<void> =>
  new Promise((done, fail) => {
    const env = { ...process.env, DATABASE_URL: url }
    const child = spawn(command, args, { cwd: consumer.directory, env })
    let output = ""
    const late = setTimeout(() => child.kill("SIGKILL"), 60_000)
    const receive = (chunk: Buffer) => {
      const isFirst = !output.includes("Processing events...")
      output += chunk.toString()
      if (isFirst && output.includes("Processing events...")) child.kill("SIGTERM")
    }
    child.stdout.on("data", receive)
    child.stderr.on("data", receive)
    child.on("error", fail)
    child.on("close", (code, signal) => {
      clearTimeout(late)
      if (code !== 0 || !output.includes("Shutdown complete")) {
        return fail(new Error(`${name} ended with ${code ?? signal}:\n${output}`))
      }
      console.log(`${name}: left after SIGTERM`)
      done()
    })
  })

/** A bundle for browsers must fail because of Node.js's modules, not for another reason. */
const refuseBrowser = () => {
  // Without a limit, because esbuild prints its first errors in no fixed order.
  const args = ["work.ts", "--bundle", "--platform=browser", "--outfile=out/browser.js", "--log-limit=0"]
  const { status, stderr } = spawnSync(bin("esbuild"), args, { cwd: consumer.directory, encoding: "utf8" })
  if (status === 0 || !stderr.includes(`Could not resolve "node:net"`)) {
    throw new Error(`a bundle for browsers did not fail as the page states:\n${stderr}`)
  }
  console.log("a bundle for browsers is refused")
}

try {
  for (const [file, text] of Object.entries(programs)) writeFileSync(join(consumer.directory, file), text)
  const packages = Object.entries(tools).map(([name, version]) => `${name}@${version}`)
  run("npm", "install", "--no-save", "--prefer-offline", "--no-audit", "--no-fund", "--loglevel=error", ...packages)

  work(`node ${oldest}`, join(consumer.directory, "node_modules/node/bin/node"), "work.ts")
  work(`node ${process.versions.node}`, node, "work.ts")
  await worker("node", node, "worker.ts")

  tsc("--module", "nodenext", "--outDir", "out/tsc", "work.ts", "commonjs.cts")
  work("tsc", node, "out/tsc/work.js")
  const commonJs = run(node, "--input-type=commonjs", "-p", "Object.keys(require('./out/tsc/commonjs.cjs')).join()")
  if (commonJs.trim() !== "Worker") throw new Error(`CommonJS: ${commonJs}`)
  console.log("CommonJS: required")

  work("tsx", bin("tsx"), "work.ts")
  // The command `tsx` ends its child by force if the child does not confirm a signal within 30 ms.
  await worker("tsx", node, "--import", "tsx", "worker.ts")
  work("bun", bin("bun"), "work.ts")
  await worker("bun", bin("bun"), "worker.ts")
  work("deno", bin("deno"), "run", "-A", "work.ts")
  await worker("deno", bin("deno"), "run", "-A", "worker.ts")

  esbuild("work.ts", "out/work.cjs", "--platform=node", "--format=cjs")
  work("esbuild, CommonJS", node, "out/work.cjs")
  esbuild("work.ts", "out/work.mjs", "--platform=node", "--format=esm")
  work("esbuild, ES module", node, "out/work.mjs")
  esbuild("work.ts", "out/external.mjs", "--platform=node", "--format=esm", "--packages=external")
  work("esbuild, externals", node, "out/external.mjs")
  esbuild("worker.ts", "out/worker.cjs", "--platform=node", "--format=cjs")
  await worker("esbuild, CommonJS", node, "out/worker.cjs")
  refuseBrowser()
} finally {
  db("stop")
  consumer.remove()
}
