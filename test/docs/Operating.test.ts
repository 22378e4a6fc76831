/**
 * The statements of docs/operating-a-projection.md, run while workers are running.
 */
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { waitUntil } from "../../src/testing/TimeLimits.ts"
import * as Commands from "../support/Commands.ts"
import { event } from "../support/EventStores.ts"
import * as Tests from "../support/Tests.ts"
import * as Pages from "./Pages.ts"

class Broken extends Schema.TaggedError<Broken>()("Broken", { id: Schema.String }) {}

/** What the handler refuses, and a counter of its calls. */
interface Handler {
  readonly refused: Set<string>
  calls: number
  /** Of projections that start later. */
  onFailure: Projection.FailureDecision
}

/** Writes one row for each event; a second one for the same event violates the primary key. */
const users = (handler: Handler) =>
  Projection.make("users", {
    onFailure: handler.onFailure,
    handle: Effect.fnUntraced(function*({ aggregateId, eventId }) {
      const sql = yield* SqlClient.SqlClient
      handler.calls++
      if (handler.refused.has(aggregateId)) return yield* new Broken({ id: aggregateId })
      yield* sql`INSERT INTO users (event_id) VALUES (${eventId}::uuid)`
    })
  })

const given = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const store = yield* EventStore
  yield* sql`CREATE TABLE users (event_id uuid PRIMARY KEY)`
  const handler: Handler = { refused: new Set(), calls: 0, onFailure: "halt" }
  const url = yield* Tests.url
  const sqlOf = (name: string, values: Readonly<Record<string, string>> = {}) =>
    Pages.runSql(sql, Pages.substitute(Pages.block("operating-a-projection", name), values))
  /** Starts a worker, which ends with the test. */
  const start = Effect.gen(function*() {
    const orchestrator = yield* Orchestrator.make({
      replicaSet: "main",
      projections: [users(handler)],
      pollInterval: "100 millis"
    })
    const worker = yield* Effect.forkScoped(orchestrator.run)
    return { stop: Fiber.interrupt(worker) }
  })
  const append = (ids: ReadonlyArray<string>) => Effect.forEach(ids, (id) => store.append([event(id)]))
  const handled = Effect.map(sql<{ readonly n: bigint }>`SELECT count(*) AS n FROM users`, ([row]) => Number(row!.n))
  const halted = Effect.map(sqlOf("halted"), ([rows]) => rows!)
  /** Runs a command of the page about an event. */
  const command = Effect.fnUntraced(function*(name: "retry" | "skip", eventId: string) {
    assert.include(Pages.read("operating-a-projection"), `npx pupsourcing-orchestrator ${name} users `)
    return yield* Commands.run([name, "users", eventId], url)
  })
  return {
    sql,
    command,
    handler,
    sqlOf,
    start,
    append,
    handled,
    halted,
    untilHandled: (n: number) => waitUntil(`${n} events are handled`, handled, (now) => now === n),
    untilHalted: waitUntil("a range is halted", halted, (rows) => rows.length === 1)
  }
})

const test = Tests.live(
  PostgresStores.layer.pipe(Layer.provideMerge(Migrations.layer), Layer.provideMerge(PostgresTest.layer)),
  given
)

const ids = Array.from({ length: 12 }, (_, index) => `user-${index}`)

test(
  "list and halted show position, owner and error",
  function*({ append, handler, sqlOf, start, untilHalted }) {
    handler.refused.add("user-5")
    yield* start
    yield* append(ids)
    const [halted] = yield* untilHalted
    assert.deepInclude(halted, { projection_name: "users", halted_position: 6n })
    assert.include(String(halted!["halted_error"]), "Broken")
    const [listed] = (yield* sqlOf("list")).flat()
    assert.deepInclude(listed, {
      replica_set: "main",
      projection_name: "users",
      ranges: 1n,
      position: 5n,
      behind: 7n,
      halted: 1n,
      without_owner: 0n
    })
  }
)

test("retry lets the running worker handle the event again, and only that one", function*(world) {
  const { append, handled, handler, sqlOf, start, untilHalted, untilHandled } = world
  handler.refused.add("user-5")
  yield* start
  yield* append(ids)
  yield* untilHalted
  // Still refused: the range is halted again.
  const calls = handler.calls
  yield* sqlOf("retry")
  yield* sqlOf("notify")
  yield* waitUntil("the event is retried", Effect.sync(() => handler.calls), (now) => now > calls)
  yield* untilHalted
  assert.strictEqual(yield* handled, 5)
  handler.refused.clear()
  yield* sqlOf("retry")
  yield* untilHandled(12)
})

test("skip passes over exactly one event while the worker runs", function*(world) {
  const { append, halted, handler, sql, sqlOf, start, untilHalted, untilHandled } = world
  handler.refused.add("user-5")
  yield* start
  yield* append(ids)
  const [row] = yield* untilHalted
  const placeholder = "0b6cf0a0-5f5c-4d5b-9a63-1f6f2d0c9e77"
  assert.deepStrictEqual(yield* sqlOf("skip"), [[]])
  const [skipped] = yield* sqlOf("skip", { [placeholder]: String(row!["halted_event_id"]) })
  assert.strictEqual(skipped!.length, 1)
  yield* untilHandled(11)
  assert.deepStrictEqual(yield* halted, [])
  const missing = yield* sql`SELECT aggregate_id FROM events WHERE event_id NOT IN (SELECT event_id FROM users)`
  assert.deepStrictEqual(missing, [{ aggregate_id: "user-5" }])
})

for (const name of ["retry", "skip"] as const) {
  test(`the command ${name} continues the halted range without a restart`, function*(world) {
    const { append, command, halted, handler, sql, start, untilHalted, untilHandled } = world
    handler.refused.add("user-5")
    yield* start
    yield* append(ids)
    const [row] = yield* untilHalted
    const eventId = String(row!["halted_event_id"])
    handler.refused.clear()
    const asked = yield* command(name, eventId)
    assert.deepStrictEqual([asked.code, asked.err], [0, ""])
    yield* untilHandled(name === "retry" ? 12 : 11)
    assert.deepStrictEqual(yield* halted, [])
    const missing = yield* sql`SELECT aggregate_id FROM events WHERE event_id NOT IN (SELECT event_id FROM users)`
    assert.deepStrictEqual(missing, name === "retry" ? [] : [{ aggregate_id: "user-5" }])
    const again = yield* command(name, eventId)
    assert.strictEqual(again.code, 1)
    assert.include(again.err, "None of its ranges is halted")
  })
}

test("rebuild deletes parked events, and the worker handles their events again", function*(world) {
  const { append, handler, sql, sqlOf, start, untilHandled } = world
  handler.refused.add("user-5")
  handler.onFailure = "park"
  yield* start
  yield* append([...ids, "user-5"])
  yield* untilHandled(11)
  const parked = sql`SELECT aggregate_id FROM orchestrator_parked_events`
  yield* waitUntil("both events of the key are parked", parked, (rows) => rows.length === 2)
  handler.refused.clear()
  yield* sqlOf("rebuild")
  yield* untilHandled(13)
  assert.deepStrictEqual(yield* parked, [])
})

test(
  "rebuild under two running workers and concurrent appends handles every event once",
  { tags: ["long"] },
  function*({ append, halted, sql, sqlOf, start, untilHandled }) {
    yield* start
    yield* start
    const appending = yield* Effect.forkScoped(
      Effect.forEach(Array.from({ length: 40 }), () => append(ids), { discard: true })
    )
    for (let rebuild = 0; rebuild < 8; rebuild++) {
      const before = yield* sql<{ readonly n: bigint }>`SELECT count(*) AS n FROM users`
      yield* waitUntil(
        "workers are handling events",
        sql<{ readonly n: bigint }>`SELECT count(*) AS n FROM users`,
        ([row]) => row!.n > 0n || before[0]!.n > 0n
      )
      yield* sqlOf("rebuild")
    }
    yield* Fiber.join(appending)
    yield* untilHandled(40 * ids.length)
    // A batch that was not rolled back would have violated the primary key.
    assert.deepStrictEqual(yield* halted, [])
  }
)

test(
  "rebuild waits for a batch that is about to commit",
  function*({ append, handled, sql, sqlOf, start, untilHandled }) {
    const { stop } = yield* start
    yield* append(ids)
    yield* untilHandled(12)
    yield* stop
    const [written, rebuilding] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
    // What a batch does: the read model first, then its position.
    const batch = yield* Effect.andThen(
      sql`INSERT INTO users VALUES (gen_random_uuid())`,
      sql`UPDATE orchestrator_checkpoints SET position = 13`
    ).pipe(
      Effect.andThen(Deferred.succeed(written, undefined)),
      Effect.andThen(Deferred.await(rebuilding)),
      sql.withTransaction,
      Effect.forkScoped
    )
    yield* Deferred.await(written)
    const rebuild = yield* Effect.forkScoped(sqlOf("rebuild"))
    yield* waitUntil("the rebuild waits", sql`SELECT FROM pg_locks WHERE NOT granted`, (rows) => rows.length > 0)
    yield* Deferred.succeed(rebuilding, undefined)
    yield* Fiber.join(batch)
    yield* Fiber.join(rebuild)
    assert.strictEqual(yield* handled, 0)
    assert.deepStrictEqual(yield* sql`SELECT position FROM orchestrator_checkpoints`, [{ position: 0n }])
  }
)

test("rebuild also continues a halted range", function*({ append, handler, sqlOf, start, untilHalted, untilHandled }) {
  handler.refused.add("user-5")
  yield* start
  yield* append(ids)
  yield* untilHalted
  handler.refused.clear()
  yield* sqlOf("rebuild")
  yield* untilHandled(12)
  assert.isAbove(handler.calls, 17)
})

test(
  "retire deletes nothing while a worker carries the projection",
  function*({ append, sql, sqlOf, start, untilHandled }) {
    const { stop } = yield* start
    yield* append(ids)
    yield* untilHandled(12)
    const rows = sql`SELECT projection_name FROM orchestrator_checkpoints`
    assert.deepStrictEqual((yield* sqlOf("retire")).flat(), [])
    assert.strictEqual((yield* rows).length, 1)
    yield* stop
    assert.strictEqual((yield* sqlOf("retire")).flat().length, 1)
    assert.deepStrictEqual(yield* rows, [])
  }
)

test(
  "a projection whose rows are deleted under a running worker starts again from the beginning",
  function*({ append, halted, sql, start, untilHandled, untilHalted }) {
    yield* start
    yield* append(ids)
    yield* untilHandled(12)
    yield* sql`DELETE FROM orchestrator_checkpoints WHERE projection_name = 'users'`
    // The first event is handled again, on top of its row.
    yield* untilHalted
    const [row] = yield* halted
    assert.include(String(row!["halted_error"]), "UniqueViolation")
    assert.strictEqual(row!["halted_position"], 1n)
  }
)
