/** A real Prometheus, until the scope closes. The program is in Debian's package `prometheus`. */
import * as Effect from "effect/Effect"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"

/** A series of the answer to an instant query. */
export interface Sample {
  readonly metric: Readonly<Record<string, string>>
  readonly value: readonly [time: number, value: string]
}

/** A rule as the server reports it after its evaluation. */
export interface Rule {
  readonly name: string
  readonly health: "ok" | "err" | "unknown"
  readonly lastError?: string
  readonly state?: "inactive" | "pending" | "firing"
  readonly alerts?: ReadonlyArray<{ readonly annotations: Readonly<Record<string, string>> }>
}

type Answer<A> = { readonly status: "success"; readonly data: A } | { readonly status: "error"; readonly error: string }

const listening = /msg="Listening on" address=(\S+)/

/** Why Prometheus cannot be started on this machine, if it cannot. */
export const missing = ChildProcess.spawnSync("prometheus", ["--version"]).error === undefined
  ? undefined
  : "prometheus is not installed: apt-get install prometheus"

/** Starts a server with the text of its configuration, on a port that it chooses. */
export const start = Effect.fnUntraced(function*(config: string) {
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "pupsourcing-orchestrator-prometheus-"))),
    (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true, force: true }))
  )
  Fs.writeFileSync(Path.join(directory, "prometheus.yml"), config)
  let output = ""
  const child = yield* Effect.acquireRelease(
    Effect.sync(() =>
      ChildProcess.spawn("prometheus", [
        `--config.file=${directory}/prometheus.yml`,
        `--storage.tsdb.path=${directory}/data`,
        "--web.listen-address=127.0.0.1:0"
      ], { stdio: ["ignore", "pipe", "pipe"] })
    ),
    (child) =>
      Effect.callback<void>((resume) => {
        if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
        child.once("close", () => resume(Effect.void))
        child.kill("SIGKILL")
      })
  )
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding("utf8").on("data", (chunk: string) => {
      output += chunk
    })
  }
  yield* TimeLimits.waitUntil(
    "Prometheus listens",
    Effect.suspend(() =>
      child.exitCode === null
        ? Effect.succeed(listening.test(output))
        : Effect.die(new Error(`Prometheus ended with ${child.exitCode}:\n${output}`))
    ),
    (done) => done,
    { progress: () => output, describe: () => output }
  )
  const url = `http://${listening.exec(output)?.[1]}`
  // Until its storage is open, the server answers every query with 503.
  yield* TimeLimits.waitUntil(
    "Prometheus is ready",
    Effect.promise(() => fetch(`${url}/-/ready`).then(({ ok }) => ok)),
    (ready) => ready,
    { describe: () => output }
  )
  return apiOf(`${url}/api/v1`)
})

/** The server's API. */
const apiOf = (url: string) => {
  const get = <A>(path: string) => Effect.promise(async () => await (await fetch(`${url}/${path}`)).json() as Answer<A>)

  const orDie = <A>(answer: Answer<A>, what: string) =>
    answer.status === "success" ? Effect.succeed(answer.data) : Effect.die(new Error(`${answer.error}: ${what}`))

  return {
    /** Evaluates a query now; dies if it is wrong. */
    query: (query: string) =>
      get<{ readonly result: ReadonlyArray<Sample> }>(`query?${new URLSearchParams({ query })}`).pipe(
        Effect.flatMap((answer) => orDie(answer, query)),
        Effect.map(({ result }) => result)
      ),
    rules: get<{ readonly groups: ReadonlyArray<{ readonly rules: ReadonlyArray<Rule> }> }>("rules").pipe(
      Effect.flatMap((answer) => orDie(answer, "rules")),
      Effect.map(({ groups }) => groups.flatMap(({ rules }) => rules))
    )
  }
}

export type Prometheus = ReturnType<typeof apiOf>
