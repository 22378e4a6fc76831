/**
 * What docs/operations.md states about errors, backups and lost tables.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as Library from "../../src/index.ts"
import * as Http from "../../src/layers/http/Http.ts"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { waitUntil } from "../../src/testing/TimeLimits.ts"
import { event } from "../support/EventStores.ts"
import * as Pages from "./Pages.ts"

it("has one entry for each error that users can meet", () => {
  const exported = [...Object.values(Library), Http].flatMap((module) =>
    Object.entries(module).flatMap(([name, value]: [string, unknown]) =>
      typeof value === "function" && value.prototype instanceof Error ? [name] : []
    )
  )
  const errors = Pages.read("operations").split("## Errors")[1]!
  const entries = errors.split(/^### /m).slice(1)
  const names = entries.map((entry) => /^`(\w+)`/.exec(entry)?.[1])
  // Of a StoreError, the reasons have entries.
  assert.sameMembers(names, [...new Set(exported)].filter((name) => name !== "StoreError"))
  for (const entry of entries) {
    for (const part of ["- **Does a retry help?** ", "- **Fixed by**: "]) assert.include(entry, part)
  }
  const index = [...errors.split(/^### /m)[0]!.split("| group |")[1]!.matchAll(/\[`(\w+)`\]\(#\w+\) ?[,|]/g)].map((
    [, name]
  ) => name)
  assert.sameMembers(index, names)
})

const users = Projection.make("users", {
  handle: Effect.fnUntraced(function*({ eventId }) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`INSERT INTO users (event_id) VALUES (${eventId}::uuid)`
  })
})

const stores = (url: string) =>
  Layer.fresh(PostgresStores.layer.pipe(
    Layer.provideMerge(Layer.fresh(Migrations.layer)),
    Layer.provideMerge(PgClient.layer({ url: Redacted.make(url) }))
  ))

const append = (count: number) =>
  Effect.flatMap(
    EventStore,
    (store) =>
      Effect.forEach(Array.from({ length: count }), (_, n) => store.append([event(`user-${n}`)]), { discard: true })
  )

const start = Effect.flatMap(
  Orchestrator.make({ replicaSet: "main", projections: [users], pollInterval: "100 millis" }),
  ({ run }) => Effect.map(Effect.forkScoped(run), (fiber) => ({ stop: Fiber.interrupt(fiber) }))
)

const untilHandled = (count: number) =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) => waitUntil(`${count} events are handled`, sql`SELECT FROM users`, (rows) => rows.length === count)
  )

/** Runs steps on the database with connections of their own, which are closed afterwards. */
const on = <A, E, R>(url: string, steps: Effect.Effect<A, E, R>) => Effect.scoped(Effect.provide(steps, stores(url)))

it.live(
  "a restored backup continues at its own positions, although the registrations in it have no process",
  () =>
    Effect.gen(function*() {
      const original = yield* PostgresTest.make()
      yield* on(
        original.url,
        Effect.gen(function*() {
          const sql = yield* SqlClient.SqlClient
          yield* sql`CREATE TABLE users (event_id uuid PRIMARY KEY)`
          yield* start
          yield* append(10)
          yield* untilHandled(10)
          // As a backup contains it that is taken while the worker runs.
          yield* sql`CREATE TABLE backup AS TABLE orchestrator_workers`
          yield* sql`CREATE TABLE backup_checkpoints AS TABLE orchestrator_checkpoints`
        })
      )
      const restored = yield* PostgresTest.make({ template: original.name })
      yield* on(
        restored.url,
        Effect.gen(function*() {
          const sql = yield* SqlClient.SqlClient
          yield* sql`UPDATE orchestrator_workers w SET state = b.state, stopped_at = NULL FROM backup b WHERE w.worker_id = b.worker_id`
          yield* sql`
          UPDATE orchestrator_checkpoints c SET worker_id = b.worker_id, incarnation = b.incarnation, generation_id = b.generation_id
          FROM backup_checkpoints b WHERE c.range_start = b.range_start`
          const owned = yield* sql`SELECT FROM orchestrator_checkpoints WHERE worker_id IS NOT NULL`
          assert.isAbove(owned.length, 0)
          yield* append(10)
          yield* start
          yield* untilHandled(20)
        })
      )
    }).pipe(Effect.scoped),
  { tags: ["long"] }
)

it.live("a worker whose tables of generations, workers and heartbeats are lost registers again", () =>
  Effect.gen(function*() {
    const { url } = yield* PostgresTest.make()
    yield* on(
      url,
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE users (event_id uuid PRIMARY KEY)`
        yield* start
        yield* append(10)
        yield* untilHandled(10)
        yield* sql`TRUNCATE orchestrator_generations, orchestrator_workers, orchestrator_heartbeats`
        yield* waitUntil(
          "the worker is registered",
          sql`SELECT FROM orchestrator_workers WHERE state = 'running'`,
          (rows) => rows.length === 1
        )
        yield* append(10)
        yield* untilHandled(20)
      })
    )
  }).pipe(Effect.scoped))

it.live("the statements for sequences let appends and workers continue after logical replication", () =>
  Effect.gen(function*() {
    const { url } = yield* PostgresTest.make()
    yield* on(
      url,
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE users (event_id uuid PRIMARY KEY)`
        const { stop } = yield* start
        yield* append(10)
        yield* untilHandled(10)
        yield* stop
        // Logical replication copies rows, but no sequences.
        yield* sql`SELECT setval('events_global_position_seq', 1, false), setval('orchestrator_incarnations', 1, false)`
      })
    )
    yield* on(
      url,
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const refused = yield* Effect.flip(append(1))
        assert(refused._tag === "StoreError")
        assert.strictEqual(refused.reason._tag, "UnsupportedDatabase")
        assert.include(refused.message, "setval")
        yield* Pages.runSql(sql, Pages.block("operations", "sequences"))
        yield* append(10)
        yield* start
        yield* untilHandled(20)
        const [row] = yield* sql<{ readonly fresh: boolean }>`
          SELECT bool_and(incarnation > 1) AS fresh FROM orchestrator_workers WHERE state <> 'stopped'`
        assert.isTrue(row!.fresh)
      })
    )
  }).pipe(Effect.scoped))
