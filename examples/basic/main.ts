/**
 * One worker of replica set `main-projections`. Start it in as many terminals as you like.
 */
import { Effect, Layer } from "effect"
import { Orchestrator, PostgresStores, Program } from "pupsourcing-orchestrator"
import * as ConsoleLog from "../support/ConsoleLog.ts"
import * as Database from "../support/Database.ts"
import * as Users from "./projection.ts"

const Live = Orchestrator.layer({ replicaSet: "main-projections", projections: [Users.users] }).pipe(
  Layer.provide(PostgresStores.layer),
  Layer.provide(Users.Table),
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provideMerge(Database.layer)
)

Program.runMain(Orchestrator.run.pipe(Effect.provide(Live.pipe(Layer.provideMerge(ConsoleLog.layer)))))
