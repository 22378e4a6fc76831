/**
 * The program of a pod: a worker, and its endpoints for probes and Prometheus on port 9090 of all addresses. Everything that differs
 * between environments is read from environment variables. With `--once`, it handles the existing events and ends.
 */
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, Layer, Logger } from "effect"
import { Orchestrator, PostgresStores, Program } from "pupsourcing-orchestrator"
import * as Http from "pupsourcing-orchestrator/http"
import { ordersPerDay, Table } from "./projection.ts"

// The default of the example; the Deployment sets the variable.
process.env["ORCHESTRATOR_REPLICA_SET"] ??= "orders"

const Database = PgClient.layerConfig({
  url: Config.Redacted("DATABASE_URL"),
  applicationName: Config.withDefault(Config.String("ORCHESTRATOR_WORKER_ID"), "worker"),
  keepAlive: Config.succeed("15 seconds")
})

/** In the cluster, a Job runs the migrations with a role that may create tables. */
const Migrations = Layer.unwrap(Effect.gen(function*() {
  const isEnabled = yield* Config.withDefault(Config.Boolean("RUN_MIGRATIONS"), true)
  return isEnabled ? PostgresStores.layerMigrations : Layer.empty
}))

const Live = Orchestrator.layerFromEnv({ projections: [ordersPerDay] }).pipe(
  Layer.provide(Table),
  Layer.provideMerge(PostgresStores.layerFromEnv),
  Layer.provide(Migrations),
  Layer.provideMerge(Database),
  Layer.provideMerge(Logger.layer([process.stdout.isTTY ? Logger.consolePretty() : Logger.consoleJson]))
)

const Endpoints = Layer.unwrap(Effect.gen(function*() {
  const port = yield* Config.withDefault(Config.Int("PORT"), 9090)
  // Probes and Prometheus connect to the address of the pod.
  return Http.layer({ host: "0.0.0.0", port })
}))

const worker = process.argv.includes("--once") ? Orchestrator.catchUp : Orchestrator.run

// The endpoints answer until the worker has left.
Program.runMain(Effect.provide(worker, Layer.provideMerge(Endpoints, Live)))
