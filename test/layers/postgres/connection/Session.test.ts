import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as SqlClient from "effect/sql/SqlClient"
import { describe } from "vitest"
import { serverOf } from "../../../../src/layers/postgres/connection/Server.ts"
import * as Session from "../../../../src/layers/postgres/connection/Session.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as Tests from "../../../support/Tests.ts"

const make = Effect.fnUntraced(function*(deadline: Duration.Input = "10 seconds") {
  const { config } = yield* PgClient.PgClient
  let opened = 0
  const session = yield* Session.make({
    config,
    server: serverOf(config),
    name: "session test",
    deadline: Duration.fromInputUnsafe(deadline),
    state: () => ({ number: ++opened })
  })
  return {
    ...session,
    /** Identifies the connection, by its state and by the server's process id. */
    look: session.use("look", ({ sql, state }) =>
      Effect.map(
        sql<{ readonly pid: number; readonly fresh: boolean }>`
          SELECT pg_backend_pid() AS pid, pg_current_xact_id_if_assigned() IS NULL AS fresh`,
        ([row]) => ({ ...row!, number: state.number })
      ))
  }
})

const test = Tests.postgres

const kill = (pid: number) => Effect.flatMap(PgClient.PgClient, (sql) => sql`SELECT pg_terminate_backend(${pid}, 5000)`)

describe("Session", () => {
  test("connects on first use, and stays on that connection", function*({ sql }) {
    const session = yield* make()
    const count = Effect.map(
      sql`SELECT FROM pg_stat_activity WHERE application_name = 'session test' AND datname = current_database()`,
      (rows) => rows.length
    )
    assert.strictEqual(yield* count, 0)
    const all = yield* Effect.forEach(Array.from({ length: 5 }), () => session.look, { concurrency: 5 })
    assert.deepStrictEqual([...new Set(all.map(({ number }) => number))], [1])
    assert.strictEqual(yield* count, 1)
  })

  test("a lost connection fails one call, and its state is discarded", function*() {
    const session = yield* make()
    const first = yield* session.look
    yield* kill(first.pid)
    const error = yield* Effect.flip(session.look)
    assert.include(error.reason, { _tag: "DatabaseUnavailable", condition: "connection lost" })
    const second = yield* session.look
    assert.notStrictEqual(second.pid, first.pid)
    assert.strictEqual(second.number, 2)
  })

  /** Statements that end the connection with errors that do not mention a connection. */
  const ends = {
    "a time limit of the server for transactions": (sql: SqlClient.SqlClient) =>
      sql`SELECT set_config('transaction_timeout', '100', true)`.pipe(
        Effect.andThen(Effect.sleep("400 millis")),
        Effect.andThen(sql`SELECT 1`),
        sql.withTransaction
      ),
    "a row that the driver cannot decode": (sql: SqlClient.SqlClient) => sql`SELECT (-1)::int4::"char" AS c`
  }
  for (const [how, end] of Object.entries(ends)) {
    test(`a connection that is lost by ${how} is replaced`, function*() {
      const session = yield* make()
      assert.strictEqual((yield* session.look).number, 1)
      yield* Effect.flip(session.use("end", ({ sql }) => end(sql)))
      assert.strictEqual((yield* session.look).number, 2)
    })
  }

  test("a failed statement keeps the connection and its state", function*() {
    const session = yield* make()
    const first = yield* session.look
    assert.strictEqual(
      (yield* Effect.flip(session.use("divide", ({ sql }) => sql`SELECT 1 / 0`))).reason._tag,
      "StatementFailed"
    )
    assert.deepStrictEqual(yield* session.look, first)
  })

  test("a call without an answer by the deadline fails, and the connection is replaced", function*() {
    const session = yield* make(TimeLimits.scaled("300 millis"))
    const first = yield* session.look
    // Longer than a test may take.
    const error = yield* Effect.flip(session.use("sleep", ({ sql }) => sql`SELECT pg_sleep(3600)`))
    assert.include(error.reason, { _tag: "DatabaseUnavailable", condition: "no answer in time" })
    assert.strictEqual((yield* session.look).number, first.number + 1)
  })

  test("an answer that arrived while the process was blocked is not too late", function*() {
    const session = yield* make(TimeLimits.scaled("200 millis"))
    const first = yield* session.look
    const answer = yield* Effect.forkChild(session.look, { startImmediately: true })
    yield* Effect.sleep(0)
    // As a handler does that computes for a long time.
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, TimeLimits.scaledMillis(600))
    assert.deepStrictEqual(yield* Fiber.join(answer), first)
    assert.deepStrictEqual(yield* session.look, first)
  })

  test("an interrupted call stops waiting, and the connection stays usable", function*({ sql }) {
    const session = yield* make()
    const first = yield* session.look
    // The statement cannot end before this transaction does.
    yield* sql.withTransaction(Effect.gen(function*() {
      yield* sql`SELECT pg_advisory_xact_lock(1)`
      const waiting = yield* Effect.forkChild(
        session.use("wait", ({ sql }) => sql`SELECT pg_advisory_xact_lock(1)`),
        { startImmediately: true }
      )
      yield* Fiber.interrupt(waiting)
    }))
    assert.deepStrictEqual(yield* session.look, first)
  })

  test("a failed statement is reported with its code and operation", function*() {
    const session = yield* make()
    const first = yield* session.look
    const error = yield* Effect.flip(session.use("divide", ({ sql }) => sql`SELECT 1 / 0`))
    assert.include(error.reason, { _tag: "StatementFailed", code: "22012", operation: "divide" })
    assert.strictEqual((yield* session.look).pid, first.pid)
  })

  test("does not run in the caller's transaction", function*({ sql }) {
    const session = yield* make()
    yield* sql.withTransaction(Effect.gen(function*() {
      yield* sql`CREATE TABLE t (x int)`
      const inside = yield* sql<{ readonly pid: number }>`SELECT pg_backend_pid() AS pid`
      const seen = yield* session.look
      assert.notStrictEqual(seen.pid, inside[0]?.pid)
      assert.isTrue(seen.fresh)
    }))
  })
})
