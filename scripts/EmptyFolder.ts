/**
 * An empty folder in which the packed library is installed as its users would: nothing of the checkout can be resolved from there.
 */
import { spawnSync } from "node:child_process"
import { mkdirSync, mkdtempSync, readFileSync, realpathSync, rmSync, writeFileSync } from "node:fs"
import { tmpdir } from "node:os"
import { dirname, join, resolve } from "node:path"
import { fileURLToPath } from "node:url"

export const root = fileURLToPath(new URL("..", import.meta.url))

interface Manifest {
  readonly devDependencies: Record<string, string>
  readonly peerDependencies: Record<string, string>
  readonly peerDependenciesMeta: Record<string, { readonly optional?: boolean }>
}
const manifest = JSON.parse(readFileSync(resolve(root, "package.json"), "utf8")) as Manifest

/** The peer dependencies that every user of the library installs. */
export const requiredPeers: ReadonlyArray<string> = Object.keys(manifest.peerDependencies)
  .filter((name) => manifest.peerDependenciesMeta[name]?.optional !== true)

// npm hands its settings to its scripts in the environment, among them the checkout as the place to install to.
export const environment = Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("npm_")))

/** Runs a command to its end, with these variables added; throws with its output when it fails. */
export const runWith = (
  variables: Record<string, string>,
  cwd: string,
  command: string,
  ...args: ReadonlyArray<string>
): string => {
  const env = { ...environment, ...variables }
  const result = spawnSync(command, args, { cwd, env, encoding: "utf8", maxBuffer: 2 ** 28 })
  if (result.error !== undefined) throw result.error
  if (result.status !== 0) {
    const ended = result.status ?? result.signal
    throw new Error(`${command} ${args.join(" ")} ended with ${ended}\n${result.stdout}${result.stderr}`)
  }
  return result.stdout
}

/** The same without more variables. */
export const run = (cwd: string, command: string, ...args: ReadonlyArray<string>): string =>
  runWith({}, cwd, command, ...args)

/** Everything that must be in the tarball; what else may be is decided by `files` in package.json. */
const promised = [
  "package.json",
  "README.md",
  "CHANGELOG.md",
  "LICENSE",
  "dist/index.js",
  "dist/index.d.ts",
  "dist/cli/main.js",
  "src/index.ts",
  "docs/operations.md",
  "migrations/001_create_orchestrator_tables.up.sql"
]

const compilerOptions = {
  target: "ES2022",
  strict: true,
  exactOptionalPropertyTypes: true,
  noUncheckedIndexedAccess: true,
  noEmit: true,
  // As in programs that Node.js runs without a build.
  allowImportingTsExtensions: true,
  // What is exported must be nameable: a library or a composite project emits declarations.
  declaration: true,
  types: ["node"]
}

export interface EmptyFolder {
  readonly directory: string
  /** Type-checks these files (path in the folder → text) as NodeNext and as a bundler would, and the library's own declarations. */
  readonly check: (files: Record<string, string>) => void
  readonly remove: () => void
}

/** Builds, packs and installs the library with its peers, and the other packages that `sources` import. */
export const make = (sources: ReadonlyArray<string>): EmptyFolder => {
  const directory = mkdtempSync(join(realpathSync(tmpdir()), "pupsourcing-orchestrator-consumer-"))
  const remove = () => rmSync(directory, { recursive: true, force: true })
  try {
    run(root, "npm", "run", "-s", "build")
    const [packed] = JSON.parse(
      run(root, "npm", "pack", "--json", "--ignore-scripts", "--pack-destination", directory)
    ) as [
      { readonly filename: string; readonly files: ReadonlyArray<{ readonly path: string }> }
    ]
    const contents = new Set(packed.files.map((file) => file.path))
    const missing = promised.filter((file) => !contents.has(file))
    if (missing.length > 0) throw new Error(`the tarball lacks ${missing.join(", ")}`)
    const stray = [...contents].filter((file) => /^(?:test|examples\/(?!ways\/)|bench|scripts|\.)/.test(file))
    if (stray.length > 0) throw new Error(`the tarball must not contain ${stray.join(", ")}`)

    const imported = (name: string) =>
      sources.some((text) => text.includes(`from "${name}"`) || text.includes(`from "${name}/`))
    // The packages that `pupsourcing-orchestrator/opentelemetry` and `@effect/opentelemetry` load.
    const isOpenTelemetry = (name: string) =>
      imported("pupsourcing-orchestrator/opentelemetry") && /opentelemetry\b/.test(name)
    const peers = Object.keys(manifest.peerDependencies)
      .filter((name) =>
        manifest.peerDependenciesMeta[name]?.optional !== true || imported(name) || isOpenTelemetry(name)
      )
    const others = Object.keys(manifest.devDependencies).filter((name) => !(name in manifest.peerDependencies))
    const names = [
      ...peers,
      "typescript",
      "@types/node",
      ...others.filter((name) => isOpenTelemetry(name) || imported(name) || imported(name.replace("@types/", ""))),
      ...(imported("@effect/vitest") && !imported("vitest") ? ["vitest"] : []),
      ...(isOpenTelemetry("opentelemetry") ? ["@opentelemetry/semantic-conventions"] : [])
    ]
    const devDependencies = Object.fromEntries(names.map((name) => [name, manifest.devDependencies[name] ?? "*"]))
    writeFileSync(
      join(directory, "package.json"),
      JSON.stringify({
        name: "consumer",
        private: true,
        type: "module",
        dependencies: { "pupsourcing-orchestrator": `file:./${packed.filename}` },
        devDependencies
      })
    )
    run(
      directory,
      "npm",
      "install",
      "--prefer-offline",
      "--ignore-scripts",
      "--no-audit",
      "--no-fund",
      "--loglevel=error"
    )
    console.log(`installed ${packed.filename} (${contents.size} files) with ${names.join(", ")} in ${directory}`)
  } catch (error) {
    remove()
    throw error
  }

  const typeCheck = (name: string, options: object, files: ReadonlyArray<string>): string => {
    writeFileSync(
      join(directory, `tsconfig.${name}.json`),
      JSON.stringify({ compilerOptions: { ...compilerOptions, ...options }, files })
    )
    const args = ["-p", `tsconfig.${name}.json`, "--pretty", "false"]
    return spawnSync(join(directory, "node_modules/.bin/tsc"), args, { cwd: directory, encoding: "utf8" }).stdout
  }

  const check = (files: Record<string, string>): void => {
    for (const [file, text] of Object.entries(files)) {
      mkdirSync(dirname(join(directory, file)), { recursive: true })
      writeFileSync(join(directory, file), text)
    }
    const names = Object.keys(files)
    const own = (output: string) =>
      output.split("\n").filter((line) => line.startsWith("node_modules/pupsourcing-orchestrator/")).join("\n")
    // What Node.js 22 has; the library's own declarations need only the target.
    const program = { lib: ["ES2023"], skipLibCheck: true }
    const failures = [
      typeCheck("nodenext", { ...program, module: "NodeNext" }, names),
      typeCheck("bundler", { ...program, module: "ESNext", moduleResolution: "bundler" }, names),
      own(typeCheck("declarations", { module: "NodeNext", skipLibCheck: false }, names))
    ].filter((output) => output !== "")
    if (failures.length > 0) throw new Error(`does not type-check against the tarball:\n${failures[0]}`)
  }
  return { directory, check, remove }
}
