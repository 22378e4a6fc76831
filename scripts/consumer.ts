/**
 * `npm run consumer`: the packed library in an empty folder: every public module imports, and no other; its types resolve and can be
 * named in declarations; its command runs; and every file of examples/ways and every example type-checks and runs there.
 *
 * A way named `*.test.ts` is run by vitest; any other is a program that gets a migrated database of its own, must report within a minute
 * that it processes events, and must exit with code 0 after SIGTERM. An example gets an empty database and must end by itself. The
 * instructions of the Dockerfile are run in their order; in the resulting folder, the command of the migration Job must succeed, and the
 * program must end like that of a way.
 */
import { spawn } from "node:child_process"
import { cpSync, globSync, mkdirSync, readFileSync, writeFileSync } from "node:fs"
import { basename, join, resolve } from "node:path"
import * as Manifests from "../examples/kubernetes/manifests.ts"
import * as Dockerfile from "./Dockerfile.ts"
import * as EmptyFolder from "./EmptyFolder.ts"
import * as Examples from "./Examples.ts"

const ways = Object.fromEntries(
  globSync("examples/ways/*.ts", { cwd: EmptyFolder.root }).toSorted()
    .map((path) => [`ways/${basename(path)}`, readFileSync(resolve(EmptyFolder.root, path), "utf8")])
)

// The demo uses the test code of this repository.
const examples = Examples.names.filter((name) => name !== "demo")
/** The programs of the examples, and what they share. */
const exampleFiles = Object.fromEntries(
  ["support", ...examples].flatMap((name) => globSync(`${name}/**/*.ts`, { cwd: Examples.folder })).toSorted()
    .map((path) => [path, readFileSync(resolve(Examples.folder, path), "utf8")])
)

const manifest = JSON.parse(readFileSync(resolve(EmptyFolder.root, "package.json"), "utf8")) as {
  readonly exports: Record<string, unknown>
}
/** The public modules, by the names of their subpaths. */
const modules = Object.keys(manifest.exports).map((subpath) => subpath.slice("./".length))
  .filter((name) => name !== "" && name !== "package.json")
const importModules = modules.map((name) => `import * as ${name} from "pupsourcing-orchestrator/${name}"\n`).join("")

/** Specifiers of files that are in the package, but not public. */
const internal = [
  "CheckpointStore",
  "services/EventStore",
  "schema/Plan.ts",
  "dist/index.js",
  "dist/services/EventStore.js",
  "src/services/EventStore.ts"
].map((path) => `pupsourcing-orchestrator/${path}`)

/** A program that imports every public module in both ways, and no internal one. */
const entry = `import * as Library from "pupsourcing-orchestrator"
${importModules}
const modules: Record<string, unknown> = { ${modules.join(", ")} }
const namespaces: Record<string, unknown> = Library
for (const name of new Set([...Object.keys(modules), ...Object.keys(namespaces)])) {
  // An integration, which the main module does not load.
  if (/^[a-z]/.test(name) && !(name in namespaces)) continue
  const [subpath, namespace] = [modules[name], namespaces[name]] as [Record<string, unknown>, Record<string, unknown>]
  const differs = Object.keys({ ...subpath, ...namespace }).find((key) => subpath?.[key] !== namespace?.[key])
  if (subpath === undefined || namespace === undefined || differs !== undefined) {
    throw new Error(\`\${name} is not both a namespace and a subpath with the same values\`)
  }
}
const internal = [
${internal.map((path) => `  // @ts-expect-error not exported\n  () => import("${path}")`).join(",\n")}
]
for (const load of internal) {
  const error = await load().then(() => undefined, (error: { readonly code?: string }) => error)
  if (error?.code !== "ERR_PACKAGE_PATH_NOT_EXPORTED") throw new Error(\`\${load} is not refused: \${error}\`)
}
console.log(\`imported \${Object.keys(modules).length} modules; \${internal.length} internal paths are refused\`)
`

/** Exports every value of every public module again, so that a declaration file has to name all types in their signatures. */
const again = importModules + modules.map((name) => `export const all${name} = { ...${name} }\n`).join("")

/** Imports a specifier and prints the addresses of all modules that were loaded. */
const listLoaded = (specifier: string) => `
import { registerHooks } from "node:module"
registerHooks({
  load: (url, context, next) => {
    console.log(url)
    return next(url, context)
  }
})
await import("${specifier}")
`

/** Fails if a worker loads the library as many modules, which takes long, or if its core loads the database driver. */
const checkLoaded = ({ directory }: EmptyFolder.EmptyFolder) => {
  const load = (specifier: string) =>
    EmptyFolder.run(directory, process.execPath, "--input-type=module", "--eval", listLoaded(specifier)).trim().split(
      "\n"
    )
  const own = load("pupsourcing-orchestrator").filter((url) => url.includes("/pupsourcing-orchestrator/"))
  if (own.length > 10) throw new Error(`the main module consists of ${own.length} modules`)
  for (const name of ["MemoryStores", "Orchestrator", "Projection"]) {
    const driver = load(`pupsourcing-orchestrator/${name}`).find((url) => url.includes("/sql-pg/"))
    if (driver !== undefined) throw new Error(`${name} loads ${driver}`)
  }
  console.log(`the main module consists of ${own.length} modules; the core does not load the database driver`)
}

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

let server: string | undefined
const databases: Array<string> = []

/** Creates a database, and returns the variables with which a program uses it. */
const makeDatabase = (name: string) => {
  server ??= db("url")
  const url = new URL(server)
  const database = `${name.replaceAll("-", "_")}_${process.pid}`
  db("sql", `CREATE DATABASE ${database}`)
  databases.push(database)
  url.pathname = `/${database}`
  return { DATABASE_URL: url.href, PORT: "0" }
}

const seconds = (from: number) => `${((performance.now() - from) / 1000).toFixed(1)} s`

const runWay = async ({ directory }: EmptyFolder.EmptyFolder, file: string) => {
  if (file.endsWith(".test.ts")) {
    // Without a configuration of its own, vitest would look for one in the folders above.
    writeFileSync(join(directory, "vitest.config.mjs"), "export default {}\n")
    EmptyFolder.run(directory, process.execPath, "node_modules/vitest/vitest.mjs", "run", file)
  } else {
    const environment = makeDatabase(basename(file, ".ts"))
    EmptyFolder.runWith(environment, directory, process.execPath, bin, "migrate", "up")
    await runProgram(directory, file, environment)
  }
}

const runExample = ({ directory }: EmptyFolder.EmptyFolder, name: string) => {
  const environment = makeDatabase(name)
  cpSync(resolve(Examples.folder, name), join(directory, name), { recursive: true })
  for (const [file, ...args] of Examples.runs(name)) {
    EmptyFolder.runWith(environment, directory, process.execPath, `${name}/${file}`, ...args)
  }
}

/** A project as the Dockerfile expects it: its dependencies are those of the example's program. */
const makeContext = (directory: string): string => {
  const context = join(directory, "image/context")
  mkdirSync(context, { recursive: true })
  cpSync(resolve(Examples.folder, "kubernetes"), context, { recursive: true })
  const { dependencies, devDependencies } = JSON.parse(readFileSync(join(directory, "package.json"), "utf8")) as {
    readonly dependencies: Record<string, string>
    readonly devDependencies: Record<string, string>
  }
  const tarball = dependencies["pupsourcing-orchestrator"]!.replace("file:.", `file:${directory}`)
  const peers = ["effect", "@effect/sql-pg", "@effect/platform-node"].map((name) => [name, devDependencies[name]])
  writeFileSync(
    join(context, "package.json"),
    JSON.stringify({
      name: "projection-worker",
      private: true,
      type: "module",
      dependencies: { "pupsourcing-orchestrator": tarball, ...Object.fromEntries(peers) },
      devDependencies: { typescript: devDependencies["typescript"] }
    })
  )
  EmptyFolder.run(context, "npm", "install", "--package-lock-only", "--prefer-offline", "--no-audit", "--no-fund")
  return context
}

const runImage = async ({ directory }: EmptyFolder.EmptyFolder) => {
  const context = makeContext(directory)
  const image = Dockerfile.build(Dockerfile.parse(readFileSync(join(context, "Dockerfile"), "utf8")), {
    context,
    into: join(directory, "image/stages"),
    run: (command, cwd, environment) => {
      const variables = { ...environment, npm_config_prefer_offline: "true" }
      EmptyFolder.runWith(variables, cwd, "/bin/sh", "-c", command)
    }
  })
  if (["root", "0", ""].includes(image.user)) throw new Error("the image runs as root")
  const [program, file] = image.command
  if (program !== "node" || file === undefined) throw new Error(`the image runs ${image.command.join(" ")}`)
  const environment = { ...image.environment, ...makeDatabase("image"), RUN_MIGRATIONS: "false" }
  EmptyFolder.runWith(environment, image.directory, process.execPath, ...Manifests.migrateCommand.slice(1))
  await runProgram(image.directory, file, environment)
}

const begun = performance.now()
const consumer = EmptyFolder.make([...Object.values(ways), ...Object.values(exampleFiles), importModules])
try {
  const exported = readFileSync(resolve(EmptyFolder.root, "test/types/Exported.types.ts"), "utf8")
  consumer.check({ "index.ts": entry, "exported.ts": exported, "again.ts": again, ...ways, ...exampleFiles })
  console.log(
    `all modules, ${Object.keys(ways).length} ways of use and ${examples.length} examples type-check ` +
      `(NodeNext, bundler, declarations; ${seconds(begun)})`
  )
  process.stdout.write(EmptyFolder.run(consumer.directory, process.execPath, "index.ts"))
  checkLoaded(consumer)
  EmptyFolder.run(consumer.directory, process.execPath, bin, "--help")
  EmptyFolder.run(consumer.directory, process.execPath, bin.replace("pupsourcing-", ""), "--version")
  console.log("both names of the command run")

  for (const file of Object.keys(ways)) {
    const from = performance.now()
    await runWay(consumer, file)
    console.log(`${file} ran (${seconds(from)})`)
  }
  for (const name of examples) {
    const from = performance.now()
    runExample(consumer, name)
    console.log(`examples/${name} ran (${seconds(from)})`)
  }
  const from = performance.now()
  await runImage(consumer)
  console.log(`examples/kubernetes/Dockerfile ran (${seconds(from)})`)
} finally {
  for (const database of databases) db("sql", `DROP DATABASE ${database} WITH (FORCE)`)
  if (server !== undefined) db("stop")
  consumer.remove()
}
