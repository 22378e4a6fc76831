/**
 * What the PostgreSQL stores share: the application's client, the tables' names, and how to open a session.
 *
 * @since 0.1.0
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import type { StoreError } from "../../schema/Errors.ts"
import type { TableKey, TableNames } from "../../schema/TableNames.ts"
import type { ServerLife } from "../../services/EventStore.ts"
import type { Server } from "./DatabaseErrors.ts"
import type { Options, Session } from "./Session.ts"

/**
 * @category services
 * @since 0.1.0
 */
export class Database extends Context.Service<Database, {
  readonly pg: PgClient.PgClient
  /** The application's client, without its name transforms: batches run on it. */
  readonly sql: SqlClient.SqlClient
  readonly server: Server
  readonly names: TableNames
  /** A table or sequence, qualified and quoted, to be put into a statement. */
  readonly table: (key: TableKey) => Statement.Fragment
  /** The name as text: `"schema"."table"`, with the schema in which the table was found. */
  readonly qualified: (key: TableKey) => string
  /** The channels of LISTEN and NOTIFY; see `TableNames.channel`. */
  readonly channels: { readonly events: string; readonly control: string }
  /** Behind a pooler that lends sessions for a transaction: nothing of a session lasts longer. */
  readonly pooled: boolean
  /** Whether LISTEN is used, and presence; without them only speed is lost. */
  readonly listen: boolean
  readonly presence: boolean
  /** Connects like the application's client, with the library's own name and settings. */
  readonly openConnection: (
    name: string
  ) => Effect.Effect<PgConnection.PgConnection, SqlError.SqlError, Scope.Scope>
  readonly openSession: <S>(options: Options<S>) => Effect.Effect<Session<S>, never, Scope.Scope>
  /**
   * Tells of a life of the server in which nothing can be written. A session that is still in it leads elsewhere than the
   * application's client, and has to be opened anew.
   */
  readonly refuse: (life: ServerLife) => void
  /**
   * Whether that was told of the life. It is said once: what is opened instead is believed, for behind a pooler it may
   * show the same life again, and rightly.
   */
  readonly takeRefusal: (life: ServerLife) => boolean
  /** Turns the driver's errors into the library's. */
  readonly refail: (
    operation: string
  ) => <A, E, R>(
    self: Effect.Effect<A, E, R>
  ) => Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R>
}>()("pupsourcing-orchestrator/layers/postgres/Database") {}
