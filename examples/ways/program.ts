import { PgClient } from "@effect/sql-pg"
import { Config, Effect, Layer } from "effect"
import { Orchestrator, PostgresStores, Program, Projection, ReadModel } from "pupsourcing-orchestrator"

const users = Projection.make("user_projection", {
  aggregateTypes: ["User"],
  // This statement commits together with the progress.
  handle: ({ aggregateId }) =>
    ReadModel.sql`INSERT INTO known_users (id) VALUES (${aggregateId}) ON CONFLICT DO NOTHING`
})

const KnownUsers = ReadModel.layer(
  "known_users",
  (sql) => sql`CREATE TABLE IF NOT EXISTS known_users (id text PRIMARY KEY)`
)

const Live = Orchestrator.layer({ replicaSet: "main-projections", projections: [users] }).pipe(
  Layer.provide(KnownUsers),
  Layer.provide(PostgresStores.layer),
  Layer.provideMerge(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))
)

Program.runMain(Orchestrator.run.pipe(Effect.provide(Live)))
