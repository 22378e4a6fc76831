/** Starts and commands the host processes of a benchmark (`program.ts`), and collects what they report. */
import { Deferred, Effect, Fiber, Redacted, type Scope } from "effect"
import * as ChildProcess from "node:child_process"
import { fileURLToPath } from "node:url"
import {
  type Append,
  type Appended,
  type Command,
  type Entry,
  now,
  type Report,
  type StartWorker,
  type Usage
} from "./Messages.ts"

export interface Host {
  readonly number: number
  readonly pid: number
  /** When the process was started, and when its stores were built. */
  readonly spawnedAt: number
  readonly readyAt: number
  readonly send: (command: Command) => void
  /** Appends at a fixed rate, and returns when each event was due and answered. */
  readonly append: (load: Omit<Append, "do">) => Effect.Effect<Appended>
  readonly usage: Effect.Effect<Usage>
  /** Stops one worker, and returns when it has left. */
  readonly stopWorker: (worker: string) => Effect.Effect<string>
  /** SIGTERM: its workers leave. Returns when it has exited. */
  readonly stop: Effect.Effect<void>
  /** SIGKILL. Returns when it was sent. */
  readonly kill: Effect.Effect<number>
}

/** All host processes of one benchmark, and the activity of all their workers. */
export interface Hosts {
  readonly entries: Array<Entry>
  readonly problems: Array<string>
  /** The workers that were commanded to stop and have left. */
  readonly stopped: Set<string>
  readonly spawn: (options?: SpawnOptions) => Effect.Effect<Host, never, Scope.Scope>
  /** Waits until the activity fulfils a condition. A worker that fails ends the wait with its problem. */
  readonly waitUntil: <A>(what: string, condition: () => A | undefined) => Effect.Effect<A>
}

export interface SpawnOptions {
  /** Of the pool; 10 by default. */
  readonly connections?: number
  /** Of the sessions of the pool. */
  readonly applicationName?: string
}

const program = fileURLToPath(new URL("program.ts", import.meta.url))

/** A benchmark that waits longer than this has failed. */
const patienceMillis = 60_000

export const make = (url: Redacted.Redacted): Hosts => {
  const entries: Array<Entry> = []
  const problems: Array<string> = []
  const stopped = new Set<string>()
  let count = 0
  const waitUntil: Hosts["waitUntil"] = Effect.fnUntraced(function*(what, condition) {
    const until = now() + patienceMillis
    while (true) {
      if (problems.length > 0) return yield* Effect.die(new Error(`${what}: ${problems.join("\n")}`))
      const found = condition()
      if (found !== undefined) return found
      if (now() > until) return yield* Effect.die(new Error(`Not within ${patienceMillis / 1000} s: ${what}`))
      yield* Effect.sleep("3 millis")
    }
  })
  const hosts: Hosts = {
    entries,
    problems,
    stopped,
    waitUntil,
    spawn: (options) => spawn(hosts, count++, url, options)
  }
  return hosts
}

const spawn = Effect.fnUntraced(function*(
  hosts: Hosts,
  number: number,
  url: Redacted.Redacted,
  { applicationName = "bench pool", connections = 10 }: SpawnOptions = {}
): Effect.fn.Return<Host, never, Scope.Scope> {
  const spawnedAt = now()
  const reports = { ready: Deferred.makeUnsafe<number>(), ended: Deferred.makeUnsafe<void>() }
  const appended: Array<Deferred.Deferred<Appended>> = []
  const usages: Array<Deferred.Deferred<Usage>> = []
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      ChildProcess.fork(program, {
        execArgv: process.execArgv,
        env: {
          ...process.env,
          DATABASE_URL: Redacted.value(url),
          BENCH_CONNECTIONS: String(connections),
          BENCH_APPLICATION: applicationName
        },
        stdio: ["ignore", "ignore", "inherit", "ipc"]
      })
    ),
    (child) => Effect.sync(() => child.kill("SIGKILL"))
  )
  const answer = <A>(waiting: Array<Deferred.Deferred<A>>, value: A) => {
    const first = waiting.shift()
    if (first !== undefined) Deferred.doneUnsafe(first, Effect.succeed(value))
  }
  // What it was asked may never be answered.
  const fail = (problem: string) => {
    hosts.problems.push(problem)
    const failure = Effect.die(new Error(problem))
    Deferred.doneUnsafe(reports.ready, failure)
    for (const answer of appended.splice(0)) Deferred.doneUnsafe(answer, failure)
    for (const answer of usages.splice(0)) Deferred.doneUnsafe(answer, failure)
  }
  let isExpectedToEnd = false
  child.on("message", (message) => {
    const report = message as Report
    switch (report.kind) {
      case "ready":
        return Deferred.doneUnsafe(reports.ready, Effect.succeed(report.at))
      case "activity":
        return hosts.entries.push({ ...report.entry, host: number })
      case "stopped":
        return hosts.stopped.add(report.worker)
      case "appended":
        return answer(appended, report.appended)
      case "usage":
        return answer(usages, report.usage)
      case "failed":
        return fail(report.problem)
    }
  })
  child.once("exit", (code, signal) => {
    if (!isExpectedToEnd) fail(`Host ${number} ended with ${signal ?? code}.`)
    Deferred.doneUnsafe(reports.ended, Effect.void)
  })
  const send = (command: Command) => {
    child.send(command)
  }
  const ask = <A>(waiting: Array<Deferred.Deferred<A>>, command: Command) =>
    Effect.suspend(() => {
      const answer = Deferred.makeUnsafe<A>()
      waiting.push(answer)
      send(command)
      return Deferred.await(answer)
    })
  const signal = (signal: NodeJS.Signals) =>
    Effect.sync(() => {
      isExpectedToEnd = true
      child.kill(signal)
      return now()
    })
  const readyAt = yield* Deferred.await(reports.ready)
  return {
    number,
    pid: child.pid!,
    spawnedAt,
    readyAt,
    send,
    append: (load) => ask(appended, { do: "append", ...load }),
    usage: ask(usages, { do: "usage" }),
    stopWorker: (worker) =>
      Effect.suspend(() => {
        hosts.stopped.delete(worker)
        send({ do: "stop", worker })
        return hosts.waitUntil(`${worker} has left`, () => hosts.stopped.has(worker) ? worker : undefined)
      }),
    stop: Effect.andThen(signal("SIGTERM"), Deferred.await(reports.ended)),
    kill: signal("SIGKILL")
  }
})

export interface WorkerOptions extends Pick<StartWorker, "worker" | "replicaSet"> {
  readonly projections?: ReadonlyArray<string>
  readonly handler?: StartWorker["handler"]
  readonly startFrom?: StartWorker["startFrom"]
}

/** Starts a worker. Its only projection is named like the replica set, unless others are given. */
export const startWorker = (
  host: Host,
  { handler = "nothing", projections, replicaSet, startFrom = "beginning", worker }: WorkerOptions
): void => host.send({ do: "start", worker, replicaSet, projections: projections ?? [replicaSet], handler, startFrom })

/**
 * Waits until all workers have reached their assignment of a generation that has exactly these many members, and returns when the last one
 * had. `since` is the time from which their reports count.
 */
export const reached = (hosts: Hosts, since: number, workers: ReadonlyArray<string>): Effect.Effect<number> => {
  const missing = new Set(workers)
  let next = 0
  let last = since
  return hosts.waitUntil(`${workers.length} workers have reached their assignment`, () => {
    for (; next < hosts.entries.length; next++) {
      const { at, members, tag, worker } = hosts.entries[next]!
      if (tag !== "AssignmentReached" || at < since || members !== workers.length || !missing.delete(worker)) continue
      last = Math.max(last, at)
    }
    return missing.size === 0 ? last : undefined
  })
}

/** Appends at a fixed rate while `self` runs, in sections of a second. Returns all appends and the result of `self`. */
export const underLoad = Effect.fnUntraced(function*<A, E, R>(
  host: Host,
  load: Omit<Append, "do" | "seconds">,
  self: Effect.Effect<A, E, R>
) {
  const sections: Array<Appended> = []
  const state = { isOver: false }
  const fiber = yield* Effect.forkChild(
    Effect.repeat(
      Effect.map(host.append({ ...load, seconds: 1 }), (appended) => sections.push(appended)),
      { while: () => !state.isOver }
    )
  )
  const value = yield* self
  state.isOver = true
  yield* Fiber.join(fiber)
  return { value, appended: concat(sections) }
})

export const concat = (sections: ReadonlyArray<Appended>): Appended => ({
  due: sections.flatMap(({ due }) => due),
  sent: sections.flatMap(({ sent }) => sent),
  answered: sections.flatMap(({ answered }) => answered),
  positions: sections.flatMap(({ positions }) => positions)
})
