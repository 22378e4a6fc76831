/** The errors of the database and of the stores, and which of them can be retried. */
import * as Schema from "effect/Schema"
import { id } from "./ErrorId.ts"
import { sentence } from "./Text.ts"

/**
 * Set on the error of an append with an unknown commit outcome: the connection was lost before the answer arrived.
 * Absent if nothing was committed.
 */
const mayHaveCommitted = Schema.optionalKey(Schema.Literal(true))

const unknownOutcome = (error: { readonly mayHaveCommitted?: true }): string =>
  error.mayHaveCommitted === true
    ? " The append may have been committed. Repeat it only with the same eventIds: DuplicateEvent then means that it was."
    : ""

const transientConditions: ReadonlySet<string> = new Set([
  "refused",
  "unreachable",
  "shutting down",
  "too many connections",
  "connection lost",
  "no answer in time",
  "no connection in time"
])

/**
 * There is no connection to the database, or no answer in time; `condition` states why. While stores open, migrations
 * run or a worker starts, transient conditions (`isRetryable`) are retried for five seconds and others (password, TLS,
 * names) fail at once. A registered worker retries all of them without a limit. The caller retries its own appends. The
 * operator fixes the server or the network, or the configuration has to change.
 *
 * @category errors
 * @since 0.1.0
 */
export class DatabaseUnavailable extends Schema.TaggedError<DatabaseUnavailable>(id("DatabaseUnavailable"))(
  "DatabaseUnavailable",
  {
    condition: Schema.Literals([
      "unreachable",
      "refused",
      "wrong password",
      "not admitted",
      "TLS failed",
      "unknown database",
      "unknown host",
      "too many connections",
      "shutting down",
      "connection lost",
      "no answer in time",
      "no connection in time"
    ]),
    /** `host:port`, or the path of a socket. */
    server: Schema.String,
    database: Schema.String,
    user: Schema.String,
    /** The message of the server, or of the connection to it. */
    detail: Schema.optionalKey(Schema.String),
    mayHaveCommitted,
    cause: Schema.Defect()
  }
) {
  /** Whether the same call may succeed a little later without intervention. */
  get isRetryable(): boolean {
    return transientConditions.has(this.condition)
  }

  override get message(): string {
    return `${this.problem}${unknownOutcome(this)}`
  }

  private get problem(): string {
    switch (this.condition) {
      case "unreachable":
        return `The database server at ${this.server} cannot be reached. Check host, port and network.`
      case "refused":
        return `The database server at ${this.server} refuses connections. Check that PostgreSQL runs there and that the port is right.`
      case "wrong password":
        return `The database server at ${this.server} does not accept user "${this.user}" with the given password. Check user and password in DATABASE_URL.`
      case "not admitted":
        return `The database server at ${this.server} does not admit user "${this.user}": ${this.detail}. Check the role and the server's pg_hba.conf; if it contains "no encryption", add sslmode=require to DATABASE_URL.`
      case "TLS failed":
        return `An encrypted connection to the database server at ${this.server} could not be made: ${this.detail}. Check sslmode in DATABASE_URL, or ssl of PgClient (ssl.ca for a certificate of your own authority).`
      case "unknown database":
        return `The database server at ${this.server} has no database "${this.database}". Create it, or correct the name in DATABASE_URL.`
      case "unknown host":
        return `The host of the database server ${this.server} is not known. Check the host name in DATABASE_URL.`
      case "too many connections":
        return `The database server at ${this.server} has no connection left. Raise max_connections or lower the pool sizes of its clients.`
      case "shutting down":
        return `The database server at ${this.server} is starting up or shutting down. A running worker retries it.`
      case "connection lost":
        return `The connection to the database server at ${this.server} was lost. A running worker reconnects.`
      case "no answer in time":
        return `The database server at ${this.server} did not answer in time. Check its load, locks and network.`
      case "no connection in time":
        return `No connection of the application's pool became free in time, or the database server at ${this.server} did not answer. Check the network; if the pool is exhausted, raise maxConnections of PgClient or use fewer connections at once.`
    }
  }
}

/**
 * SQLSTATE classes 40 (conflicts between transactions), 53 (insufficient resources) and 58 (system errors, such as disk
 * failures).
 */
const transientCodes = /^(40|53|58)/

/**
 * A statement of this library failed; `code` states why. SQLSTATE classes 40, 53 and 58 are transient (`isRetryable`) and
 * retried like a lost connection. With any other code a worker fails only if the operation has never succeeded;
 * otherwise it retries. An append outside a transaction retries conflicts; inside one, the caller retries its whole
 * transaction. The operator fixes privileges, tables and resources, and the caller its own constraints.
 *
 * @category errors
 * @since 0.1.0
 */
export class StatementFailed extends Schema.TaggedError<StatementFailed>(id("StatementFailed"))("StatementFailed", {
  /** The operation that failed. */
  operation: Schema.String,
  /** SQLSTATE, if the server reported one. */
  code: Schema.optionalKey(Schema.String),
  /** The violated constraint, if the server named one. */
  constraint: Schema.optionalKey(Schema.String),
  detail: Schema.String,
  /** The privileges that the role lacks for the operation, and the files of this package that grant them. */
  lacks: Schema.optionalKey(Schema.Struct({
    role: Schema.String,
    /** Each as in GRANT: `INSERT on table public.events`. */
    privileges: Schema.Array(Schema.String),
    grantedBy: Schema.Array(Schema.String)
  })),
  mayHaveCommitted,
  cause: Schema.Defect()
}) {
  /** Whether the same call may succeed a little later without intervention. */
  get isRetryable(): boolean {
    return transientCodes.test(this.code ?? "")
  }

  override get message(): string {
    const advice = this.lacks !== undefined
      ? ` Role "${this.lacks.role}" lacks ${this.lacks.privileges.join(", ")}. Grant what ${
        this.lacks.grantedBy.join(" or ")
      } grants.`
      : this.code === "42501"
      ? " Grant the role what the files in migrations/roles grant; docs/operations.md explains them."
      : this.code === "42P01" || this.code === "42703"
      ? " Run the migrations: npx pupsourcing-orchestrator migrate up."
      : this.code === "40001" || this.code === "40P01"
      ? " It conflicted with another transaction. Retry the whole transaction."
      : this.code === "22P05" || this.code === "22021"
      ? " Use characters that the database's encoding can represent, or a database with ENCODING 'UTF8'."
      : this.code?.startsWith("23")
      ? " A constraint or trigger refused the data, and a retry would fail too. Change the data, the constraint or the trigger."
      : this.code?.startsWith("53")
      ? " Look at the server's disk, memory and connections."
      : ""
    const code = this.code === undefined ? "" : ` (SQLSTATE ${this.code})`
    return `The operation "${this.operation}" failed: ${sentence(`${this.detail}${code}`)}${advice}${
      unknownOutcome(this)
    }`
  }
}

/**
 * Tables that this library needs do not exist, so that the stores cannot open. A retry helps only after the operator
 * has run the migrations. If the tables exist under other names, the configuration has to name them.
 *
 * @category errors
 * @since 0.1.0
 */
export class TablesMissing extends Schema.TaggedError<TablesMissing>(id("TablesMissing"))("TablesMissing", {
  tables: Schema.Array(Schema.String)
}) {
  override get message(): string {
    return `These tables do not exist: ${
      this.tables.join(", ")
    }. Run "npx pupsourcing-orchestrator migrate up", or use PostgresStores.layerMigrations; with other table names or another schema, pass the same to PostgresStores.layerWith.`
  }
}

/**
 * The tables were created by another version of this library, and this version cannot use them. A retry does not help.
 * The operator migrates older tables (`found` below `expected`), or installs the newer version of the library.
 *
 * @category errors
 * @since 0.1.0
 */
export class SchemaVersionMismatch extends Schema.TaggedError<SchemaVersionMismatch>(id("SchemaVersionMismatch"))(
  "SchemaVersionMismatch",
  { found: Schema.Int, expected: Schema.Int }
) {
  override get message(): string {
    return this.found < this.expected
      ? `Schema version ${this.found} found; this library requires version ${this.expected}. Run "npx pupsourcing-orchestrator migrate up".`
      : `Schema version ${this.found} found; this library supports up to version ${this.expected}. Install the version of pupsourcing-orchestrator that migrated them, or a newer one.`
  }
}

/**
 * The database cannot provide the guarantees that this library relies on: the server's version, a table, the sequence
 * or a trigger prevents it. The stores do not open, a worker ends, or an append fails without having stored anything. A
 * retry does not help until the operator has corrected the database as `advice` states.
 *
 * @category errors
 * @since 0.1.0
 */
export class UnsupportedDatabase extends Schema.TaggedError<UnsupportedDatabase>(id("UnsupportedDatabase"))(
  "UnsupportedDatabase",
  { problem: Schema.String, advice: Schema.String }
) {
  /** Always false. */
  get isRetryable(): boolean {
    return false
  }

  override get message(): string {
    return `${this.problem} ${this.advice}`
  }
}

/**
 * The server does not accept writes: it is a read-only replica, or `default_transaction_read_only` is on. A registered
 * worker retries without a limit, because a failover ends by itself; any other operation fails at once. Unless there is
 * a failover, the configuration has to name the primary, or the operator switches the setting off.
 *
 * @category errors
 * @since 0.1.0
 */
export class ReadOnlyDatabase extends Schema.TaggedError<ReadOnlyDatabase>(id("ReadOnlyDatabase"))("ReadOnlyDatabase", {
  server: Schema.String
}) {
  /** Always false: a failover ends by itself, but an ordinary replica does not become a primary. */
  get isRetryable(): boolean {
    return false
  }

  override get message(): string {
    return `The database server at ${this.server} does not accept writes: it is a read-only replica, or default_transaction_read_only is on. Connect to the primary, or switch that off.`
  }
}

/**
 * The server refused the statements of `ReadModel.run` or `ReadModel.layer`; nothing was created. Transient codes have
 * been retried for five seconds; for others a retry does not help. The caller corrects the statements, or the operator
 * grants the privileges.
 *
 * @category errors
 * @since 0.1.0
 */
export class ReadModelFailed extends Schema.TaggedError<ReadModelFailed>(id("ReadModelFailed"))("ReadModelFailed", {
  readModel: Schema.String,
  /** SQLSTATE, if the server reported one. */
  code: Schema.optionalKey(Schema.String),
  detail: Schema.String,
  cause: Schema.Defect()
}) {
  override get message(): string {
    const advice = this.code === "42501"
      ? "Grant the role CREATE on the schema, or create the read model in a migration."
      : this.code === "42P07" || this.code === "42710" || this.code === "42701" || this.code === "42P06"
      ? "The statements run at every start: use IF NOT EXISTS."
      : this.code === "25001"
      ? "A statement cannot run in a transaction: move it to a migration."
      : "Correct its statements."
    return `Read model "${this.readModel}" cannot be created: ${this.detail}${
      this.code === undefined ? "" : ` (SQLSTATE ${this.code})`
    }. ${advice}`
  }
}

/**
 * Handlers would write through another client than the one whose transaction commits their progress. A retry does not
 * help. The caller provides one client layer to both.
 *
 * @category errors
 * @since 0.1.0
 */
export class ForeignSqlClient extends Schema.TaggedError<ForeignSqlClient>(id("ForeignSqlClient"))("ForeignSqlClient", {
  replicaSet: Schema.String
}) {
  override get message(): string {
    return `The SqlClient of the handlers of replica set "${this.replicaSet}" is not the client of PostgresStores: read model and progress would not commit together. Provide one PgClient layer, once, around both (Layer.provideMerge).`
  }
}

/**
 * Why an operation of a store failed. Each reason documents whether a retry can help, and what to fix.
 *
 * @category errors
 * @since 0.1.0
 */
export const StoreErrorReason = Schema.Union([
  DatabaseUnavailable,
  StatementFailed,
  ReadOnlyDatabase,
  UnsupportedDatabase
])
/**
 * @category errors
 * @since 0.1.0
 */
export type StoreErrorReason = typeof StoreErrorReason.Type

/**
 * The error with which any operation of a store can fail; `reason` states why. A retry can help if `isRetryable` is
 * true; a registered worker also retries others, as each reason documents. `message` states what to fix.
 *
 * **Example** (Catch one reason)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { EventStore } from "pupsourcing-orchestrator"
 *
 * const head = Effect.flatMap(EventStore.EventStore, (store) => store.headPosition).pipe(
 *   Effect.catchReason("StoreError", "DatabaseUnavailable", ({ condition }) =>
 *     Effect.as(Effect.logWarning(`The head is unknown: ${condition}`), undefined))
 * )
 * ```
 *
 * @category errors
 * @since 0.1.0
 */
export class StoreError extends Schema.TaggedError<StoreError>(id("StoreError"))("StoreError", {
  reason: StoreErrorReason
}) {
  override readonly cause = this.reason

  override get message(): string {
    return this.reason.message
  }

  /**
   * Whether the same call may succeed a little later without intervention. In a transaction of the caller, only the
   * whole transaction can be retried.
   */
  get isRetryable(): boolean {
    return this.reason.isRetryable
  }

  /**
   * Whether an append with this error may have been committed, because its answer was lost. If false, nothing was
   * committed.
   */
  get mayHaveCommitted(): boolean {
    return "mayHaveCommitted" in this.reason && this.reason.mayHaveCommitted === true
  }
}
