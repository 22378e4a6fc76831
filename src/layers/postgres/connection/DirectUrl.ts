/**
 * Where the library's own sessions connect: to `directUrl` if it is given, otherwise to the client's URL. They need
 * real server sessions, so a pooler in transaction mode is refused there. The application's pool may be behind one.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import { InvalidSettings } from "../../../schema/Errors.ts"
import * as Probe from "./Probe.ts"
import { serverOf } from "./Server.ts"
import * as ServerEpochSql from "./ServerEpochSql.ts"

/**
 * The configuration of the library's own sessions. `directUrl` determines server, database and user. The client's
 * `password` is used only if the URL has none, so that a password which is renewed need not be in the URL.
 */
export const sessionConfig = (
  config: PgClient.PgPoolConfig,
  directUrl: Redacted.Redacted | undefined
): PgClient.PgPoolConfig => {
  if (directUrl === undefined) return config
  const text = Redacted.value(directUrl)
  const hasPassword = URL.canParse(text) && new URL(text).password !== ""
  return {
    ...config,
    url: directUrl,
    host: undefined,
    port: undefined,
    path: undefined,
    stream: undefined,
    database: undefined,
    username: undefined,
    password: hasPassword ? undefined : config.password,
    prepare: undefined
  }
}

/**
 * Fails with `InvalidSettings` if a pooler in transaction mode is on the way of the library's own sessions, or on the
 * way of the application's pool while statements are prepared.
 */
export const checkPooler = Effect.fnUntraced(function*(
  client: PgClient.PgPoolConfig,
  directUrl: Redacted.Redacted | undefined
): Effect.fn.Return<void, InvalidSettings | SqlError.SqlError> {
  const sessions = sessionConfig(client, directUrl)
  const { server } = serverOf(client)
  if (yield* Probe.isTransactionPooler(sessions)) {
    return yield* new InvalidSettings({
      setting: "directUrl",
      problem: directUrl === undefined
        ? `${server} is a pooler in transaction mode, behind which the library's own sessions cannot listen or hold locks. Pass PostgresStores.layerWith({ directUrl }) the URL of the database server itself, or of a pooler in session mode; the client may keep this URL.`
        : `${
          serverOf(sessions).server
        } is a pooler in transaction mode. Give the URL of the database server itself, or of a pooler in session mode.`
    })
  }
  if (directUrl === undefined || client.prepare === false) return
  if (yield* Probe.isTransactionPooler(client)) {
    return yield* new InvalidSettings({
      setting: "prepare",
      problem:
        `${server} is a pooler in transaction mode, which loses prepared statements. Give PgClient prepare: false.`
    })
  }
})

/**
 * Fails with `InvalidSettings` if `directUrl` leads to another server or database than the client, or if the client's
 * user cannot identify the sessions of its user. Batches commit only while the client finds the session that has read
 * their events (`ServerEpochSql.isCurrent`), so there every batch would fail.
 */
export const checkSameDatabase = Effect.fnUntraced(
  function*(
    sql: SqlClient.SqlClient,
    client: PgClient.PgPoolConfig,
    directUrl: Redacted.Redacted
  ): Effect.fn.Return<void, InvalidSettings | SqlError.SqlError, Scope.Scope> {
    const sessions = sessionConfig(client, directUrl)
    const connection = yield* Probe.connect(sessions)
    const { rows } = yield* connection.query(
      `SELECT ${ServerEpochSql.select} AS epoch, ${database} AS database`,
      [],
      false
    )
    const [own] = rows as ReadonlyArray<{ readonly epoch: string; readonly database: string }>
    const [found] = yield* sql<{ readonly same: string; readonly visible: string }>`
    SELECT (${ServerEpochSql.isSameServer(sql, own!.epoch)} AND ${sql.literal(database)} = ${
      own!.database
    })::text AS same,
      (${ServerEpochSql.isCurrent(sql, own!.epoch)})::text AS visible`.unprepared
    if (found?.visible === "true" && found.same === "true") return
    // If the server was restarted between the two statements, this one fails, and the start is tried again.
    yield* connection.query("SELECT 1", [], false)
    const { database: name, server } = serverOf(client)
    return yield* new InvalidSettings({
      setting: "directUrl",
      problem: found?.same === "true"
        ? `The user "${serverOf(client).user}" of the client cannot identify the sessions of the user "${
          serverOf(sessions).user
        }". Use one user in both URLs, or grant pg_read_all_stats to the client's user.`
        : `It leads to another database than the client's URL (database "${name}" at ${server}). Give the URL of the same database on the same server, without the pooler.`
    })
  },
  Effect.scoped,
  Probe.bounded
)

const database = "(SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())::text"
