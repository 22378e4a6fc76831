import { Effect, Layer, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { Event, Projection, ReadModel } from "pupsourcing-orchestrator"

const OrderPlaced = Schema.Struct({ customer: Schema.String, amount: Schema.Int })

/** The read models. Every worker of this example creates their tables at startup. */
export const Tables = Layer.mergeAll(
  ReadModel.layer("invoices", (sql) =>
    sql`
      CREATE TABLE IF NOT EXISTS invoices (
        order_id text PRIMARY KEY,
        customer text NOT NULL,
        amount bigint NOT NULL CHECK (amount > 0)
      )`),
  ReadModel.layer("sales", (sql) =>
    sql`
      CREATE TABLE IF NOT EXISTS sales (
        order_id text PRIMARY KEY,
        amount bigint NOT NULL
      )`)
)

/** Writes one invoice for each order. It halts at an order with a negative amount, which the table refuses. */
export const invoices = Projection.make("invoices", {
  eventTypes: ["OrderPlaced"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    const { amount, customer } = yield* Event.json(event, OrderPlaced)
    yield* sql`INSERT INTO invoices (order_id, customer, amount) VALUES (${event.aggregateId}, ${customer}, ${amount})`
  })
})

/** Lists the amount of each order, whatever it is. */
export const sales = Projection.make("sales", {
  eventTypes: ["OrderPlaced"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    const { amount } = yield* Event.json(event, OrderPlaced)
    yield* sql`INSERT INTO sales (order_id, amount) VALUES (${event.aggregateId}, ${amount})`
  })
})
