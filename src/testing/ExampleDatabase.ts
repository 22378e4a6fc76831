/**
 * The database of the examples, the demo and the benchmarks: the one of `DATABASE_URL` if that is set, else the embedded
 * PostgreSQL of this checkout, which is started when needed and keeps running.
 */
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as EmbeddedPostgres from "./EmbeddedPostgres.ts"

export const url: Effect.Effect<Redacted.Redacted, Config.ConfigError | EmbeddedPostgres.EmbeddedPostgresError> = Effect
  .gen(function*() {
    const given = yield* Config.option(Config.Redacted("DATABASE_URL"))
    if (Option.isSome(given) && Redacted.value(given.value) !== "") return given.value
    const server = yield* EmbeddedPostgres.ensure()
    if (server.started) {
      // Not on the standard output, which some programs print JSON to.
      yield* Console.error(
        "Started a PostgreSQL server for this checkout; it keeps running when this program ends. Stop it with: npm run db -- stop"
      )
    }
    return Redacted.make(server.url)
  })
