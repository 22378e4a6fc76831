import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { spawn } from "node:child_process"
import { fileURLToPath } from "node:url"
import * as Tests from "../../support/Tests.ts"

const test = Tests.on(it.live)

const root = fileURLToPath(new URL("../../..", import.meta.url))

/** Halves the start-up time of each process. */
const compileCache = fileURLToPath(new URL("../../../node_modules/.cache/compile", import.meta.url))

/** Runs a program as its own process until it ends; `signal` is sent once the program has printed "ready". */
const programOf = (program: string, signal?: NodeJS.Signals, env: Readonly<Record<string, string>> = {}) =>
  Effect.callback<{ readonly code: number | null; readonly stdout: string; readonly stderr: string }>((resume) => {
    const source = `
      import { PgClient } from "@effect/sql-pg"
      import { Config, Console, Effect, Layer, Logger, Redacted } from "effect"
      import { SqlError } from "effect/sql"
      import { Errors, Orchestrator, MemoryStores, PostgresStores, Program, Projection, Settings } from "pupsourcing-orchestrator"
      Program.runMain(${program})`
    const child = spawn(
      process.execPath,
      ["--conditions=pupsourcing-orchestrator-source", "--input-type=module", "--eval", source],
      {
        cwd: root,
        env: { PATH: process.env["PATH"], USER: "worker", NODE_COMPILE_CACHE: compileCache, ...env },
        stdio: ["ignore", "pipe", "pipe"]
      }
    )
    let [stdout, stderr] = ["", ""]
    child.stdout.setEncoding("utf8").on("data", (text: string) => {
      stdout += text
      if (signal !== undefined && text.includes("ready")) child.kill(signal)
    })
    child.stderr.setEncoding("utf8").on("data", (text: string) => {
      stderr += text
    })
    child.on("close", (code) => resume(Effect.succeed({ code, stdout, stderr })))
    return Effect.sync(() => child.kill("SIGKILL"))
  })

const stack = /^\s+at /m

test("a typed error is printed as its message, a defect with its stack, and a reported error is not printed again", function*() {
  const [typed, defect, sql, reported] = yield* Effect.all([
    programOf(`Effect.fail(new Errors.DuplicateProjection({ projection: "users" }))`),
    programOf(`Effect.die(new Error("a bug"))`),
    programOf(`Effect.fail(new SqlError.SqlError({ reason: new SqlError.ConnectionError({
        cause: Object.assign(new Error("connect ECONNREFUSED"), { code: "ECONNREFUSED" }),
        message: "Failed to connect"
      }) }))`),
    programOf(`Effect.gen(function*() {
        const projections = [Projection.make("ahead", { startFrom: 9n, handle: () => Effect.void })]
        const worker = yield* Orchestrator.make({ replicaSet: "main", projections })
        return yield* worker.run
      }).pipe(Effect.provide(MemoryStores.layer))`)
  ], { concurrency: "unbounded" })
  assert.strictEqual(typed.code, 1)
  assert.include(typed.stdout, "DuplicateProjection: Two projections are named \"users\"")
  assert.notMatch(typed.stdout, stack)
  assert.strictEqual(defect.code, 1)
  assert.include(defect.stdout, "a bug")
  assert.match(defect.stdout, stack)
  // A driver error keeps its message in its cause.
  assert.include(sql.stdout, "ECONNREFUSED")
  assert.notMatch(sql.stdout, stack)
  assert.strictEqual(reported.code, 1)
  const everything = reported.stdout + reported.stderr
  assert.strictEqual(everything.split("startFrom of \"ahead\" is 9").length, 2, everything)
  assert.notMatch(everything, stack)
})

test("a signal is named in the log, finalizers run, and the exit code is 0", function*() {
  const program = `Console.log("ready").pipe(
      Effect.andThen(Effect.never),
      Effect.ensuring(Console.log("finalized"))
    )`
  const [interrupted, terminated] = yield* Effect.all([
    programOf(program, "SIGINT"),
    programOf(program, "SIGTERM")
  ], { concurrency: "unbounded" })
  for (const [{ code, stderr, stdout }, name] of [[interrupted, "interrupt"], [terminated, "terminated"]] as const) {
    assert.include(stdout + stderr, `Received signal ${name}, shutting down...`)
    assert.include(stdout, "finalized")
    assert.strictEqual(code, 0)
  }
})

test("only a stop that a signal requested is graceful", function*() {
  const [done, interrupted, broken] = yield* Effect.all([
    programOf("Effect.void"),
    programOf("Effect.interrupt"),
    programOf(
      `Console.log("ready").pipe(
          Effect.andThen(Effect.never),
          Effect.ensuring(Effect.die(new Error("broken on the way out")))
        )`,
      "SIGTERM"
    )
  ], { concurrency: "unbounded" })
  assert.strictEqual(done.code, 0)
  assert.strictEqual(done.stderr, "")
  assert.strictEqual(interrupted.code, 130)
  assert.include(interrupted.stdout, "interrupted from inside")
  assert.strictEqual(broken.code, 1)
  assert.include(broken.stdout, "broken on the way out")
})

/** A worker as in the README. */
const worker =
  `Orchestrator.layer({ replicaSet: "main", projections: [Projection.make("p", { handle: () => Effect.void })] }).pipe(
    Layer.provide(PostgresStores.layer),
    Layer.provideMerge(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))
  )`

test("a start-up failure is logged once, by the program's own loggers, wherever they are provided", function*() {
  const json = "Logger.layer([Logger.consoleJson])"
  const cases = [
    {
      program: `Orchestrator.run.pipe(Effect.provide(${worker}), Effect.provide(${json}))`,
      text: "ConfigError: DATABASE_URL is not set."
    },
    {
      program: `Orchestrator.run.pipe(Effect.provide(${worker}.pipe(Layer.provideMerge(${json}))))`,
      env: { DATABASE_URL: "postgresql://u:12#sesame@h/db" },
      text: "InvalidSettings: Setting"
    },
    {
      program: `Effect.never.pipe(Effect.provide(Layer.effectDiscard(Settings.config).pipe(Layer.provide(${json}))))`,
      text: "ConfigError: ORCHESTRATOR_REPLICA_SET is not set."
    },
    {
      program: `Effect.sync(() => { throw new Error("a bug") }).pipe(
          Effect.provide(Layer.mergeAll(${json}, Layer.empty))
        )`,
      text: "a bug"
    }
  ]
  yield* Effect.forEach(cases, ({ env, program, text }) =>
    Effect.gen(function*() {
      const { code, stderr, stdout } = yield* programOf(program, undefined, env)
      assert.strictEqual(code, 1)
      assert.strictEqual(stderr, "")
      const lines = stdout.trim().split("\n")
      assert.strictEqual(lines.length, 1, stdout)
      const line: { readonly level: string } = JSON.parse(stdout)
      assert.strictEqual(line.level, "ERROR")
      assert.include(stdout, text)
      assert.notInclude(stdout, "sesame")
    }), { concurrency: 2, discard: true })
})
