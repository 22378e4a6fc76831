/** Two clients in one program get two sets of stores, however their layers are combined. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import { CoordinationStore } from "../../../src/services/CoordinationStore.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../support/EventStores.ts"
import * as Tests from "../../support/Tests.ts"

const test = Tests.on(it.live)

type Client = Layer.Layer<PgClient.PgClient | SqlClient.SqlClient, unknown>

const append = (aggregateId: string) => EventStore.use((events) => events.append([EventStores.event(aggregateId)]))

/** Services that append to one database each, as a user would write them. */
class Orders extends Context.Service<Orders, { readonly place: Effect.Effect<unknown, unknown> }>()("test/Orders") {
  static readonly layer = Layer.effect(Orders)(Effect.map(EventStore, (events) => ({
    place: events.append([EventStores.event("order")])
  })))
}
class Invoices
  extends Context.Service<Invoices, { readonly send: Effect.Effect<unknown, unknown> }>()("test/Invoices")
{
  static readonly layer = Layer.effect(Invoices)(Effect.map(EventStore, (events) => ({
    send: events.append([EventStores.event("invoice")])
  })))
}

const client = (url: string): Client => PgClient.layer({ url: Redacted.make(url), maxConnections: 4 })

/** Two databases, migrated by default, with a client layer for each. */
const twoDatabases = Effect.fnUntraced(function*(migrated = true) {
  const [a, b] = yield* Effect.all([PostgresTest.make(), PostgresTest.make()], { concurrency: 2 })
  if (migrated) {
    yield* Effect.forEach([a, b], ({ url }) => PostgresTest.withConnection(url, Migrations.up), { concurrency: 2 })
  }
  return { a: { ...a, client: client(a.url) }, b: { ...b, client: client(b.url) } }
})

/** The aggregates in a database's events, read without the stores. */
const aggregates = (url: string) =>
  PostgresTest.withConnection(
    url,
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      sql<{ readonly id: string }>`SELECT aggregate_id AS id FROM events ORDER BY 1`)
  ).pipe(Effect.map((rows) =>
    rows.map(({ id }) => id)
  ))

/** Sessions of the library on a database, by name. */
const sessions = (url: string, name: string) =>
  PostgresTest.withConnection(
    url,
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      sql`SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND application_name = ${name}`)
  ).pipe(Effect.map((rows) =>
    rows.length
  ))

test("stores provided inside the stores of another client use their own client", function*() {
  const { a, b } = yield* twoDatabases()
  const inner = append("inner").pipe(Effect.provide(PostgresStores.layer.pipe(Layer.provide(b.client))))
  yield* append("before").pipe(
    Effect.andThen(inner),
    Effect.andThen(append("after")),
    Effect.provide(PostgresStores.layer.pipe(Layer.provide(a.client)))
  )
  assert.deepStrictEqual(yield* aggregates(a.url), ["after", "before"])
  assert.deepStrictEqual(yield* aggregates(b.url), ["inner"])
})

test("two services over two clients in one mergeAll append to their own database", function*() {
  const { a, b } = yield* twoDatabases()
  const options = PostgresStores.layerWith({ listen: false })
  for (const stores of [PostgresStores.layer, options]) {
    yield* Effect.gen(function*() {
      yield* (yield* Orders).place
      yield* (yield* Invoices).send
    }).pipe(Effect.provide(Layer.mergeAll(
      Orders.layer.pipe(Layer.provide(stores), Layer.provide(a.client)),
      Invoices.layer.pipe(Layer.provideMerge(stores), Layer.provideMerge(b.client))
    )))
  }
  assert.deepStrictEqual(yield* aggregates(a.url), ["order", "order"])
  assert.deepStrictEqual(yield* aggregates(b.url), ["invoice", "invoice"])
})

test("layerMigrations migrates the database of every client", function*() {
  const { a, b } = yield* twoDatabases(false)
  yield* Layer.build(Layer.mergeAll(
    PostgresStores.layerMigrations.pipe(Layer.provide(a.client)),
    PostgresStores.layerMigrations.pipe(Layer.provide(b.client))
  ))
  for (const { url } of [a, b]) {
    const { version } = yield* PostgresTest.withConnection(url, Migrations.status)
    assert.isDefined(version)
  }
})

test("one client has one set of stores, wherever a program provides it", function*() {
  const { a } = yield* twoDatabases()
  const stores = PostgresStores.layer.pipe(Layer.provide(a.client))
  const pick = <I, S>(service: Context.Key<I, S>) =>
    Layer.effectDiscard(Effect.map(service, (value) => found.add(value)))
  const found = new Set<unknown>()
  yield* Effect.gen(function*() {
    found.add(yield* EventStore)
    found.add(yield* Effect.provide(EventStore, stores))
    found.add(yield* Effect.provide(EventStore, PostgresStores.layer.pipe(Layer.provideMerge(a.client))))
    yield* append("one")
    // A session opens after the stores.
    const listening = sessions(a.url, "pupsourcing-orchestrator listener")
    assert.strictEqual(yield* TimeLimits.waitUntil("a session listens", listening, (count) => count > 0), 1)
  }).pipe(Effect.provide(Layer.mergeAll(
    pick(EventStore).pipe(Layer.provide(stores)),
    pick(EventStore).pipe(Layer.provide(PostgresStores.layer), Layer.provide(a.client)),
    stores
  )))
  assert.strictEqual(found.size, 1)
})

test("stores are built again after they were closed, and Layer.fresh builds another set", function*() {
  const { a, b } = yield* twoDatabases()
  const context = yield* Layer.build(a.client)
  const other = yield* Layer.build(b.client)
  const open = (stores: typeof PostgresStores.layer, from: Context.Context<PgClient.PgClient>) =>
    Effect.gen(function*() {
      const scope = yield* Scope.make()
      const built = yield* Layer.buildWithScope(stores, scope).pipe(Effect.provide(from))
      return { events: Context.get(built, EventStore), close: Scope.close(scope, Exit.void) }
    })
  const first = yield* open(PostgresStores.layer, context)
  yield* first.events.append([EventStores.event("first")])
  yield* first.close
  const second = yield* open(PostgresStores.layer, context)
  const third = yield* open(PostgresStores.layer, other)
  const fresh = yield* open(Layer.fresh(PostgresStores.layer), context)
  assert.strictEqual(new Set([first.events, second.events, third.events, fresh.events]).size, 4)
  yield* second.events.append([EventStores.event("second")])
  yield* third.events.append([EventStores.event("third")])
  yield* second.close
  yield* fresh.events.append([EventStores.event("fresh")])
  yield* Effect.all([third.close, fresh.close])
  assert.deepStrictEqual(yield* aggregates(a.url), ["first", "fresh", "second"])
  assert.deepStrictEqual(yield* aggregates(b.url), ["third"])
})

test("one constant orchestrator layer over two databases builds two orchestrators", function*() {
  const { a, b } = yield* twoDatabases()
  const projections = [Projection.make("nothing", { handle: () => Effect.void })]
  for (
    const worker of [
      Orchestrator.layer({ replicaSet: "two", projections }),
      Orchestrator.layerConfig({ replicaSet: "two", projections })
    ]
  ) {
    const over = (client: Client) => worker.pipe(Layer.provideMerge(PostgresStores.layer), Layer.provideMerge(client))
    const outer = yield* Layer.build(over(a.client))
    const [inner, coordination] = yield* Effect.all([Orchestrator.Orchestrator, CoordinationStore]).pipe(
      Effect.provide(over(b.client)),
      Effect.provide(outer)
    )
    assert.notStrictEqual(inner, Context.get(outer, Orchestrator.Orchestrator))
    assert.notStrictEqual(coordination, Context.get(outer, CoordinationStore))
  }
})
