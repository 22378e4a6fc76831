/**
 * The statements and projections of docs/changing-a-projection.md, in the order of the page.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { waitUntil } from "../../src/testing/TimeLimits.ts"
import { event } from "../support/EventStores.ts"
import * as Tests from "../support/Tests.ts"
import * as Pages from "./Pages.ts"

const page = "changing-a-projection"

/** The old version of the projection. */
const old = Projection.make("users", {
  eventTypes: ["UserCreated"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`INSERT INTO users (event_id, event_type) VALUES (${event.eventId}::uuid, ${event.eventType})`
  })
})
type Users = typeof old

const given = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const store = yield* EventStore
  yield* sql`CREATE TABLE users (event_id uuid PRIMARY KEY, event_type text NOT NULL)`
  const orchestrator = (projections: ReadonlyArray<Users>) =>
    Orchestrator.make({ replicaSet: "main", projections, pollInterval: "100 millis" })
  return {
    sql,
    sqlOf: (name: string) => Pages.runSql(sql, Pages.block(page, name)),
    /** Appends an event of each type. */
    append: Effect.forEach(
      ["UserCreated", "UserRenamed"],
      (eventType) => store.append([event(`user-${eventType}`, { eventType })])
    ),
    catchUp: (projection: Users) => Effect.flatMap(orchestrator([projection]), ({ catchUp }) => catchUp),
    start: (projections: ReadonlyArray<Users>) =>
      Effect.map(
        Effect.flatMap(orchestrator(projections), ({ run }) => Effect.forkScoped(run)),
        (fiber) => ({ stop: Fiber.interrupt(fiber) })
      ),
    types: (table: string) =>
      Effect.map(
        sql<{ readonly event_type: string }>`SELECT event_type FROM ${sql(table)} ORDER BY 1`,
        (rows) => rows.map((row) => row.event_type)
      )
  }
})

const test = Tests.live(
  PostgresStores.layer.pipe(Layer.provideMerge(Migrations.layer), Layer.provideMerge(PostgresTest.layer)),
  given
)

test("a changed filter is refused, and replaced for the events that follow", function*({ append, catchUp, types }) {
  const { users } = yield* Pages.importBlock<{ readonly users: Users }>(page, "replace")
  yield* append
  yield* catchUp(old)
  const refused = yield* Effect.flip(catchUp({ ...users, replacesFilter: [] }))
  assert.strictEqual(refused._tag, "FilterChanged")
  assert.include(Pages.block(page, "replace"), /set (replacesFilter: .*?})\./.exec(refused.message)?.[1] ?? "nothing")
  yield* catchUp(users)
  assert.deepStrictEqual(yield* types("users"), ["UserCreated"])
  yield* append
  yield* catchUp(users)
  assert.deepStrictEqual(yield* types("users"), ["UserCreated", "UserCreated", "UserRenamed"])
  // A rollback.
  assert.strictEqual((yield* Effect.flip(catchUp(old)))._tag, "FilterChanged")
  yield* append
  yield* catchUp({ ...old, replacesFilter: [users.filter] })
  assert.deepStrictEqual(yield* types("users"), ["UserCreated", "UserCreated", "UserCreated", "UserRenamed"])
})

test(
  "a new name and table take over the reads without an interruption",
  function*({ append, sql, sqlOf, start, types }) {
    yield* append
    const before = yield* start([old])
    yield* waitUntil("the old table is filled", types("users"), (rows) => rows.length === 1)
    yield* sqlOf("view")
    const { UsersV2, usersV2 } = yield* Pages.importBlock<
      { readonly UsersV2: Layer.Layer<never, Error, SqlClient.SqlClient>; readonly usersV2: Users }
    >(page, "beside")
    yield* Effect.provide(Effect.void, UsersV2)
    const both = yield* start([old, usersV2])
    yield* before.stop
    yield* append
    yield* waitUntil(
      "the new table has caught up",
      Effect.map(sqlOf("caught-up"), (rows) => rows.flat()[0]!),
      ({ behind, halted }) => behind === 0n && halted === 0n
    )
    assert.deepStrictEqual(yield* types("current_users"), ["UserCreated", "UserCreated"])
    yield* sqlOf("switch")
    assert.deepStrictEqual(yield* types("current_users"), ["UserCreated", "UserCreated", "UserRenamed", "UserRenamed"])
    const after = yield* start([usersV2])
    yield* both.stop
    const retired = yield* Pages.runSql(sql, Pages.block("operating-a-projection", "retire"))
    assert.isAtLeast(retired.flat().length, 1)
    yield* sqlOf("drop")
    yield* append
    yield* waitUntil("the new version continues", types("current_users"), (rows) => rows.length === 6)
    yield* after.stop
  }
)

test("another replica set takes the progress over once the workers of the first have stopped", function*(world) {
  const { append, start, types } = world
  const here = yield* start([old])
  yield* append
  yield* waitUntil("the event is handled", types("users"), (rows) => rows.length === 1)
  const there = yield* Orchestrator.make({ replicaSet: "other", projections: [old] })
  assert.strictEqual((yield* Effect.flip(there.catchUp))._tag, "ProjectionInOtherReplicaSet")
  yield* here.stop
  yield* append
  yield* there.catchUp
  // A second handling of the first event would violate the primary key.
  assert.strictEqual((yield* types("users")).length, 2)
})
