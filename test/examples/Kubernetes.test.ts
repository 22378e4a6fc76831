/**
 * Tests the program of `examples/kubernetes` as a pod runs it: probes, a missing migration, and SIGTERM during a hanging handler.
 *
 * @module-tag long
 */
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Path from "node:path"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import { freePort } from "../support/FreePort.ts"

const script = Path.resolve(import.meta.dirname, "../../examples/kubernetes/main.ts")

/** Starts the program with the variables of the Deployment. */
const start = Effect.fnUntraced(function*(env: Readonly<Record<string, string>>, mayEnd = false) {
  const { url } = yield* PostgresTest.TestDatabase
  const port = yield* freePort
  const pod = yield* WorkerProcess.spawn({
    id: "pod",
    script,
    env: { DATABASE_URL: url, PORT: String(port), ORCHESTRATOR_WORKER_ID: "projection-worker-abc", ...env },
    mayEnd
  })
  const get = (path: string) =>
    Effect.promise(async () => {
      const response = await fetch(`http://127.0.0.1:${port}${path}`).catch(() => undefined)
      return { status: response?.status ?? 0, text: (await response?.text()) ?? "" }
    })
  const until = <E>(what: string, holds: Effect.Effect<boolean, E>) =>
    TimeLimits.waitUntil(
      what,
      Effect.suspend(() => {
        const problem = pod.problem()
        return problem === undefined ? holds : Effect.die(new Error(`${problem}\n${pod.output()}`))
      }),
      (done) => done,
      { progress: pod.output, describe: pod.output }
    )
  return { pod, get, until }
})

it.live("a pod that starts before the migrations ends with a message that names the command", () =>
  Effect.gen(function*() {
    const { pod } = yield* start({ RUN_MIGRATIONS: "false" }, true)
    assert.deepStrictEqual(yield* pod.ended, { code: 1, signal: null }, pod.output())
    assert.match(pod.output(), /TablesMissing: .*migrate up/)
  }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))

it.live("after SIGTERM a pod reports that it is stopping, and leaves although its handler hangs", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const { get, pod, until } = yield* start({ ORCHESTRATOR_DRAIN_TIMEOUT: "2s" })
    yield* until("the pod is ready", Effect.map(get("/readyz"), ({ status }) => status === 200))
    assert.include((yield* get("/readyz")).text, "projection-worker-abc")
    assert.include((yield* get("/metrics")).text, "pupsourcing_orchestrator_")

    const handlerHangs = Effect.map(
      sql`
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'projection-worker-abc' AND wait_event_type = 'Lock'`,
      (rows) => rows.length > 0
    )
    yield* sql.withTransaction(Effect.gen(function*() {
      yield* sql`LOCK TABLE orders_per_day IN ACCESS EXCLUSIVE MODE`
      // Written by another session, because this one does not commit.
      yield* appendOrder
      yield* until("the handler hangs", handlerHangs)
      yield* pod.send("SIGTERM")
      yield* until(
        "the pod is not ready, but alive",
        Effect.map(get("/readyz"), ({ status, text }) => status === 503 && text.includes("was asked to stop"))
      )
      assert.strictEqual((yield* get("/healthz")).status, 200)
      // The lock is still held.
      assert.deepStrictEqual(yield* pod.ended, { code: 0, signal: null }, pod.output())
    }))
    assert.include(pod.output(), "Unregistering worker...")
    assert.deepStrictEqual(yield* sql`SELECT FROM orchestrator_workers WHERE state <> 'stopped'`, [])
    assert.deepStrictEqual(yield* sql`SELECT FROM orders_per_day`, [])

    const { pod: next, until: untilNext } = yield* start({})
    yield* untilNext(
      "the next pod handles the event",
      Effect.map(sql`SELECT FROM orders_per_day WHERE orders = 1`, (rows) => rows.length === 1)
    )
    assert.deepStrictEqual(yield* next.stop, { code: 0, signal: null }, next.output())
  }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))

/** Appends an order on a connection of its own. */
const appendOrder = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const connection = yield* sql.reserve
  yield* connection.execute(
    `INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
     VALUES ('shop', 'Order', '1', 1, gen_random_uuid(), 'OrderPlaced', '')`,
    [],
    undefined
  )
}).pipe(Effect.scoped)
