/**
 * One worker handles orders of three countries. For two of them there is no VAT rate yet: their events are parked, and the
 * later events of these orders queue behind them, while all other orders continue. Then one order is retried, after the
 * cause was removed, and the other one is dropped.
 */
import { Console, Effect, Layer, References } from "effect"
import { SqlClient } from "effect/sql"
import {
  EventStore,
  Orchestrator,
  type ParkedEvent,
  PostgresStores,
  Program,
  Projections
} from "pupsourcing-orchestrator"
import * as ConsoleLog from "../support/ConsoleLog.ts"
import * as Database from "../support/Database.ts"
import { orders, Tables } from "./projection.ts"

/** Each run has its own orders. */
const run = globalThis.crypto.randomUUID().slice(0, 8)

const append = Effect.fnUntraced(function*(id: string, eventType: string, payload: unknown = {}) {
  const events = yield* EventStore.EventStore
  yield* events.append([{
    boundedContext: "shop",
    aggregateType: "Order",
    aggregateId: `${id}-${run}`,
    eventType,
    payload
  }])
})

/** The events of the orders alternate, as they would in a shop. */
const appendOrders = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`DELETE FROM vat_rates`
  yield* sql`INSERT INTO vat_rates (country, percent) VALUES ('DE', 19)`
  yield* append("berlin", "OrderPlaced", { country: "DE", amount: 100 })
  yield* append("oslo", "OrderPlaced", { country: "NO", amount: 200 })
  yield* append("atlantis", "OrderPlaced", { country: "XX", amount: 300 })
  for (const eventType of ["OrderPaid", "OrderShipped"]) {
    for (const id of ["berlin", "oslo", "atlantis"]) yield* append(id, eventType)
  }
  yield* Console.log("Appended 9 events of 3 orders.")
})

/** Waits until the projection has no event left to handle and as many parked as given, and prints both. */
const reportWhen = Effect.fnUntraced(function*(what: string, parkedCount: number) {
  const { parked, status } = yield* Projections.Projections
  while (true) {
    const { head, replicaSets } = yield* status
    const projection = replicaSets.flatMap(({ projections }) => projections)
      .find(({ projection }) => projection === orders.name)
    const isDone = projection !== undefined && head > 0n && projection.ranges.every(({ lag }) => lag.events === 0n)
    if (isDone && (projection.parked?.events ?? 0) === parkedCount) break
    yield* Effect.sleep("100 millis")
  }
  yield* Console.log(`\n${what}`)
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ readonly id: string; readonly vat: number; readonly history: string }>`
    SELECT id, vat, history FROM orders WHERE id LIKE ${`%-${run}`} ORDER BY id`
  for (const { history, id, vat } of rows) yield* Console.log(`  handled  ${nameOf(id)}  VAT ${vat}: ${history}`)
  for (const event of yield* parked(orders.name)) yield* Console.log(`  parked   ${describe(event)}`)
})

const nameOf = (key: string) => key.split("-")[0]!.padEnd(8)

const describe = ({ attempts, errorTag, eventType, key }: ParkedEvent.ParkedEvent) =>
  `${nameOf(key)}  ${eventType}: ${attempts === 0 ? "queued behind it" : errorTag}`

const steps = Effect.gen(function*() {
  const { dropParked, retryParked } = yield* Projections.Projections
  const sql = yield* SqlClient.SqlClient
  yield* appendOrders
  yield* reportWhen("The order from Berlin is complete; the events of two orders are parked:", 6)

  yield* sql`INSERT INTO vat_rates (country, percent) VALUES ('NO', 25)`
  yield* retryParked(orders.name, { key: `oslo-${run}` })
  yield* reportWhen("There is a rate for Norway now, and the order from Oslo was retried:", 3)

  yield* dropParked(orders.name, { key: `atlantis-${run}` })
  yield* reportWhen("The order from Atlantis was a mistake, and was dropped:", 0)
})

const program = Effect.gen(function*() {
  const worker = yield* Orchestrator.make({ replicaSet: "shop", projections: [orders] })
  yield* Effect.raceFirst(worker.run, steps)
})

const Live = PostgresStores.layer.pipe(
  Layer.provide(Tables),
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provideMerge(Database.layer),
  Layer.provideMerge(ConsoleLog.layer),
  // The status shows what is parked.
  Layer.provideMerge(Layer.succeed(References.MinimumLogLevel, "None"))
)

Program.runMain(Effect.provide(program, Live))
