/**
 * Tests `examples/ways/http.ts` as users run it: an API with a worker in the same process.
 *
 * @module-tag long
 */
import { assert, it } from "@effect/vitest"
import { Effect, Layer } from "effect"
import { SqlClient } from "effect/sql"
import * as Path from "node:path"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"

const script = Path.resolve(import.meta.dirname, "../../examples/ways/http.ts")

it.live("the API responds while its worker fails, and the worker is restarted", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const { url } = yield* PostgresTest.TestDatabase
    // Progress recorded under a different filter makes the worker fail at start.
    yield* sql`
      INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, replica_set, filter)
      VALUES ('signups_per_day', 0, 4294967296, 'http-projections', ${
      EventFilter.canonical({ eventTypes: ["Other"] })
    })`
    const app = yield* WorkerProcess.spawn({ id: "http", script, env: { DATABASE_URL: url, PORT: "0" }, mayEnd: false })
    const until = <E>(what: string, holds: Effect.Effect<boolean, E>) =>
      TimeLimits.waitUntil(
        what,
        Effect.suspend(() => {
          const problem = app.problem()
          return problem === undefined ? holds : Effect.die(new Error(`${problem}\n${app.output()}`))
        }),
        (done) => done,
        { describe: app.output }
      )
    const listening = /Listening on \S*:(\d+)/
    yield* until("the API listens", Effect.sync(() => listening.test(app.output())))
    yield* until(
      "the worker's failure is logged",
      Effect.sync(() => /ERROR.*Projection "signups_per_day".*filter/.test(app.output()))
    )
    const port = listening.exec(app.output())?.[1]
    const request = (path: string, method = "GET") =>
      Effect.promise(async () => {
        const response = await fetch(`http://127.0.0.1:${port}${path}`, { method })
        return { status: response.status, text: await response.text() }
      })
    assert.deepStrictEqual(yield* request("/signups/ada", "POST"), { status: 200, text: "version 1\n" })
    assert.strictEqual((yield* request("/healthz")).status, 200)
    assert.strictEqual((yield* request("/readyz")).status, 503)

    yield* sql`DELETE FROM orchestrator_checkpoints`
    yield* until(
      "the worker has handled the event",
      Effect.map(sql`SELECT 1 FROM signups_per_day WHERE signups = 1`, (rows) => rows.length === 1)
    )
    assert.strictEqual((yield* request("/readyz")).status, 200)
    assert.include((yield* request("/metrics")).text, "pupsourcing_orchestrator_events_processed_total")
    // The app's own requests are logged, those of probes are not.
    assert.match(app.output(), /signups\/ada/)
    assert.notMatch(app.output(), /healthz|readyz|metrics/)
    assert.deepStrictEqual(yield* app.stop, { code: 0, signal: null }, app.output())
    assert.include(app.output(), "Unregistering worker...")
  }).pipe(Effect.scoped, Effect.provide(Layer.provideMerge(Migrations.layer, PostgresTest.layer))))
