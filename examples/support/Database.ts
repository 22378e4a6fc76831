/**
 * The database of the examples: the one of `DATABASE_URL` if that is set, else the embedded PostgreSQL of this checkout,
 * which is started when needed and keeps running.
 */
import { PgClient } from "@effect/sql-pg"
import { Config, Console, Effect, Layer, Option, type Redacted } from "effect"
import { Redacted as Secret } from "effect"
import * as EmbeddedPostgres from "../../src/testing/EmbeddedPostgres.ts"

export const url: Effect.Effect<Redacted.Redacted, Config.ConfigError | EmbeddedPostgres.EmbeddedPostgresError> = Effect
  .gen(function*() {
    const given = yield* Config.option(Config.Redacted("DATABASE_URL"))
    if (Option.isSome(given) && Secret.value(given.value) !== "") return given.value
    const server = yield* EmbeddedPostgres.ensure()
    if (server.started) {
      // Not on the standard output, which some programs print JSON to.
      yield* Console.error(
        "Started a PostgreSQL server for this checkout; it keeps running when this program ends. Stop it with: npm run db -- stop"
      )
    }
    return Secret.make(server.url)
  })

/** A client of that database. */
export const layer = Layer.unwrap(Effect.map(url, (url) => PgClient.layer({ url, applicationName: "example" })))
