/**
 * The worker processes.
 */
import { Deferred, Effect, type Redacted, type Scope } from "effect"
import { Redacted as Secret } from "effect"
import * as ChildProcess from "node:child_process"
import { fileURLToPath } from "node:url"
import { DemoFailed } from "./DemoFailed.ts"

/** How a process ended: an exit code, or the signal that ended it. */
export interface Ending {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface Process {
  readonly id: string
  readonly pid: number | undefined
  readonly ended: Effect.Effect<Ending>
  readonly isAlive: () => boolean
  /** Sends a signal; the process's end is no failure from now on, if the signal is meant to bring it. */
  readonly send: (signal: "SIGCONT" | "SIGKILL" | "SIGSTOP" | "SIGTERM") => void
  readonly output: () => string
}

export interface Fleet {
  readonly start: (id: string) => Effect.Effect<Process>
  /** Fails when a process ends that was not told to. */
  readonly unexpectedEnd: Effect.Effect<never, DemoFailed>
}

/** A worker that is told to stop and has not after this time is killed. */
const patience = "10 seconds"
const keptLines = 200

/** Starts workers; those that are left when the scope closes are stopped. */
export const make = Effect.fnUntraced(function*(
  url: Redacted.Redacted
): Effect.fn.Return<Fleet, never, Scope.Scope> {
  const unexpected = yield* Deferred.make<never, DemoFailed>()
  const processes: Array<Process> = []

  const start = Effect.fnUntraced(function*(id: string) {
    const ended = yield* Deferred.make<Ending>()
    // What decides how TypeScript is run and where the library is found goes for the workers too.
    const child = ChildProcess.spawn(
      process.execPath,
      [...process.execArgv, fileURLToPath(new URL("worker.ts", import.meta.url))],
      {
        env: { ...process.env, DATABASE_URL: Secret.value(url), DEMO_WORKER_ID: id },
        stdio: ["pipe", "pipe", "pipe"]
      }
    )
    const lines: Array<string> = []
    const keep = (data: Buffer) => {
      lines.push(...data.toString().trimEnd().split("\n"))
      lines.splice(0, lines.length - keptLines)
    }
    child.stdout.on("data", keep)
    child.stderr.on("data", keep)
    // A signal to a process that is ending may close the pipe first.
    child.stdin.on("error", () => {})
    let alive = true
    let expected = false
    const end = (ending: Ending) => {
      alive = false
      Deferred.doneUnsafe(ended, Effect.succeed(ending))
      if (expected) return
      const how = ending.signal === null ? `exit code ${ending.code}` : ending.signal
      Deferred.doneUnsafe(
        unexpected,
        Effect.fail(
          new DemoFailed({ problem: `${id} ended (${how}), and nobody told it to. It said:\n${lines.join("\n")}` })
        )
      )
    }
    child.once("error", (error) => {
      lines.push(error.message)
      if (child.pid === undefined) end({ code: null, signal: null })
    })
    child.once("close", (code, signal) => end({ code, signal }))
    const worker: Process = {
      id,
      pid: child.pid,
      ended: Deferred.await(ended),
      isAlive: () => alive,
      send: (signal) => {
        expected ||= signal === "SIGKILL" || signal === "SIGTERM"
        child.kill(signal)
      },
      output: () => lines.join("\n")
    }
    processes.push(worker)
    return worker
  })

  const stop = (worker: Process) =>
    Effect.suspend(() => {
      if (!worker.isAlive()) return Effect.void
      worker.send("SIGTERM")
      // It may be frozen, and would not hear.
      worker.send("SIGCONT")
      return Effect.timeoutOrElse(worker.ended, {
        duration: patience,
        orElse: () => {
          worker.send("SIGKILL")
          return worker.ended
        }
      })
    })

  yield* Effect.addFinalizer(() => Effect.forEach(processes, stop, { concurrency: "unbounded", discard: true }))
  return { start, unexpectedEnd: Deferred.await(unexpected) }
})
