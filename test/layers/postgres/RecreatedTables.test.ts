/** The tables are dropped and created again while workers run, so that their object identifiers change. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as Listener from "../../../src/layers/postgres/connection/Listener.ts"
import * as Presence from "../../../src/layers/postgres/coordination/Presence.ts"
import { Database } from "../../../src/layers/postgres/Database.ts"
import * as DatabaseLive from "../../../src/layers/postgres/DatabaseLive.ts"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as TimeLimits from "../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../support/EventStores.ts"

const recreate = Effect.gen(function*() {
  const sql = yield* PgClient.PgClient
  yield* sql`DROP TABLE events, aggregate_heads`
  yield* Effect.provideService(Migrations.down, SqlClient.SqlClient, sql)
  yield* Effect.provideService(Migrations.up, SqlClient.SqlClient, sql)
})

const event = {
  boundedContext: "test",
  aggregateType: "Test",
  aggregateId: "a",
  eventType: "Happened",
  payload: {}
}

const process = Effect.fnUntraced(function*(options: DatabaseLive.Options = {}) {
  const database = yield* DatabaseLive.make(options)
  const listener = yield* Effect.provideService(Listener.make, Database, database)
  return yield* Presence.make.pipe(
    Effect.provideService(Database, database),
    Effect.provideService(Listener.Listener, listener)
  )
})

EventStores.test(
  "a process stays present for processes that start later, under keys that are not issued again",
  function*({ sql }) {
    const before = yield* process()
    const key = yield* before.enter
    yield* recreate
    const after = yield* process()
    // Independent of how the tables are named.
    for (const other of [after, yield* process({ schema: "public" })]) {
      const present = yield* sql.unsafe<{ readonly key: bigint }>(other.presentKeys)
      assert.deepStrictEqual(present.map(({ key }) => Number(key)), [key])
    }
    // The sequence of the keys has been restarted as well.
    assert.notStrictEqual(yield* after.enter, key)
  }
)

EventStores.test(
  "a worker registers again, and receives events that are appended to the new tables",
  function*({ sql }) {
    yield* sql`CREATE TABLE handled (generation int)`
    let generation = 1
    const projection = Projection.make("seen", {
      handle: Effect.fnUntraced(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`INSERT INTO handled VALUES (${generation})`
      })
    })
    // Another process, which opens its stores after the tables were created again.
    const appender = Effect.map(
      Layer.build(Layer.fresh(PostgresStores.layerWith({ presence: false }))),
      (stores) => Context.get(stores, EventStore).append([event])
    )
    const seen = Effect.suspend(() =>
      TimeLimits.waitUntil(
        "the event is handled",
        sql<{ readonly found: boolean }>`SELECT EXISTS (SELECT FROM handled WHERE generation = ${generation}) AS found`,
        ([row]) => row?.found === true
      )
    )
    yield* Effect.forkScoped(Effect.provide(
      Orchestrator.run,
      Orchestrator.layer({
        replicaSet: "main",
        projections: [projection],
        heartbeatInterval: "200 millis",
        pollInterval: "10 minutes"
      }).pipe(Layer.provide(PostgresStores.layer))
    ))
    yield* yield* appender
    yield* seen
    yield* recreate
    generation = 2
    yield* TimeLimits.waitUntil(
      "the worker is registered again and has the range",
      sql<{ readonly found: boolean }>`
        SELECT EXISTS (SELECT FROM orchestrator_checkpoints WHERE worker_id IS NOT NULL) AS found`,
      ([row]) => row?.found === true
    )
    const append = yield* appender
    yield* append
    yield* seen
    generation = 3
    yield* append
    yield* seen
  }
)
