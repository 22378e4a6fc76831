/** @module-tag long */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import { fileURLToPath } from "node:url"
import * as Examples from "../../scripts/Examples.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"

const script = fileURLToPath(new URL("../../scripts/example.ts", import.meta.url))

/** Runs `npm run example -- …` to its end. */
const example = (args: ReadonlyArray<string>, url = "postgres://127.0.0.1:1/none") =>
  Effect.callback<{ readonly code: number | string; readonly out: string; readonly err: string }>((resume) => {
    const child = ChildProcess.execFile(
      process.execPath,
      [script, ...args],
      { env: { ...process.env, NO_COLOR: "1", DATABASE_URL: url } },
      (error, out, err) => resume(Effect.succeed({ code: error?.code ?? 0, out, err }))
    )
    return Effect.sync(() => child.kill())
  })

describe("npm run example", () => {
  it.live("lists the examples and fails without a known name", () =>
    Effect.gen(function*() {
      const [without, unknown, path] = yield* Effect.all([
        example([]),
        example(["bsaic"]),
        example(["../examples/basic"])
      ], {
        concurrency: "unbounded"
      })
      for (const { code, err, out } of [without, unknown, path]) {
        assert.strictEqual(code, 1)
        assert.strictEqual(out, "")
        for (const name of Examples.names) {
          assert.match(err, new RegExp(`^  ${name} +${Examples.summary(name).slice(0, 1)}`, "m"))
        }
      }
      assert.include(unknown.err, `There is no example "bsaic".`)
    }))

  it.live("runs another program of the example, and passes arguments on", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const { url } = yield* PostgresTest.TestDatabase
      const append = yield* example(["basic", "append"], url)
      assert.strictEqual(append.code, 0, append.err)
      assert.match(append.out, /^Appended [23] events/m)
      const once = yield* example(["basic", "--once"], url)
      assert.strictEqual(once.code, 0, once.err)
      const [row] = yield* sql`SELECT count(*) FROM orchestrator_checkpoints WHERE position >= 2`
      assert.deepStrictEqual(row, { count: 1n })
      const wrong = yield* example(["basic", "apend"], url)
      assert.strictEqual(wrong.code, 1)
      assert.include(wrong.err, `The example "basic" has no program "apend".`)
    }).pipe(Effect.provide(PostgresTest.layer)))
})

describe("examples/README.md", () => {
  it("lists every example with the first sentence of its README", () => {
    const index = Fs.readFileSync(`${Examples.folder}README.md`, "utf8")
    const listed = [...index.matchAll(/^\| (\[.*) \|$/gm)].map((match) => match[1])
    assert.deepStrictEqual(
      listed.toSorted(),
      Examples.names.map((name) => `[${name}](${name}/README.md) | ${Examples.summary(name)}`)
    )
  })
})
