/** A projection that parks the events of an order when it cannot handle them, so that the other orders continue. */
import { Effect, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { Event, Projection, ReadModel } from "pupsourcing-orchestrator"

const OrderPlaced = Schema.Struct({ country: Schema.String, amount: Schema.Int })

export const Tables = ReadModel.layer("orders and vat_rates", (sql) =>
  Effect.andThen(
    sql`CREATE TABLE IF NOT EXISTS vat_rates (country text PRIMARY KEY, percent int NOT NULL)`,
    sql`
      CREATE TABLE IF NOT EXISTS orders (
        id text PRIMARY KEY,
        vat int NOT NULL,
        history text NOT NULL
      )`
  ))

export class NoSuchCountry extends Schema.TaggedError<NoSuchCountry>()("NoSuchCountry", { country: Schema.String }) {
  override get message(): string {
    return `There is no VAT rate for "${this.country}".`
  }
}

const handle = Effect.fnUntraced(function*(event: Event.Event) {
  const sql = yield* SqlClient.SqlClient
  if (event.eventType !== "OrderPlaced") {
    return yield* sql`
      UPDATE orders SET history = history || ', ' || ${event.eventType} WHERE id = ${event.aggregateId}`
  }
  const { amount, country } = yield* Event.json(event, OrderPlaced)
  const [rate] = yield* sql<{ readonly percent: number }>`SELECT percent FROM vat_rates WHERE country = ${country}`
  if (rate === undefined) return yield* new NoSuchCountry({ country })
  return yield* sql`
    INSERT INTO orders (id, vat, history)
    VALUES (${event.aggregateId}, ${Math.round(amount * rate.percent / 100)}, ${event.eventType})`
})

export const orders = Projection.make("orders", {
  aggregateTypes: ["Order"],
  handle,
  // Any other error is a fault of this program, which would fail at other events, too.
  onFailure: { NoSuchCountry: "park" }
})
