/** Two projections of the same events, for two purposes: a read model, and messages to customers. */
import { Data, Effect, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { Event, Projection, ReadModel } from "pupsourcing-orchestrator"

const OrderPlaced = Schema.Struct({ customer: Schema.String, amount: Schema.Int, email: Schema.NullOr(Schema.String) })

export const Tables = ReadModel.layer("order_totals and confirmations", (sql) =>
  Effect.andThen(
    sql`CREATE TABLE IF NOT EXISTS order_totals (customer text PRIMARY KEY, orders int NOT NULL, amount bigint NOT NULL)`,
    sql`CREATE TABLE IF NOT EXISTS confirmations (order_id text PRIMARY KEY, email text NOT NULL)`
  ))

/** Replica set `read-models`: the number and the amount of each customer's orders. */
export const orderTotals = Projection.make("order_totals", {
  eventTypes: ["OrderPlaced"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    const { amount, customer } = yield* Event.json(event, OrderPlaced)
    yield* sql`
      INSERT INTO order_totals (customer, orders, amount) VALUES (${customer}, 1, ${amount})
      ON CONFLICT (customer) DO UPDATE SET
        orders = order_totals.orders + 1, amount = order_totals.amount + excluded.amount`
  })
})

class NoEmail extends Data.TaggedError("NoEmail")<{ readonly message: string }> {}

/** Replica set `notifications`: the confirmations to send. An order without an email address fails, unless it is skipped. */
export const confirmations = (withoutEmail: "fail" | "skip") =>
  Projection.make("confirmations", {
    eventTypes: ["OrderPlaced"],
    handle: Effect.fnUntraced(function*(event) {
      const sql = yield* SqlClient.SqlClient
      const { email } = yield* Event.json(event, OrderPlaced)
      if (email === null) {
        return withoutEmail === "skip" ? undefined : yield* new NoEmail({ message: "The order has no email address." })
      }
      yield* sql`INSERT INTO confirmations (order_id, email) VALUES (${event.aggregateId}, ${email})`
      return undefined
    })
  })
