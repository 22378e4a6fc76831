/** The database of the examples: the one of `DATABASE_URL`, which `npm run example` sets. */
import { PgClient } from "@effect/sql-pg"
import { Config } from "effect"

export const layer = PgClient.layerConfig({
  url: Config.Redacted("DATABASE_URL"),
  applicationName: Config.succeed("example"),
  keepAlive: Config.succeed("15 seconds")
})
