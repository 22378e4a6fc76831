import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { Projection, ReadModel } from "pupsourcing-orchestrator"

export const Table = ReadModel.layer(
  "orders_per_day",
  (sql) => sql`CREATE TABLE IF NOT EXISTS orders_per_day (day date PRIMARY KEY, orders bigint NOT NULL)`
)

/** Counts the orders of each day. */
export const ordersPerDay = Projection.make("orders_per_day", {
  eventTypes: ["OrderPlaced"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`
      INSERT INTO orders_per_day AS d (day, orders) VALUES (${event.createdAt}::date, 1)
      ON CONFLICT (day) DO UPDATE SET orders = d.orders + 1`
  })
})
