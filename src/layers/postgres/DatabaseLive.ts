/**
 * Opens the database for the stores: waits a bounded time for the server, and checks before anything else that this
 * library can use the server and the tables.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as PgTypes from "@effect/sql-pg/PgTypes"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import {
  InvalidSettings,
  ReadOnlyReplica,
  SchemaVersionMismatch,
  type StoresError,
  TablesMissing,
  UnsupportedDatabase
} from "../../schema/Errors.ts"
import * as TableNames from "../../schema/TableNames.ts"
import type { ServerEpoch } from "../../services/EventStore.ts"
import { waitForServer } from "../../services/worker/Startup.ts"
import * as ClientConfig from "./connection/ClientConfig.ts"
import * as DirectUrl from "./connection/DirectUrl.ts"
import * as LockWait from "./connection/LockWait.ts"
import { serverOf } from "./connection/Server.ts"
import * as Session from "./connection/Session.ts"
import * as SessionSettings from "./connection/SessionSettings.ts"
import { refail, statementTimeout } from "./connection/SqlErrors.ts"
import { asJson } from "./coordination/Rows.ts"
import { Database } from "./Database.ts"
import { hashOf } from "./HashSql.ts"
import * as EventStoreTables from "./migrations/EventStoreTables.ts"
import * as OrchestratorTables from "./migrations/OrchestratorTables.ts"
import { textArray } from "./migrations/Sql.ts"
import * as TableSchemas from "./TableSchemas.ts"

/**
 * The names of the tables and their schema, and whether LISTEN and presence are used.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options extends TableNames.Options {
  /** Whether LISTEN and NOTIFY are used. Default true; if false, changes are found by polling. */
  readonly listen?: boolean | undefined
  /** Whether a lock detects a worker's death. Default true; if false, a death is detected by missing heartbeats. */
  readonly presence?: boolean | undefined
  /**
   * The URL to which the library's own sessions connect. Default: the client's URL. Required if the client's URL leads
   * to a pooler in transaction mode; it must lead to the same database, directly or through a pooler in session mode.
   */
  readonly directUrl?: Redacted.Redacted | undefined
}

/** The oldest supported server; it has all that the statements use (`gen_random_uuid`, the current `pg_locks`). */
const oldestServer = 140000

/** How long a new connection may take to apply its settings. */
const settingsDeadline = Duration.seconds(5)

const noAnswer = statementTimeout("a second connection was not answered")

const otherCodecs = new InvalidSettings({
  setting: "types",
  problem:
    "The client has custom codecs for text or bytea, which the library uses for texts and payloads. Remove these two from PgClient's types and from PgTypes.register; other types may have any codec."
})

const isCodecFailure = (error: SqlError.SqlError): boolean =>
  /Failed to (decode row|encode query)/.test(error.reason.message ?? "")

const array = (values: ReadonlyArray<unknown>, oid: number) => Result.getOrThrow(PgTypes.array(values, oid))

/**
 * Checks that the client has the driver's codecs for text and bytea. The library's statements on the application's
 * client use only these types, so that the application may choose the codecs of all other types.
 */
const checkCodecs = Effect.fnUntraced(function*(sql: SqlClient.SqlClient) {
  const text = "a\\b"
  const bytes = new Uint8Array([0, 92, 255])
  const isSame = (found: unknown) => found instanceof Uint8Array && found.join() === bytes.join()
  const [row] = yield* sql.unsafe<{ text: unknown; texts: unknown; bytes: unknown; list: unknown }>(
    "SELECT $1::text AS text, $2::text[] AS texts, $3::bytea AS bytes, $4::bytea[] AS list",
    [text, array([text, null], PgTypes.OID.text), bytes, array([bytes], PgTypes.OID.bytea)]
  ).unprepared.pipe(Effect.catchIf(isCodecFailure, () => Effect.fail(otherCodecs)))
  const isKept = row?.text === text && isSame(row.bytes) &&
    Array.isArray(row.texts) && row.texts.length === 2 && row.texts[0] === text && row.texts[1] === null &&
    Array.isArray(row.list) && row.list.length === 1 && isSame(row.list[0])
  if (!isKept) return yield* otherCodecs
})

/**
 * The schemas in which a new connection resolves unqualified names, in order. A session of the application's pool is
 * not used, because the application may have changed its `search_path` or created temporary tables, which come before
 * all schemas.
 */
const searchPath = (config: PgClient.PgClientConfig): Effect.Effect<ReadonlyArray<string>, SqlError.SqlError> =>
  PgConnection.make(SessionSettings.config(config, "pupsourcing-orchestrator probe")).pipe(
    Effect.flatMap((connection) => connection.query(`SELECT ${TableSchemas.searchPath} AS path`, [], false)),
    Effect.map(({ rows }) => rows[0]?.["path"] as ReadonlyArray<string>),
    Effect.scoped,
    Effect.timeoutOrElse({ duration: settingsDeadline, orElse: () => Effect.fail(noAnswer) })
  )

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  options: Options = {}
): Effect.fn.Return<Database["Service"], StoresError, PgClient.PgClient> {
  const chosen = yield* Effect.fromResult(TableNames.make(options))
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
  const sql = pg.withoutTransforms()
  const server = serverOf(pg.config)
  const sessionServer = serverOf(sessions)
  const opening = <A, E>(self: Effect.Effect<A, E>) => waitForServer(refail(server, "open the stores")(self))
  const openingSession = <A, E>(self: Effect.Effect<A, E>) =>
    waitForServer(refail(sessionServer, "open the library's own sessions")(self))

  yield* checkCodecs(sql).pipe(opening)
  const path = yield* searchPath(pg.config).pipe(opening)
  const [found] = yield* asJson<{
    readonly version: number
    readonly recovering: boolean
    readonly schemas: ReadonlyArray<string | null>
  }>(
    sql,
    `SELECT current_setting('server_version_num')::int AS version, pg_is_in_recovery() AS recovering,
      ${TableSchemas.find(chosen, `${textArray(path)}::text[]`)} AS schemas`
  ).pipe(opening)
  if (found === undefined) return yield* Effect.die(new Error("A statement that always returns one row returned none"))
  // Precedes everything that a pooler would lose: prepared statements, and settings and locks of a session.
  yield* DirectUrl.checkPooler(pg.config, options.directUrl).pipe(openingSession)
  if (options.directUrl !== undefined) {
    yield* DirectUrl.checkSameDatabase(sql, pg.config, options.directUrl).pipe(openingSession)
  }
  if (found.version < oldestServer) {
    return yield* new UnsupportedDatabase({
      problem: `The database server at ${server.server} is PostgreSQL ${Math.floor(found.version / 10000)}.`,
      advice: `Use PostgreSQL ${Math.floor(oldestServer / 10000)} or newer.`
    })
  }
  if (found.recovering) return yield* new ReadOnlyReplica({ server: server.server })
  const schemaOf = (key: TableNames.TableKey): string | null => found.schemas[TableNames.keys.indexOf(key)] ?? null
  const missing = TableNames.keys.filter((key) => schemaOf(key) === null)
  const names = TableSchemas.locate(chosen, found.schemas)
  const qualified = (key: TableNames.TableKey): string => TableNames.qualified(names, key)
  // Tables of another version may have other columns, so a version mismatch is reported before missing parts.
  const isVersioned = !missing.includes("meta")
  if (isVersioned) {
    const [meta] = yield* asJson<{
      readonly version: number
      readonly events: string | null
      readonly wrong: boolean
    }>(
      sql,
      `SELECT schema_version AS version, ${OrchestratorTables.otherEventsTable(names)} AS events,
        EXISTS (SELECT FROM jsonb_each_text(hash_answers) AS known
          WHERE ${hashOf("known.key")} <> known.value::int8) AS wrong
      FROM ${qualified("meta")} AS m`
    ).pipe(
      LockWait.bounded({ sql, table: qualified("meta"), operation: "Opening the stores" }),
      opening
    )
    if (meta === undefined || meta.version !== OrchestratorTables.schemaVersion) {
      return yield* new SchemaVersionMismatch({
        found: meta?.version ?? 0,
        expected: OrchestratorTables.schemaVersion
      })
    }
    const refusal = OrchestratorTables.otherEvents(chosen, meta.events)
    if (refusal !== undefined) return yield* refusal
    if (meta.wrong) {
      return yield* new UnsupportedDatabase({
        problem: "The database's function hashtext returns other values than when the tables were created.",
        advice:
          "Progress is recorded by these hashes. Return to the server on which the tables were created, or rebuild the projections in fresh tables."
      })
    }
  }
  if (missing.length > 0) return yield* new TablesMissing({ tables: missing.map(qualified) })
  const differences = yield* asJson<EventStoreTables.Difference>(sql, EventStoreTables.differences(names)).pipe(opening)
  const blocking = differences.filter((difference) => difference.blocking)
  if (blocking.length > 0) {
    return yield* new UnsupportedDatabase({
      problem: `The tables differ from what this library needs: ${blocking.map(EventStoreTables.describe).join("; ")}.`,
      advice: "Change the tables; \"npx pupsourcing-orchestrator migrate status\" shows every difference."
    })
  }

  let refused: ServerEpoch | undefined

  return Database.of({
    pg,
    sql,
    server,
    sessionServer,
    names,
    table: (key) => sql.literal(qualified(key)),
    qualified,
    channels: {
      events: TableNames.channel(names, "events", schemaOf("events") ?? ""),
      control: TableNames.channel(names, "generations", schemaOf("generations") ?? "")
    },
    listen: options.listen ?? true,
    presence: options.presence ?? true,
    openConnection: (name) =>
      Effect.tap(
        PgConnection.make(SessionSettings.config(sessions, name)),
        (connection) =>
          Effect.timeoutOrElse(connection.query(`SELECT ${SessionSettings.apply()}`, [], false), {
            duration: settingsDeadline,
            orElse: () => Effect.fail(noAnswer)
          })
      ),
    openSession: (session) => Session.make({ ...session, config: sessions, server: sessionServer }),
    refuse: (epoch) => {
      refused = epoch
    },
    takeRefusal: (epoch) => {
      if (epoch !== refused) return false
      refused = undefined
      return true
    },
    refail: (operation) => refail(server, operation)
  })
})

/**
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (options: Options): Layer.Layer<Database, StoresError, PgClient.PgClient> =>
  Layer.effect(Database)(make(options))
