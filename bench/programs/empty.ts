/** An Effect program that opens one connection and executes one statement. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { PgClient } from "@effect/sql-pg"
import { Config, Effect } from "effect"
import { SqlClient } from "effect/sql"
import { report } from "./report.ts"

const program = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`SELECT 1`
  report()
})

NodeRuntime.runMain(program.pipe(
  Effect.provide(
    PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL"), applicationName: Config.succeed("bench empty") })
  )
))
