/**
 * Appends two orders a second until Ctrl+C; with `--once`, only two. With `--broken`, it appends one order at which the projection
 * `invoices` halts.
 */
import { Console, Effect, Layer, Schedule } from "effect"
import { PostgresStores, Program } from "pupsourcing-orchestrator"
import * as Database from "../support/Database.ts"
import * as Orders from "./orders.ts"

const some = Orders.append([1200, 350])

const append = process.argv.includes("--broken")
  ? Effect.andThen(Orders.append([-1]), Console.log("Appended an order with a negative amount."))
  : process.argv.includes("--once")
  ? Effect.andThen(some, Console.log("Appended 2 orders."))
  : Effect.andThen(
    Console.log("Appending 2 orders a second. Press Ctrl+C to stop."),
    Effect.repeat(some, Schedule.spaced("1 second"))
  )

const Live = PostgresStores.layer.pipe(
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provide(Database.layer)
)

Program.runMain(append.pipe(Effect.provide(Live)))
