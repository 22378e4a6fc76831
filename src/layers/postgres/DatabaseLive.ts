/** Opens the database for the stores. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import type { StoresError } from "../../schema/Errors.ts"
import * as TableNames from "../../schema/TableNames.ts"
import { quietly } from "./connection/PoolStatement.ts"
import * as Privileges from "./connection/Privileges.ts"
import * as Probe from "./connection/Probe.ts"
import * as Session from "./connection/Session.ts"
import * as SessionSettings from "./connection/SessionSettings.ts"
import { refail } from "./connection/SqlErrors.ts"
import * as Startup from "./connection/Startup.ts"
import { Database, type InternalOptions, type Options } from "./Database.ts"

export type { Options } from "./Database.ts"

/** Checks that this library can use the server and the tables, and returns the database. */
export const make = (
  options: InternalOptions = {}
): Effect.Effect<Database["Service"], StoresError, PgClient.PgClient> => quietly(open(options))

const open = Effect.fnUntraced(function*(
  options: InternalOptions
): Effect.fn.Return<Database["Service"], StoresError, PgClient.PgClient> {
  const target = yield* Startup.checkSettings(options)
  yield* Startup.checkCodecs(target)
  const found = yield* Startup.find(target)
  yield* Startup.checkSessions(target)
  yield* Startup.checkServer(target, found)
  yield* Startup.checkTables(target, found)
  return database(target, found)
})

export const layerWith = (options: Options): Layer.Layer<Database, StoresError, PgClient.PgClient> =>
  Layer.effect(Database)(make(options))

const database = (
  { options, pg, server, sessionServer, sessions, sql }: Startup.Target,
  { names }: Startup.Found
): Database["Service"] => {
  const qualified = (key: TableNames.TableKey): string => TableNames.qualified(names, key)
  const channel = (key: "events" | "generations"): string =>
    TableNames.channel(names, key, TableNames.schemaOf(names, key) ?? "")
  let openSessions = 0
  /** Counts a session of the library until its scope closes. */
  const opened = Effect.asVoid(Effect.acquireRelease(
    Effect.sync(() => openSessions++),
    () => Effect.sync(() => openSessions--)
  ))
  return Database.of({
    pg,
    sql,
    server,
    sessionServer,
    names,
    table: (key) => sql.literal(qualified(key)),
    qualified,
    channels: { events: channel("events"), control: channel("generations") },
    listen: options.listen ?? true,
    presence: options.presence ?? true,
    openConnection: (name) => Effect.tap(openConnection(sessions, name), () => opened),
    openSession: ({ roles = ["worker"], ...session }) =>
      Effect.map(Session.make({ ...session, config: sessions, server: sessionServer, opened }), ({ use }) => ({
        use: (operation, f) => Privileges.naming(sessions, names, roles)(use(operation, f))
      })),
    openSessions: () => openSessions,
    namingPrivileges: (...roles) => Privileges.naming(pg.config, names, roles),
    refail: (operation, roles = ["worker"]) => (self) =>
      Privileges.naming(pg.config, names, roles)(refail(server, operation)(self))
  })
}

const openConnection = (config: PgClient.PgClientConfig, name: string) =>
  Effect.tap(
    PgConnection.make(SessionSettings.config(config, name)),
    (connection) => Probe.bounded(connection.query(`SELECT ${SessionSettings.apply()}`, [], false))
  )
