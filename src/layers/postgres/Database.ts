/**
 * What the PostgreSQL stores share: the application's client, the tables' names, and how to open a session.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import type { StoreError } from "../../schema/Errors.ts"
import type * as TableNames from "../../schema/TableNames.ts"
import type { Server } from "./connection/Server.ts"
import type * as Session from "./connection/Session.ts"
import type { Role } from "./migrations/Roles.ts"

/**
 * The names of the tables and their schema, where the library's own sessions connect, and whether LISTEN and presence
 * are used. Without LISTEN, changes are found within `pollInterval`; without presence, a death is detected after
 * `staleWorkerTimeout`.
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

/** Options that are not public. */
export interface InternalOptions extends Options {
  /** Whether a standby is accepted, where only `Projections.status` works. Default false. */
  readonly acceptStandby?: boolean
}

/**
 * The database as `DatabaseLive` has opened and checked it.
 */
export class Database extends Context.Service<Database, {
  readonly pg: PgClient.PgClient
  /** The application's client without its name transforms; batches run on it. */
  readonly sql: SqlClient.SqlClient
  readonly server: Server
  /** Where the library's own sessions connect: the server of `directUrl` if it is given. */
  readonly sessionServer: Server
  readonly names: TableNames.TableNames
  /** A table or sequence, qualified and quoted, as a part of a statement. */
  readonly table: (key: TableNames.TableKey) => Statement.Fragment
  /** The name as text: `"schema"."table"`, with the schema in which the table was found. */
  readonly qualified: (key: TableNames.TableKey) => string
  /** The channels of LISTEN and NOTIFY; see `TableNames.channel`. */
  readonly channels: { readonly events: string; readonly control: string }
  /** Whether LISTEN and presence are used. Without them, changes and deaths are only detected later. */
  readonly listen: boolean
  readonly presence: boolean
  /** Connects to `sessionServer`, with the library's own name and settings. */
  readonly openConnection: (
    name: string
  ) => Effect.Effect<PgConnection.PgConnection, SqlError.SqlError, Scope.Scope>
  /** `roles` perform the operations of the session; default `["worker"]`. */
  readonly openSession: <S>(
    options: Session.Options<S> & { readonly roles?: ReadonlyArray<Role> }
  ) => Effect.Effect<Session.Session<S>, never, Scope.Scope>
  /** The number of open connections that `openConnection` and `openSession` have opened. */
  readonly openSessions: () => number
  /** Names the privileges that the client's role lacks for what these roles do, in errors of denied statements. */
  readonly namingPrivileges: (
    ...roles: ReadonlyArray<Role>
  ) => <A, E, R>(self: Effect.Effect<A, E, R>) => Effect.Effect<A, E, R>
  /** Converts the driver's errors into the library's. `roles` perform the operation; default `["worker"]`. */
  readonly refail: (
    operation: string,
    roles?: ReadonlyArray<Role>
  ) => <A, E, R>(
    self: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R>
}>()("pupsourcing-orchestrator/layers/postgres/Database") {}
