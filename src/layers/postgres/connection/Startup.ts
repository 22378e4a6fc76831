/**
 * What is checked when the stores are opened, in this order: the settings, the client, the library's own sessions, the
 * server, and the tables. Every step waits a bounded time for a server that is starting.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import { type InvalidSettings, SchemaVersionMismatch, type StoreError, TablesMissing } from "../../../schema/Errors.ts"
import * as TableNames from "../../../schema/TableNames.ts"
import { waitForServer } from "../../../services/worker/Startup.ts"
import type { InternalOptions } from "../Database.ts"
import { hashOf } from "../HashSql.ts"
import * as EventStoreTables from "../migrations/EventStoreTables.ts"
import * as OrchestratorTables from "../migrations/OrchestratorTables.ts"
import { textArray } from "../migrations/Sql.ts"
import * as TableSchemas from "../TableSchemas.ts"
import * as ClientConfig from "./ClientConfig.ts"
import * as Codecs from "./Codecs.ts"
import * as DirectUrl from "./DirectUrl.ts"
import * as LockWait from "./LockWait.ts"
import * as Privileges from "./Privileges.ts"
import * as Probe from "./Probe.ts"
import { type Server, serverOf } from "./Server.ts"
import { readOnly, refail, unsupported } from "./SqlErrors.ts"

/** The oldest supported server; it has all that the statements use (`gen_random_uuid`, the current `pg_locks`). */
const oldestServer = 140000

/** The client and the settings, after they have been checked. */
export interface Target {
  readonly options: InternalOptions
  readonly names: TableNames.TableNames
  readonly pg: PgClient.PgClient
  /** The client without its name transforms. */
  readonly sql: SqlClient.SqlClient
  readonly server: Server
  /** The configuration of the library's own sessions. */
  readonly sessions: PgClient.PgPoolConfig
  readonly sessionServer: Server
}

/** The server and the tables. */
export interface Found {
  readonly version: number
  readonly recovering: boolean
  /** The schema of each table, in the order of `TableNames.keys`; null if it does not exist. */
  readonly schemas: ReadonlyArray<string | null>
  /** The names with these schemas. */
  readonly names: TableNames.TableNames
}

/** Checks the settings and the configuration of the client without connecting. */
export const checkSettings = Effect.fnUntraced(function*(
  options: InternalOptions
): Effect.fn.Return<Target, InvalidSettings, PgClient.PgClient> {
  const names = yield* Effect.fromResult(TableNames.make(options))
  const pg = yield* PgClient.PgClient
  const sessions = DirectUrl.sessionConfig(pg.config, options.directUrl)
  yield* ClientConfig.check(pg.config)
  if (options.directUrl !== undefined) yield* ClientConfig.check(sessions, "directUrl")
  const ignored = [...new Set([pg.config, sessions].flatMap(ClientConfig.ignoredParameters))]
  if (ignored.length > 0) {
    yield* Effect.logWarning(
      `The driver ignores these parameters of the database URL: ${
        ignored.join(", ")
      }. Remove them; certificates and other TLS settings go into ssl of PgClient.`
    )
  }
  return {
    options,
    names,
    pg,
    sql: pg.withoutTransforms(),
    server: serverOf(pg.config),
    sessions,
    sessionServer: serverOf(sessions)
  }
})

const withClient = ({ server }: Target) => <A, E>(self: Effect.Effect<A, E>) =>
  waitForServer(refail(server, "open the stores")(self))

/** Checks the codecs of the client. */
export const checkCodecs = (target: Target): Effect.Effect<void, InvalidSettings | StoreError> =>
  withClient(target)(Codecs.check(target.sql))

/** Finds the version of the server and the schemas of the tables. */
export const find = Effect.fnUntraced(function*(target: Target): Effect.fn.Return<Found, StoreError> {
  const path = yield* searchPath(target.pg.config).pipe(withClient(target))
  const [found] = yield* Codecs.asJson<Omit<Found, "names">>(
    target.sql,
    `SELECT current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS recovering,
      ${TableSchemas.find(target.names, `${textArray(path)}::text[]`)} AS schemas`
  ).pipe(withClient(target))
  if (found === undefined) return yield* Effect.die(new Error("A statement that always returns one row returned none"))
  return { ...found, names: TableSchemas.locate(target.names, found.schemas) }
})

/**
 * The schemas in which a new connection resolves unqualified names, in order. A session of the application's pool is
 * not used, because the application may have changed its `search_path` or created temporary tables, which come before
 * all schemas.
 */
const searchPath = (config: PgClient.PgClientConfig): Effect.Effect<ReadonlyArray<string>, SqlError.SqlError> =>
  Probe.connect(config).pipe(
    Effect.flatMap((connection) => connection.query(`SELECT ${TableSchemas.searchPath} AS path`, [], false)),
    Effect.map(({ rows }) => rows[0]?.["path"] as ReadonlyArray<string>),
    Effect.scoped,
    Probe.bounded
  )

/**
 * Checks where the library's own sessions connect. Precedes everything that a pooler would lose: prepared statements,
 * and settings and locks of a session.
 */
export const checkSessions = Effect.fnUntraced(function*(
  target: Target
): Effect.fn.Return<void, InvalidSettings | StoreError> {
  const { options: { directUrl }, pg, sessionServer, sql } = target
  const withSession = <A, E>(self: Effect.Effect<A, E>) =>
    waitForServer(refail(sessionServer, "open the library's own sessions")(self))
  yield* DirectUrl.checkPooler(pg.config, directUrl).pipe(withSession)
  if (directUrl !== undefined) yield* DirectUrl.checkSameDatabase(sql, pg.config, directUrl).pipe(withSession)
})

/** Checks that the server is supported and accepts writes. */
export const checkServer = Effect.fnUntraced(function*(
  { options, server }: Target,
  found: Found
): Effect.fn.Return<void, StoreError> {
  if (found.version < oldestServer) {
    return yield* unsupported({
      problem: `The database server at ${server.server} is PostgreSQL ${Math.floor(found.version / 10000)}.`,
      advice: `Use PostgreSQL ${Math.floor(oldestServer / 10000)} or newer.`
    })
  }
  if (found.recovering && options.acceptStandby !== true) return yield* readOnly(server)
})

/** Checks the meta row: the version of the tables, the table of events that they belong to, and the hash. */
const checkMeta = Effect.fnUntraced(function*(target: Target, { names }: Found) {
  const { sql } = target
  const meta = TableNames.qualified(names, "meta")
  const [row] = yield* Codecs.asJson<{
    readonly version: number
    readonly events: string | null
    readonly wrong: boolean
  }>(
    sql,
    `SELECT schema_version AS version, ${OrchestratorTables.otherEventsTable(names)} AS events,
      EXISTS (SELECT FROM jsonb_each_text(hash_answers) AS known
        WHERE ${hashOf("known.key")} <> known.value::int8) AS wrong
    FROM ${meta} AS m`
  ).pipe(
    LockWait.bounded({ sql, table: meta, operation: "Opening the stores" }),
    withClient(target),
    Privileges.naming(target.pg.config, names, ["appender", "status", "worker"])
  )
  if (row === undefined || row.version !== OrchestratorTables.schemaVersion) {
    return yield* new SchemaVersionMismatch({ found: row?.version ?? 0, expected: OrchestratorTables.schemaVersion })
  }
  const refusal = OrchestratorTables.otherEvents(target.names, row.events)
  if (refusal !== undefined) return yield* refusal
  if (row.wrong) {
    return yield* unsupported({
      problem: "The database's function hashtext returns other values than when the tables were created.",
      advice:
        "Progress is recorded by these hashes. Return to the server on which the tables were created, or rebuild the projections in fresh tables."
    })
  }
})

/** Checks that all tables exist and have what the library needs. */
export const checkTables = Effect.fnUntraced(function*(
  target: Target,
  found: Found
): Effect.fn.Return<void, InvalidSettings | SchemaVersionMismatch | StoreError | TablesMissing> {
  const missing = TableNames.keys.filter((_, index) => found.schemas[index] === null)
  // Tables of another version may have other columns, so a version mismatch is reported before missing parts.
  if (!missing.includes("meta")) yield* checkMeta(target, found)
  if (missing.length > 0) {
    return yield* new TablesMissing({ tables: missing.map((key) => TableNames.qualified(found.names, key)) })
  }
  const differences = yield* Codecs.asJson<EventStoreTables.Difference>(
    target.sql,
    EventStoreTables.differences(found.names)
  ).pipe(withClient(target))
  const blocking = differences.filter((difference) => difference.blocking)
  if (blocking.length > 0) {
    return yield* unsupported({
      problem: `The tables differ from what this library needs: ${blocking.map(EventStoreTables.describe).join("; ")}.`,
      advice: "Change the tables; \"npx pupsourcing-orchestrator migrate status\" shows every difference."
    })
  }
})
