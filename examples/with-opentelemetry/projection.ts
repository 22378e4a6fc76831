import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { EventStore, Projection, ReadModel } from "pupsourcing-orchestrator"

export const Table = ReadModel.layer(
  "shipments",
  (sql) => sql`CREATE TABLE IF NOT EXISTS shipments (order_id text PRIMARY KEY)`
)

/** Stores a shipment for each order, and appends that it was requested. */
export const shipments = Projection.make("shipments", {
  eventTypes: ["OrderPlaced"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`INSERT INTO shipments VALUES (${event.aggregateId})`.pipe(Effect.withSpan("store shipment"))
    const events = yield* EventStore.EventStore
    yield* events.append([{
      boundedContext: "shipping",
      aggregateType: "Shipment",
      aggregateId: `shipment-of-${event.aggregateId}`,
      eventType: "ShipmentRequested",
      payload: {}
    }])
  })
})
