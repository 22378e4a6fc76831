/**
 * The recipe of docs/testing.md, run by a vitest of its own, and what the page states about `TestClock` and logs.
 *
 * @module-tag long
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as MemoryStores from "../../src/layers/memory/MemoryStores.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { pass } from "../services/World.ts"
import * as Pages from "./Pages.ts"

const root = Path.resolve(import.meta.dirname, "../..")

/** The page's configuration, with the library of this checkout. */
const config = `import { mergeConfig } from "vitest/config"
import page from "./vitest.config.ts"
export default mergeConfig(page, {
  cacheDir: ".cache",
  resolve: { alias: { "pupsourcing-orchestrator": ${JSON.stringify(Path.join(root, "src/index.ts"))} } }
})
`

interface Report {
  readonly numPassedTests: number
  readonly numFailedTests: number
  readonly testResults: ReadonlyArray<{ readonly message: string }>
}

/** Runs vitest in the folder. */
const run = (folder: string, environment: Readonly<Record<string, string>>) =>
  Effect.callback<{ readonly report: Report; readonly output: string }>((resume) => {
    const vitest = Path.join(root, "node_modules/vitest/vitest.mjs")
    const { DATABASE_URL: _, ...env } = process.env
    const child = ChildProcess.execFile(
      process.execPath,
      [
        vitest,
        "run",
        "--root",
        folder,
        "--config",
        Path.join(folder, "checkout.config.ts"),
        "--reporter=default",
        "--reporter=json",
        "--outputFile.json=report.json"
      ],
      { cwd: folder, env: { ...env, NO_COLOR: "1", ...environment } },
      (_error, output, errors) => {
        const path = Path.join(folder, "report.json")
        resume(
          Fs.existsSync(path)
            ? Effect.succeed({ report: JSON.parse(Fs.readFileSync(path, "utf8")) as Report, output: output + errors })
            : Effect.die(new Error(output + errors))
        )
      }
    )
    return Effect.sync(() => child.kill())
  })

it.live("the recipe passes on a server", () =>
  Effect.gen(function*() {
    const folder = Path.dirname(yield* Pages.file("checkout.config.ts", config))
    for (const name of ["vitest.config.ts", "postgres.ts", "database.ts", "users.test.ts"]) {
      Fs.writeFileSync(Path.join(folder, name), Pages.block("testing", name))
    }
    const { output, report } = yield* run(folder, { DATABASE_URL: PostgresTest.serverUrl() })
    assert.deepStrictEqual([report.numPassedTests, report.numFailedTests], [3, 0], output)
    assert.notInclude(output, "Worker registered")
  }).pipe(Effect.scoped))

const users = Projection.make("users", { handle: () => Effect.void })
const memory = Orchestrator.layer({ replicaSet: "test", projections: [users] }).pipe(
  Layer.provideMerge(MemoryStores.layer)
)

it.effect("catchUp does not return under TestClock until the clock is advanced", () =>
  Effect.gen(function*() {
    const page = yield* Pages.importBlock<{ readonly catchUp: typeof Orchestrator.catchUp }>("testing", "clock")
    const fiber = yield* Effect.forkChild(Orchestrator.catchUp)
    for (let turn = 0; turn < 1000; turn++) yield* Effect.yieldNow
    assert.isUndefined(fiber.pollUnsafe())
    const interrupting = yield* Effect.forkChild(Fiber.interrupt(fiber))
    yield* pass(1000)
    yield* Fiber.join(interrupting)
    yield* page.catchUp
  }).pipe(Effect.provide(memory)))

for (const [name, isSilent] of [["NoLogs", true], ["OnlyErrors", true], [undefined, false]] as const) {
  it.live(`${name ?? "the default"} ${isSilent ? "silences" : "shows"} the log of a worker`, () =>
    Effect.gen(function*() {
      const page = yield* Pages.importBlock<Readonly<Record<string, Layer.Layer<never>>>>("testing", "silent")
      const lines: Array<unknown> = []
      const logger = Logger.layer([Logger.make(({ message }) => lines.push(message))])
      const silent = name === undefined ? Layer.empty : page[name]!
      yield* Orchestrator.catchUp.pipe(
        Effect.provide(memory.pipe(Layer.provideMerge(silent), Layer.provideMerge(logger)))
      )
      assert.strictEqual(lines.length === 0, isSilent)
    }))
}
