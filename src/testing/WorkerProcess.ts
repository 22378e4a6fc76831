/**
 * A program of this checkout as a process: its output, its end, and signals to it. It ends with the scope in which it was
 * started.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import * as ChildProcess from "node:child_process"
import * as Os from "node:os"
import * as Path from "node:path"
import * as TimeLimits from "./TimeLimits.ts"

const root = Path.resolve(import.meta.dirname, "../..")

/** A compiled program starts in half the time. */
const compileCache = Path.join(Os.tmpdir(), `pupsourcing-orchestrator-tests-${Os.userInfo().uid}`, "compile-cache")

/** How a process ended: an exit code, or the signal that ended it. */
export interface Ended {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
}

export interface WorkerProcess {
  readonly id: string
  readonly pid: number
  /** Everything that it has printed so far, on both streams. */
  readonly output: () => string
  /** What it has printed to stderr. */
  readonly errors: () => string
  readonly isAlive: () => boolean
  /** States how the process ended, if it ended by itself. */
  readonly problem: () => string | undefined
  readonly ended: Effect.Effect<Ended>
  /** Sends a signal without waiting. */
  readonly send: (signal: NodeJS.Signals) => Effect.Effect<void>
  /** SIGTERM, then waits for the exit. */
  readonly stop: Effect.Effect<Ended>
  /** SIGINT, then waits for the exit. */
  readonly interrupt: Effect.Effect<Ended>
  /** SIGKILL, then waits for the exit. */
  readonly kill: Effect.Effect<Ended>
  /** SIGSTOP: the process is suspended, its connections stay open. */
  readonly freeze: Effect.Effect<void>
  /** SIGCONT: the process continues. */
  readonly wake: Effect.Effect<void>
}

export interface Options {
  readonly id: string
  /** The program, which imports the library as source. */
  readonly script: string
  /** The program's own arguments. */
  readonly args?: ReadonlyArray<string> | undefined
  /** Variables in addition to those of this process. */
  readonly env: Readonly<Record<string, string>>
  /** The program that starts Node.js, and its arguments: `ip netns exec …`. */
  readonly through?: ReadonlyArray<string> | undefined
  readonly nodeArguments?: ReadonlyArray<string> | undefined
  /** Whether it may exit without a signal. */
  readonly mayEnd: boolean
  /** `pipe`: its standard input ends with this process, however this process ends. Default `ignore`. */
  readonly stdin?: "ignore" | "pipe" | undefined
}

/** The last lines of a process's output, indented. */
export const lastLines = (text: string, count: number): string =>
  text.trimEnd().split("\n").slice(-count).map((line) => `  ${line}`).join("\n")

const start = ({ args = [], env, nodeArguments = [], script, stdin = "ignore", through = [] }: Options) => {
  const node = [process.execPath, ...nodeArguments, "--conditions=pupsourcing-orchestrator-source", script, ...args]
  const [program, ...rest] = [...through, ...node] as [string, ...Array<string>]
  return ChildProcess.spawn(program, rest, {
    cwd: root,
    env: { ...process.env, NODE_COMPILE_CACHE: compileCache, NO_COLOR: "1", ...env },
    stdio: [stdin, "pipe", "pipe"]
  })
}

/** Starts the program. When the scope closes, a process that still runs is killed. */
export const spawn = Effect.fnUntraced(function*(
  options: Options
): Effect.fn.Return<WorkerProcess, never, Scope.Scope> {
  const ended = Deferred.makeUnsafe<Ended>()
  let output = ""
  let errors = ""
  let alive = true
  let expected = options.mayEnd
  let problem: string | undefined

  const end = (signal: NodeJS.Signals) =>
    Effect.suspend(() => {
      expected = true
      child.kill(signal)
      return Deferred.await(ended)
    })

  const child = yield* Effect.acquireRelease(Effect.sync(() => start(options)), () => end("SIGKILL"))
  child.stdout?.setEncoding("utf8").on("data", (chunk: string) => {
    output += chunk
  })
  child.stderr?.setEncoding("utf8").on("data", (chunk: string) => {
    errors += chunk
    output += chunk
  })
  // A process that is ending may close the pipe first.
  child.stdin?.on("error", () => {})
  // The events report the end: probing the id would report an exited process as alive until its parent has reaped it.
  // "close" is emitted once the output is complete as well.
  child.once("error", (error) => {
    output += `${error.message}\n`
  })
  child.once("close", (code, signal) => {
    alive = false
    if (!expected) problem = `${options.id} ended by itself with ${signal ?? `exit code ${code}`}`
    Deferred.doneUnsafe(ended, Effect.succeed({ code, signal }))
  })

  const send = (signal: NodeJS.Signals) =>
    Effect.sync(() => {
      if (signal !== "SIGSTOP" && signal !== "SIGCONT") expected = true
      child.kill(signal)
    })
  const endInTime = (signal: NodeJS.Signals) =>
    Effect.timeoutOrElse(end(signal), {
      duration: TimeLimits.stalled,
      orElse: () => Effect.die(new Error(`${options.id} did not end after ${signal}:\n${lastLines(output, 60)}`))
    })
  return {
    id: options.id,
    pid: child.pid ?? 0,
    output: () => output,
    errors: () => errors,
    isAlive: () => alive,
    problem: () => problem,
    ended: Deferred.await(ended),
    send,
    stop: endInTime("SIGTERM"),
    interrupt: endInTime("SIGINT"),
    kill: endInTime("SIGKILL"),
    freeze: send("SIGSTOP"),
    wake: send("SIGCONT")
  }
})
