/** The database on which a command runs. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Flag from "effect/cli/Flag"
import * as Config from "effect/Config"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as SqlClient from "effect/sql/SqlClient"
import * as ClientConfig from "../layers/postgres/connection/ClientConfig.ts"
import { serverOf } from "../layers/postgres/connection/Server.ts"
import { refail } from "../layers/postgres/connection/SqlErrors.ts"
import { configErrorText } from "../schema/ConfigErrorText.ts"
import { InvalidSettings } from "../schema/Errors.ts"

export const databaseUrl = Flag.Redacted("database-url").pipe(
  Flag.withMetavar("url"),
  Flag.withDescription(
    "postgresql://user:password@host:port/database; prefer DATABASE_URL, because other users can see arguments"
  ),
  Flag.optional
)

/** Runs an effect with a client of the database of `--database-url` or `DATABASE_URL`. */
export const withDatabase = <A, E, R>(
  given: Option.Option<Redacted.Redacted<string>>,
  self: Effect.Effect<A, E, PgClient.PgClient | SqlClient.SqlClient | R>
) =>
  Effect.flatMap(resolveUrl(given), (url) => {
    // A command sends few statements, so it has no advantage from prepared ones, which poolers in transaction mode lose.
    const config = { url, maxConnections: 1, applicationName: "pupsourcing-orchestrator command", prepare: false }
    return self.pipe(Effect.provide(PgClient.layer(config)), refail(serverOf(config), "connect"))
  })

const resolveUrl = Effect.fnUntraced(function*(given: Option.Option<Redacted.Redacted<string>>) {
  const url = Option.isSome(given)
    ? given
    : yield* Config.option(Config.Redacted("DATABASE_URL")).pipe(
      Effect.mapError((error) => new InvalidSettings({ setting: "DATABASE_URL", problem: configErrorText(error) }))
    )
  if (Option.isNone(url)) {
    return yield* new InvalidSettings({
      setting: "DATABASE_URL",
      problem:
        "DATABASE_URL is not set. Set DATABASE_URL=postgresql://user:password@host:5432/database, or pass --database-url."
    })
  }
  const problem = ClientConfig.urlProblem(Redacted.value(url.value))
  if (problem !== undefined) return yield* new InvalidSettings({ setting: "DATABASE_URL", problem })
  return url.value
})
