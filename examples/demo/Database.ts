/**
 * The schema of the demo, which is first in the search path of each connection.
 */
import { PgClient } from "@effect/sql-pg"
import { Effect, Layer, type Redacted } from "effect"
import { SqlClient } from "effect/sql"
import { DemoFailed } from "./DemoFailed.ts"

export const schema = "pupsourcing_demo"

/** The name of a worker's connections in `pg_stat_activity`. */
export const applicationName = (workerId: string): string => `${schema} ${workerId}`

/** A client whose tables are those of the schema. */
export const layer = (url: Redacted.Redacted, application: string) =>
  PgClient.layer({
    url,
    applicationName: applicationName(application),
    maxConnections: 12,
    startupParameters: { search_path: schema }
  })

/** Creates the schema from scratch. A lock that is held until the scope closes excludes other demos. */
export const fresh = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const connection = yield* sql.reserve
  // Ends with its session, however this process ends.
  const [lock] = yield* connection.execute("SELECT pg_try_advisory_lock(hashtext($1)) AS taken", [schema], undefined)
  if (lock?.["taken"] !== true) {
    return yield* new DemoFailed({
      problem: "Another demo is running on this database. Wait for its end, or set DATABASE_URL to another database."
    })
  }
  yield* sql`DROP SCHEMA IF EXISTS ${sql(schema)} CASCADE`
  yield* sql`CREATE SCHEMA ${sql(schema)}`
}).pipe(
  Effect.catchTag("SqlError", ({ reason }) =>
    Effect.fail(
      new DemoFailed({
        problem: `The database cannot be used: ${
          reason.cause instanceof Error ? reason.cause.message : reason.message
        }. Check DATABASE_URL, whose user must be allowed to create a schema; or leave it out, and a PostgreSQL from npm is started.`
      })
    ))
)

export const layerFresh = Layer.effectDiscard(fresh)
