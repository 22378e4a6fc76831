/**
 * Tests how a failed store statement is handled while a worker starts and after it has registered.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import type * as SqlClient from "effect/sql/SqlClient"
import * as TestClock from "effect/testing/TestClock"
import { describe } from "vitest"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import { StatementFailed, StoreError } from "../../../src/schema/Errors.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as RetryLog from "../../../src/services/telemetry/RetryLog.ts"
import * as Startup from "../../../src/services/worker/Startup.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import * as EventStores from "../../support/EventStores.ts"
import * as Seam from "../../support/Seam.ts"
import { unavailable } from "../../support/StoreErrors.ts"

const refused = (code: string) =>
  new StoreError({ reason: new StatementFailed({ operation: "test", code, detail: "test", cause: new Error("test") }) })

/** Counts the runs of a step that always fails, and reports whether it has ended after `duration`. */
const runsOf = Effect.fnUntraced(function*(
  startup: Startup.Startup,
  error: StoreError,
  duration: Duration.Input
) {
  let runs = 0
  const fiber = yield* Effect.suspend(() => {
    runs++
    return Effect.fail(error)
  }).pipe(startup.step("Testing"), Effect.exit, Effect.forkChild)
  yield* TestClock.adjust(duration)
  const ended = fiber.pollUnsafe() !== undefined
  yield* Fiber.interrupt(fiber)
  return { runs, ended }
})

const registered = Effect.fnUntraced(function*() {
  const startup = Startup.make(RetryLog.make())
  yield* startup.step(Startup.registering)(Effect.void)
  return startup
})

describe("failures at start and after registration", () => {
  it.effect("before registration, a retryable failure is retried for five seconds", () =>
    Effect.gen(function*() {
      for (const error of [unavailable("refused"), refused("40001")]) {
        const early = yield* runsOf(Startup.make(RetryLog.make()), error, "4500 millis")
        assert.isFalse(early.ended)
        assert.isAbove(early.runs, 8)
        assert.isTrue((yield* runsOf(Startup.make(RetryLog.make()), error, "6 seconds")).ended)
      }
    }))

  it.effect("a permanent failure ends the worker at once", () =>
    Effect.gen(function*() {
      for (const error of [unavailable("wrong password"), unavailable("unknown database"), refused("42501")]) {
        assert.deepStrictEqual(yield* runsOf(Startup.make(RetryLog.make()), error, 0), { runs: 1, ended: true })
      }
    }))

  it.effect("after registration, transient failures are retried without limit", () =>
    Effect.gen(function*() {
      for (const error of [unavailable("refused"), unavailable("wrong password"), refused("40001")]) {
        assert.isFalse((yield* runsOf(yield* registered(), error, "1 hour")).ended)
      }
    }))

  it.effect("registration lifts the retry limit of steps that began before it", () =>
    Effect.gen(function*() {
      const startup = Startup.make(RetryLog.make())
      const fiber = yield* Effect.fail(unavailable("no answer in time")).pipe(
        startup.step("Testing"),
        Effect.exit,
        Effect.forkChild
      )
      yield* TestClock.adjust("4 seconds")
      yield* startup.step(Startup.registering)(Effect.void)
      yield* TestClock.adjust("1 hour")
      assert.isUndefined(fiber.pollUnsafe())
      yield* Fiber.interrupt(fiber)
    }))

  it.effect("after registration, a step that has never succeeded still fails at once on a missing privilege", () =>
    Effect.gen(function*() {
      const startup = yield* registered()
      assert.deepStrictEqual(yield* runsOf(startup, refused("42501"), 0), { runs: 1, ended: true })
      startup.worked("Testing")
      assert.isFalse((yield* runsOf(startup, refused("42501"), "1 hour")).ended)
    }))
})

/** Starts a worker whose `n`th statement loses its connection, before or after it runs, and lets it catch up. */
const startAndLose = Effect.fnUntraced(function*(url: string, n: number) {
  let sent = 0
  let lost: Seam.Statement | undefined
  let handled = 0
  const hooks: Seam.Hooks = {
    around: (statement, send) => {
      if (handled > 0 || sent++ !== n) return send
      lost = statement
      return n % 2 === 0 ? statement.lose : Effect.andThen(send, statement.lose)
    }
  }
  const projection = Projection.make(`lost ${n}`, { startFrom: 1n, handle: () => Effect.sync(() => void handled++) })
  const exit = yield* Orchestrator.catchUp.pipe(
    Effect.provide(
      Orchestrator.layer({ replicaSet: projection.name, projections: [projection] }).pipe(
        Layer.provide(Seam.stores(hooks)),
        Layer.provideMerge(Seam.client({ url: Redacted.make(url), maxConnections: 3 }, hooks))
      )
    ),
    Effect.exit
  )
  return { lost, exit }
})

it.live("a worker starts although its connection is lost at any single statement", () =>
  Effect.gen(function*() {
    const { url } = yield* PostgresTest.TestDatabase
    yield* EventStore.use((events) =>
      Effect.forEach(["before", "first"], (aggregateId) => events.append([EventStores.event(aggregateId)]))
    ).pipe(Effect.provide(Seam.stores({})))
    const sessions = new Map<string, number>()
    let next = 0
    let done = false
    const startOneAfterAnother = Effect.gen(function*() {
      while (!done) {
        const n = next++
        const { exit, lost } = yield* startAndLose(url, n)
        assert.strictEqual(exit._tag, "Success", `statement ${n} on ${lost?.session}: ${lost?.text}\n${String(exit)}`)
        if (lost === undefined) done = true
        else sessions.set(lost.session, (sessions.get(lost.session) ?? 0) + 1)
      }
    })
    yield* Effect.forEach([1, 2, 3], () => startOneAfterAnother, { concurrency: "unbounded" })
    // Covers opening, the start position, presence, registration, the first decision and the first batch.
    for (const [session, least] of [["pool", 3], ["reader", 5], ["listener", 2], ["coordination", 10]] as const) {
      assert.isAtLeast(sessions.get(session === "pool" ? session : `pupsourcing-orchestrator ${session}`) ?? 0, least)
    }
  }).pipe(
    Effect.provide(Layer.provideMerge(Migrations.layer, PostgresTest.layer) as Layer.Layer<
      PostgresTest.TestDatabase | PgClient.PgClient | SqlClient.SqlClient
    >)
  ))
