/** The program of this example, without loggers: it appends three orders, handles all events and ends. */
import { Config, Effect, Layer, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { Event, EventStore, Orchestrator, PostgresStores, Projection, ReadModel } from "pupsourcing-orchestrator"
import * as Database from "../support/Database.ts"

const OrderPlaced = Schema.Struct({ amount: Schema.Int })

const Table = ReadModel.layer(
  "logged_orders",
  (sql) => sql`CREATE TABLE IF NOT EXISTS logged_orders (id text PRIMARY KEY, amount bigint NOT NULL)`
)

/** The lines of a handler have the annotations of its worker and its range, and its own. */
const orders = Projection.make("orders", {
  eventTypes: ["OrderPlaced"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    const { amount } = yield* Event.json(event, OrderPlaced)
    yield* sql`INSERT INTO logged_orders VALUES (${event.aggregateId}, ${amount})`
    yield* Effect.logInfo("Order stored").pipe(Effect.annotateLogs({ order: event.aggregateId }))
  })
})

const replicaSet = "logged-orders"
const workerId = Config.String("WORKER_ID").pipe(Config.withDefault("worker-1"))

/** Provide loggers to this layer, so that they also write what is logged while it is built. */
export const Live = Orchestrator.layerConfig({ replicaSet, workerId, projections: [orders] }).pipe(
  Layer.provide(Table),
  Layer.provideMerge(PostgresStores.layer),
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provideMerge(Database.layer)
)

const appendOrder = (amount: number) =>
  Effect.flatMap(EventStore.EventStore, (events) =>
    events.append([{
      boundedContext: "sales",
      aggregateType: "Order",
      aggregateId: `order-${crypto.randomUUID()}`,
      eventType: "OrderPlaced",
      payload: { amount }
    }]))

export const program = Effect.andThen(
  Effect.forEach([1200, 350, 990], appendOrder, { discard: true }),
  Orchestrator.catchUp
)

/** Annotates what the program logs outside of a worker, too: a failed start, and signals. */
export const annotated = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.flatMap(workerId, (worker) => Effect.annotateLogs(self, { replica_set: replicaSet, worker }))
