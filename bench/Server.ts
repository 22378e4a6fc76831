/** The database server that a run of the benchmarks measures. */
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, Layer, Option, Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { Migrations } from "pupsourcing-orchestrator"
import * as EmbeddedPostgres from "../src/testing/EmbeddedPostgres.ts"
import { type Benchmark, Target } from "./Benchmark.ts"

export interface Server {
  /** Its database `postgres`, or that of `DATABASE_URL`. */
  readonly url: Redacted.Redacted
  readonly embedded: Target["Service"]["embedded"]
}

/** The server of `DATABASE_URL`, or an embedded one with default durability, which is stopped with the scope. */
export const acquire = Effect.gen(function*() {
  const given = yield* Config.option(Config.Redacted("DATABASE_URL"))
  if (Option.isSome(given) && Redacted.value(given.value) !== "") {
    const server: Server = { url: given.value, embedded: undefined }
    return server
  }
  const { log, pid, url } = yield* EmbeddedPostgres.acquire({
    name: "bench",
    // The prefix names the session that sent a statement.
    settings: { shared_preload_libraries: "pg_stat_statements", log_line_prefix: "%m,%p,%a:" }
  })
  const server: Server = { url: Redacted.make(url), embedded: { log, pid } }
  return server
})

export const client = (url: Redacted.Redacted) =>
  PgClient.layer({ url, applicationName: "bench setup", maxConnections: 2 })

/** Creates a database, which is migrated and empty. It is dropped with the scope. */
export const database = Effect.fnUntraced(function*(server: Redacted.Redacted, name: string) {
  const url = Redacted.make(withDatabase(Redacted.value(server), name))
  const admin = Effect.provide(Layer.fresh(client(server)))
  yield* Effect.acquireRelease(
    admin(Effect.flatMap(SqlClient.SqlClient, (sql) => sql`CREATE DATABASE ${sql(name)}`)),
    // The result is valid even if the database remains.
    () =>
      admin(Effect.flatMap(SqlClient.SqlClient, (sql) => sql`DROP DATABASE ${sql(name)} WITH (FORCE)`)).pipe(
        Effect.timeout("30 seconds"),
        Effect.ignore
      )
  )
  yield* Migrations.up.pipe(Effect.provide(Layer.fresh(client(url))))
  return url
})

/** Runs a benchmark, or a part of one, in a database of its own. */
export const runIn = <A, E>(
  server: Server,
  { name, run }: { readonly name: string; readonly run: Effect.Effect<A, E, Effect.Services<Benchmark["run"]>> },
  rounds: number
) =>
  Effect.gen(function*() {
    const url = yield* database(server.url, `bench_${name.replaceAll("-", "_")}_${process.pid}`)
    return yield* Effect.scoped(run).pipe(
      Effect.provide(Layer.fresh(client(url))),
      Effect.provideService(Target, { url, rounds, embedded: server.embedded })
    )
  }).pipe(Effect.scoped)

export const withDatabase = (url: string, database: string): string => {
  const changed = new URL(url)
  changed.pathname = `/${database}`
  return changed.href
}
