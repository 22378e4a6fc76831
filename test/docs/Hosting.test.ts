/**
 * The programs of docs/hosting.md as processes.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { waitUntil } from "../../src/testing/TimeLimits.ts"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import * as Tests from "../support/Tests.ts"
import * as Pages from "./Pages.ts"

const test = Tests.live(
  Migrations.layer.pipe(Layer.provideMerge(PostgresTest.layer)),
  Effect.all({ sql: SqlClient.SqlClient, url: Tests.url })
)

const spawn = Effect.fnUntraced(function*(file: string, url: string) {
  const script = yield* Pages.file(file, Pages.block("hosting", file))
  Fs.writeFileSync(Path.join(Path.dirname(script), "runtime.ts"), Pages.block("hosting", "runtime.ts"))
  return yield* WorkerProcess.spawn({ id: file, script, env: { DATABASE_URL: url, PORT: "0" }, mayEnd: false })
})

for (const framework of ["express", "fastify", "hono"]) {
  test(`${framework} serves the app and the endpoints, and leaves gracefully`, function*({ sql, url }) {
    const app = yield* spawn(`${framework}.ts`, url)
    const output = yield* waitUntil(
      "the app listens",
      Effect.sync(() => app.problem() ?? app.output()),
      (text) => /port: \d+/.test(text) || app.problem() !== undefined,
      { progress: (text) => text }
    )
    const port = /port: (\d+)/.exec(output)?.[1]
    assert.isDefined(port, app.output())
    const request = (path: string, method = "GET") =>
      Effect.promise(async () => {
        const response = await fetch(`http://127.0.0.1:${port}${path}`, { method })
        return { status: response.status, body: await response.text() }
      })
    assert.deepStrictEqual(yield* request("/signups/ada", "POST"), { status: 201, body: `{"version":1}` })
    yield* waitUntil("the event is handled", sql`SELECT FROM signups`, (rows) => rows.length === 1)
    assert.deepStrictEqual(yield* request("/signups"), { status: 200, body: `{"signups":1}` })
    assert.strictEqual((yield* request("/healthz")).status, 200)
    yield* waitUntil("the worker is ready", request("/readyz"), ({ status }) => status === 200)
    assert.include((yield* request("/metrics")).body, "pupsourcing_orchestrator_events_processed_total")
    assert.include((yield* request("/status")).body, `"replicaSet":"signups"`)
    assert.deepStrictEqual(yield* app.stop, { code: 0, signal: null }, app.output())
    assert.include(app.output(), "Unregistering worker...")
    const owned = yield* sql`SELECT FROM orchestrator_checkpoints WHERE worker_id IS NOT NULL`
    assert.strictEqual(owned.length, 0)
  })
}

test("an unusable database fails the start of the app", function*({ url }) {
  const missing = new URL(url)
  missing.pathname = "/missing"
  const script = yield* Pages.file("express.ts", Pages.block("hosting", "express.ts"))
  Fs.writeFileSync(Path.join(Path.dirname(script), "runtime.ts"), Pages.block("hosting", "runtime.ts"))
  const app = yield* WorkerProcess.spawn({
    id: "express",
    script,
    env: { DATABASE_URL: missing.href, PORT: "0" },
    mayEnd: true
  })
  const { code } = yield* app.ended
  assert.strictEqual(code, 1, app.output())
  assert.include(app.output(), "missing")
})
