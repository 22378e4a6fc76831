/**
 * Settings and temporary tables that the application leaves on a session of its pool must not change which tables the
 * stores use.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import * as TableNames from "../../../src/schema/TableNames.ts"
import { CheckpointStore } from "../../../src/services/CheckpointStore.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import * as CoordinationStores from "../../support/CoordinationStores.ts"

const stream = { boundedContext: "test", aggregateType: "Test", aggregateId: "a" }

const idleTimeout = Duration.seconds(30)

const run = (statements: ReadonlyArray<string>) =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) => Effect.forEach(statements, (statement) => sql.unsafe(statement).unprepared, { discard: true })
  )

/** Tables of the same names that belong to the session or to another schema. */
const leftovers: ReadonlyArray<readonly [name: string, statements: ReadonlyArray<string>]> = [
  [
    "temporary tables of the same names",
    [
      "events",
      "aggregate_heads",
      "orchestrator_checkpoints",
      "orchestrator_meta",
      "orchestrator_workers",
      "orchestrator_generations",
      "orchestrator_heartbeats"
    ].map((name) => `CREATE TEMP TABLE ${name} (LIKE public.${name} INCLUDING ALL)`)
  ],
  [
    "temporary tables with the names of catalogs",
    [
      "pg_class",
      "pg_namespace",
      "pg_attribute",
      "pg_index",
      "pg_collation",
      "pg_stat_activity"
    ].map((name) => `CREATE TEMP TABLE ${name} (nothing int)`)
  ],
  ["another search_path", ["SET search_path = elsewhere"]],
  ["another search_path, which begins with the temporary schema", [
    "CREATE TEMP TABLE events (LIKE public.events INCLUDING ALL)",
    "SET search_path = pg_temp, elsewhere, public"
  ]],
  ["no search_path", ["SET search_path = ''"]]
]

const work = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const store = yield* EventStore
  const checkpoints = yield* CheckpointStore
  const { positions } = yield* store.append([{ ...stream, eventType: "Happened", payload: {} }])
  assert.strictEqual((yield* store.readStream(stream)).length, 1)
  const found = yield* sql<{ readonly position: bigint }>`SELECT global_position AS position FROM public.events`
  assert.deepStrictEqual(found.map(({ position }) => position), positions)
  assert.strictEqual((yield* sql`SELECT FROM public.aggregate_heads`).length, 1)
  const row = yield* CoordinationStores.held("p")
  yield* checkpoints.commit(row, { from: 0n, idleTimeout }, Effect.succeed(1n))
  yield* checkpoints.advance(row, { from: 1n, to: 2n })
  yield* checkpoints.halt(row, { at: 2n, error: "e", position: 3n, eventId: "id", key: "a" })
  const [stored] = yield* checkpoints.rows("p")
  assert.deepStrictEqual([stored?.position, stored?.halt?.position], [2n, 3n])
  const progress = yield* sql<{ readonly position: bigint }>`SELECT position FROM public.orchestrator_checkpoints`
  assert.deepStrictEqual(progress.map(({ position }) => position), [2n])
})

/** A single session, migrated, with a copy of all tables in a schema that is not on the search_path. */
const database = Layer.effectDiscard(
  Effect.andThen(Migrations.up, Migrations.upWith({ schema: "elsewhere" }))
).pipe(Layer.provideMerge(PostgresTest.layerWith({ client: { maxConnections: 1 } })))

const live = (
  title: string,
  test: Effect.Effect<void, unknown, PgClient.PgClient | SqlClient.SqlClient | Scope.Scope>
) =>
  it.live(
    title,
    () => Effect.provide(Effect.scoped(test), database as Layer.Layer<PgClient.PgClient | SqlClient.SqlClient>)
  )

const stores = Layer.fresh(PostgresStores.layer)

describe("a session of the application's pool", () => {
  for (const [name, statements] of leftovers) {
    live(
      `redirects no statement, left with ${name}`,
      Effect.provide(Effect.andThen(run(statements), work), stores)
    )

    live(`redirects no start, left with ${name}`, Effect.andThen(run(statements), Effect.provide(work, stores)))
  }

  live(
    "can be given another search_path by a handler, and the batch commits",
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const checkpoints = yield* CheckpointStore
      const row = yield* CoordinationStores.held("p")
      for (const from of [0n, 1n]) {
        yield* checkpoints.commit(
          row,
          { from, idleTimeout },
          Effect.as(sql`SET search_path = elsewhere, pg_catalog`, from + 1n)
        )
      }
      assert.strictEqual((yield* checkpoints.rows("p"))[0]?.position, 2n)
    }).pipe(Effect.provide(stores))
  )
})

it.live("migrations create the tables beside temporary tables of the same names", () =>
  Effect.gen(function*() {
    yield* run(
      ["events", "orchestrator_meta", "orchestrator_workers"].map((name) => `CREATE TEMP TABLE ${name} (id int)`)
    )
    yield* Migrations.up
    assert.deepStrictEqual(
      (yield* Migrations.status).tables.map(({ exists }) => exists),
      TableNames.keys.map(() => true)
    )
    yield* Effect.scoped(Effect.provide(work, stores))
  }).pipe(Effect.provide(PostgresTest.layerWith({ client: { maxConnections: 1 } }))))

it.live("finds tables in several schemas of the search_path", () =>
  Effect.gen(function*() {
    yield* run(["CREATE SCHEMA one", "CREATE SCHEMA two"])
    yield* Migrations.up
    yield* run([
      "ALTER TABLE aggregate_heads SET SCHEMA two",
      "ALTER TABLE orchestrator_checkpoints SET SCHEMA public",
      "CREATE VIEW public.aggregate_heads AS SELECT 1 AS wrong"
    ])
    const sql = yield* SqlClient.SqlClient
    yield* Effect.gen(function*() {
      const store = yield* EventStore
      yield* store.append([{ ...stream, eventType: "Happened", payload: {} }])
      assert.strictEqual((yield* store.readStream(stream)).length, 1)
      assert.strictEqual(yield* store.settledPosition, 1n)
    }).pipe(Effect.provide(stores))
    assert.strictEqual((yield* sql`SELECT FROM two.aggregate_heads`).length, 1)
  }).pipe(
    Effect.provide(
      PostgresTest.layerWith({ client: { startupParameters: { search_path: "one,two,public" } } })
    )
  ))
