/** The fenced upsert of docs/ordering-and-delivery.md, into a second database of the same server. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import type * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import type { Fence } from "../../src/schema/Checkpoint.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { event } from "../support/EventStores.ts"
import * as Tests from "../support/Tests.ts"
import * as Pages from "./Pages.ts"

type Search = { readonly _: unique symbol }

interface Block {
  readonly Search: Context.Service<Search, SqlClient.SqlClient>
  readonly search: Projection.Projection<never, Search | Projection.Delivery>
}

const stores = PostgresStores.layer.pipe(Layer.provideMerge(Migrations.layer), Layer.provideMerge(PostgresTest.layer))
const test = Tests.live(stores, Effect.all({ events: EventStore, checkpoints: CheckpointStore }))

/** The client of a second database with the table of the page. */
const otherDatabase = Effect.gen(function*() {
  const { url } = yield* PostgresTest.make()
  const sql: SqlClient.SqlClient = yield* Effect.provide(
    PgClient.makeClient({ url: Redacted.make(url) }),
    Reactivity.layer
  )
  yield* sql`CREATE TABLE products (id text PRIMARY KEY, changes int, position bigint)`
  return sql
})

test("repeated and late writes have no effect on the other database", function*({ checkpoints, events }) {
  const { Search, search } = yield* Pages.importBlock<Block>("ordering-and-delivery", "delivery")
  const sql = yield* otherDatabase
  const ids = ["a", "b", "c", "d"]
  for (const id of [...ids, ...ids, ...ids]) yield* events.append([event(id, { aggregateType: "Product" })])
  const products = sql<{ readonly id: string; readonly changes: number }>`
    SELECT id, changes, position::text FROM products ORDER BY id`

  // The first worker handles the events, and ends before it has written the progress.
  const crashes = yield* Latch.make(false)
  const options = { replicaSet: "main", projections: [search], drainTimeout: 0 }
  const first = yield* Orchestrator.make(options).pipe(
    Effect.provideService(Search, sql),
    Effect.provideService(CheckpointStore, {
      ...checkpoints,
      advance: () => Effect.andThen(crashes.open, Effect.never)
    })
  )
  const run = yield* Effect.forkChild(first.run)
  yield* crashes.await
  const [held] = yield* checkpoints.rows("search")
  yield* Fiber.interrupt(run)

  const second = yield* Effect.provideService(Orchestrator.make(options), Search, sql)
  yield* second.catchUp
  const after = yield* products
  assert.deepStrictEqual(after.map(({ changes, id }) => [id, changes]), ids.map((id) => [id, 3]))

  // A write of the first worker that arrives only now.
  yield* events.append([event("a", { aggregateType: "Product" })])
  yield* second.catchUp
  const current = yield* products
  const [repeated] = yield* events.readStream({ boundedContext: "test", aggregateType: "Product", aggregateId: "a" })
  const write = (fence: Fence, position: bigint) =>
    Projection.handle(search, [repeated!]).pipe(
      Effect.provideService(Search, sql),
      Effect.provideService(Projection.Delivery, { fence, position })
    )
  yield* write(held!.fence!, repeated!.globalPosition)
  assert.deepStrictEqual(yield* products, current)

  // A worker of another replica set, whose generations have lower numbers.
  yield* write({ workerId: "other", incarnation: 1000n, generationId: 0n }, repeated!.globalPosition + 1000n)
  const [moved] = yield* products
  assert.strictEqual(moved!.changes, current[0]!.changes + 1)
})
