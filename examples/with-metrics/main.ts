/**
 * One worker of replica set `orders`, with its metrics at http://127.0.0.1:9464/metrics. Start another one with `PORT=9465`. With
 * `--once`, it appends some orders, handles all events, prints its metrics and ends.
 */
import { Config, Console, Effect, Layer } from "effect"
import { Orchestrator, PostgresStores, Program } from "pupsourcing-orchestrator"
import * as Http from "pupsourcing-orchestrator/http"
import * as ConsoleLog from "../support/ConsoleLog.ts"
import * as Database from "../support/Database.ts"
import * as Orders from "./orders.ts"
import { invoices, sales, Tables } from "./projections.ts"

const Live = Orchestrator.layer({ replicaSet: "orders", projections: [invoices, sales] }).pipe(
  Layer.provide(Tables),
  Layer.provideMerge(PostgresStores.layer),
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provideMerge(Database.layer)
)

/** The server starts before the worker registers, and ends after it has left. */
const untilStopped = Effect.gen(function*() {
  const port = yield* Config.Int("PORT").pipe(Config.withDefault(9464))
  yield* Effect.log(`Metrics: http://127.0.0.1:${port}/metrics`)
  return yield* Effect.provide(Orchestrator.run, Http.layer({ port }))
})

/** Without a port: the handler of Fetch requests answers what the server would answer. */
const once = Effect.gen(function*() {
  yield* Orders.append([1200, 350, 990])
  yield* Orchestrator.catchUp
  const handle = yield* Http.makeFetchHandler
  const metrics = yield* Effect.promise(() =>
    handle(new Request("http://localhost/metrics")).then((response) => response.text())
  )
  yield* Console.log(metrics.split("\n").filter((line) => !/^#|_bucket\{/.test(line)).join("\n"))
})

const program = Effect.gen(function*() {
  if (process.argv.includes("--once")) return yield* Effect.scoped(once)
  return yield* untilStopped
})

Program.runMain(program.pipe(Effect.provide(Live.pipe(Layer.provideMerge(ConsoleLog.layer)))))
