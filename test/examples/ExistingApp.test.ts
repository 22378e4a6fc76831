/**
 * Tests `examples/existing-app` as users run it: an Express app with a worker in the same process.
 *
 * @module-tag long
 */
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Path from "node:path"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"

const script = Path.resolve(import.meta.dirname, "../../examples/existing-app/main.ts")

it.live("the app projects what its routes append, answers probes, and leaves gracefully after SIGTERM", () =>
  Effect.gen(function*() {
    const { url } = yield* PostgresTest.TestDatabase
    const app = yield* WorkerProcess.spawn({ id: "app", script, env: { DATABASE_URL: url, PORT: "0" }, mayEnd: false })
    const until = (what: string, holds: Effect.Effect<boolean>) =>
      TimeLimits.waitUntil(
        what,
        Effect.suspend(() => app.problem() === undefined ? holds : Effect.die(new Error(app.output()))),
        (done) => done,
        { progress: app.output, describe: app.output }
      )
    const listening = /Listening on (\S+)/
    yield* until("the app listens", Effect.sync(() => listening.test(app.output())))
    const request = (path: string, method = "GET") =>
      Effect.promise(async () => {
        const response = await fetch(`${listening.exec(app.output())?.[1]}${path}`, { method })
        return { status: response.status, type: response.headers.get("content-type"), text: await response.text() }
      })
    assert.deepInclude(yield* request("/lists/a/todos", "POST"), { status: 201, text: `{"version":1}` })
    assert.deepInclude(yield* request("/lists/a/done", "POST"), { status: 201, text: `{"version":2}` })
    yield* until(
      "both events are projected",
      Effect.map(request("/lists"), ({ text }) => text === `[{"list":"a","open":0,"done":1}]`)
    )
    yield* until("the worker is ready", Effect.map(request("/readyz"), ({ status }) => status === 200))
    assert.match((yield* request("/metrics")).type!, /^text\/plain/)
    const result = yield* app.stop
    assert.deepStrictEqual(result, { code: 0, signal: null }, app.output())
    assert.match(app.output(), /Unregistering worker\.\.\.[\s\S]*Shutdown complete/)
  }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))
