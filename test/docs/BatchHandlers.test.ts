/** The recipes of docs/batch-handlers.md, on PostgreSQL. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import type * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as Tests from "../support/Tests.ts"
import * as Pages from "./Pages.ts"

type Users = Projection.Projection<unknown, SqlClient.SqlClient>

const layer = PostgresStores.layer.pipe(Layer.provideMerge(Migrations.layer), Layer.provideMerge(PostgresTest.layer))
const test = Tests.live(layer, Effect.all({ sql: SqlClient.SqlClient, store: EventStore }))

const catchUp = (projection: Users) =>
  Effect.flatMap(
    Orchestrator.make({ replicaSet: projection.name, projections: [projection] }),
    (worker) => worker.catchUp
  )

test("one upsert counts the events of each type, once", function*({ sql, store }) {
  const { eventsPerType } = yield* Pages.importBlock<{ readonly eventsPerType: Users }>("batch-handlers", "upsert")
  yield* sql`CREATE TABLE events_per_type (event_type text PRIMARY KEY, events bigint NOT NULL)`
  const append = (count: number) =>
    Effect.forEach(Array.from({ length: count }, (_, index) => index), (index) =>
      store.append([{
        boundedContext: "test",
        aggregateType: "Thing",
        aggregateId: `thing-${index % 7}`,
        eventType: index % 3 === 0 ? "Third" : "Other",
        payload: {}
      }]), { discard: true })
  const counts = Effect.map(
    sql<{ readonly event_type: string; readonly events: bigint }>`SELECT * FROM events_per_type ORDER BY event_type`,
    (rows) => rows.map(({ event_type, events }) => [event_type, events])
  )
  yield* append(150)
  yield* catchUp(eventsPerType)
  assert.deepStrictEqual(yield* counts, [["Other", 100n], ["Third", 50n]])
  yield* append(3)
  yield* catchUp(eventsPerType)
  assert.deepStrictEqual(yield* counts, [["Other", 102n], ["Third", 51n]])
})

test("the lookups of an event's items are one statement in its transaction", function*({ sql, store }) {
  const { orderTotals } = yield* Pages.importBlock<{ readonly orderTotals: Users }>("batch-handlers", "lookup")
  yield* sql`CREATE TABLE prices (id text PRIMARY KEY, price int NOT NULL)`
  // Each statement that reads the view draws a number.
  yield* sql`CREATE SEQUENCE lookups`
  yield* sql`CREATE VIEW products AS SELECT id, price FROM prices WHERE (SELECT nextval('lookups')) > 0`
  yield* sql`CREATE TABLE order_totals (id text PRIMARY KEY, total int NOT NULL)`
  yield* sql`INSERT INTO prices VALUES ('pen', 2), ('book', 20)`
  yield* store.append([{
    boundedContext: "shop",
    aggregateType: "Order",
    aggregateId: "order-1",
    eventType: "OrderPlaced",
    payload: {
      lines: [{ product: "pen", quantity: 3 }, { product: "book", quantity: 1 }, { product: "pen", quantity: 1 }]
    }
  }])
  yield* catchUp(orderTotals)
  assert.deepStrictEqual(yield* sql`SELECT * FROM order_totals`, [{ id: "order-1", total: 28 }])
  assert.deepStrictEqual(yield* sql`SELECT last_value, is_called FROM lookups`, [{ last_value: 1n, is_called: true }])
})
