/** One worker. With `--once`, it handles the existing events and ends. */
import { Effect, Layer } from "effect"
import { Orchestrator, PostgresStores, Program } from "pupsourcing-orchestrator"
import * as ConsoleLog from "../support/ConsoleLog.ts"
import * as Database from "../support/Database.ts"
import * as Accounts from "./projection.ts"

const Live = Orchestrator.layer({ replicaSet: "accounts", projections: [Accounts.accounts] }).pipe(
  Layer.provide(PostgresStores.layer),
  Layer.provide(Accounts.Table),
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provideMerge(Database.layer)
)

const worker = process.argv.includes("--once") ? Orchestrator.catchUp : Orchestrator.run

Program.runMain(worker.pipe(Effect.provide(Live.pipe(Layer.provideMerge(ConsoleLog.layer)))))
