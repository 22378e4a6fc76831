/**
 * What is compared runs in processes of their own: each has its own heap and event loop, is as warm as the others after the round that is
 * not measured, and its CPU time is measured separately. The child's side is `serve.ts`.
 */
import { Effect, Redacted, Schema } from "effect"
import * as ChildProcess from "node:child_process"
import { fileURLToPath } from "node:url"
import { Target } from "./Benchmark.ts"
import type { Answer, Call } from "./serve.ts"
import * as ServerCpu from "./ServerCpu.ts"

export class ContenderFailed extends Schema.TaggedError<ContenderFailed>()("ContenderFailed", {
  contender: Schema.String,
  detail: Schema.String
}) {
  override get message(): string {
    return `${this.contender}: ${this.detail}`
  }
}

/** What a call returned and took. */
export interface Took {
  readonly value: unknown
  readonly seconds: number
  /** CPU time of the contender. */
  readonly cpuSeconds: number
  /** CPU time of all processes of the server; `NaN` if they are out of reach. */
  readonly serverCpuSeconds: number
}

export interface Contender {
  readonly call: (method: string, args?: unknown) => Effect.Effect<Took, ContenderFailed>
}

/** Starts a process on the database of the benchmark. Its file is relative to this one, and it ends with the scope. */
export const fork = Effect.fnUntraced(function*(file: string, environment: NodeJS.ProcessEnv = {}) {
  const { url } = yield* Target
  return yield* Effect.acquireRelease(
    Effect.sync(() =>
      ChildProcess.fork(fileURLToPath(new URL(file, import.meta.url)), {
        env: { ...process.env, DATABASE_URL: Redacted.value(url), ...environment },
        // The standard output is the benchmark's.
        stdio: ["ignore", 2, 2, "ipc"]
      })
    ),
    end
  )
})

/** Starts a contender, whose file is relative to this one. It ends with the scope. */
export const start = Effect.fnUntraced(function*(file: string) {
  const { embedded } = yield* Target
  const child = yield* fork(file)
  const call = Effect.fnUntraced(function*(method: string, args?: unknown) {
    const before = ServerCpu.seconds(embedded?.pid)
    const answer = yield* ask(child, file, { method, args })
    const serverCpuSeconds = ServerCpu.seconds(embedded?.pid) - before
    const took: Took = { ...answer, serverCpuSeconds }
    return took
  })
  const contender: Contender = { call }
  return contender
})

const end = (child: ChildProcess.ChildProcess) =>
  Effect.callback<void>((resume) => {
    if (child.exitCode !== null || child.signalCode !== null) return resume(Effect.void)
    child.once("exit", () => resume(Effect.void))
    child.kill("SIGKILL")
  })

/** Sends one call and waits for its answer. */
const ask = (child: ChildProcess.ChildProcess, contender: string, call: Call) =>
  Effect.callback<Exclude<Answer, { readonly failure: string }>, ContenderFailed>((resume) => {
    const fail = (detail: string) => resume(Effect.fail(new ContenderFailed({ contender, detail })))
    const onExit = (code: number | null) => fail(`ended with exit code ${code} during ${call.method}`)
    const onMessage = (answer: Answer) =>
      "failure" in answer ? fail(`${call.method} failed: ${answer.failure}`) : resume(Effect.succeed(answer))
    child.once("exit", onExit)
    child.once("message", onMessage)
    child.send(call, (error) => {
      if (error !== null) fail(error.message)
    })
    return Effect.sync(() => {
      child.off("exit", onExit)
      child.off("message", onMessage)
    })
  }).pipe(Effect.ensuring(Effect.sync(() => child.removeAllListeners("message").removeAllListeners("exit"))))
