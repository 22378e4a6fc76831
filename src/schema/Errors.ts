/**
 * The typed errors that a caller can distinguish. Each message states what is wrong and what to do.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Schema from "effect/Schema"
import * as EventFilter from "./EventFilter.ts"
import { sentence } from "./Text.ts"

const id = (tag: string) => `pupsourcing-orchestrator/${tag}`

/**
 * Set on the error of an append with an unknown commit outcome: the connection was lost before the answer arrived.
 * Absent if nothing was committed.
 */
const mayHaveCommitted = Schema.optionalKey(Schema.Literal(true))

const unknownOutcome = (error: { readonly mayHaveCommitted?: true }): string =>
  error.mayHaveCommitted === true
    ? " The append may have been committed. Repeat it only with the same eventIds: DuplicateEvent then means that it was."
    : ""

/**
 * There is no connection to the database, or no answer in time; `reason` states why. While stores open, migrations run
 * or a worker starts, reasons that pass are retried for five seconds and others (password, TLS, names) fail at once. A
 * registered worker retries all of them without a limit. The caller retries its own appends. The operator fixes the
 * server or the network, or the configuration has to change.
 *
 * @category errors
 * @since 0.1.0
 */
export class DatabaseUnavailable extends Schema.TaggedError<DatabaseUnavailable>(id("DatabaseUnavailable"))(
  "DatabaseUnavailable",
  {
    reason: Schema.Literals([
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
  override get message(): string {
    return `${this.problem}${unknownOutcome(this)}`
  }

  private get problem(): string {
    switch (this.reason) {
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
 * The database refused a statement of this library; `code` states why. SQLSTATE classes 40, 53 and 58 are transient and
 * are retried like a lost connection. With any other code a worker fails only if the operation has never succeeded;
 * otherwise it retries. An append outside a transaction retries conflicts; inside one, the caller retries its whole
 * transaction. The operator fixes privileges, tables and resources, and the caller its own constraints.
 *
 * @category errors
 * @since 0.1.0
 */
export class StoreFailure extends Schema.TaggedError<StoreFailure>(id("StoreFailure"))("StoreFailure", {
  /** The operation that failed. */
  operation: Schema.String,
  /** SQLSTATE, if the server reported one. */
  code: Schema.optionalKey(Schema.String),
  /** The violated constraint, if the server named one. */
  constraint: Schema.optionalKey(Schema.String),
  detail: Schema.String,
  mayHaveCommitted,
  cause: Schema.Defect()
}) {
  override get message(): string {
    const advice = this.code === "42501"
      ? " Grant the role what docs/operations.md lists."
      : this.code === "42P01" || this.code === "42703"
      ? " Run the migrations: npx pupsourcing-orchestrator migrate up."
      : this.code === "25006"
      ? " Connect to the primary."
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
    return `The database refused "${this.operation}": ${sentence(`${this.detail}${code}`)}${advice}${
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
export class ReadOnlyReplica extends Schema.TaggedError<ReadOnlyReplica>(id("ReadOnlyReplica"))("ReadOnlyReplica", {
  server: Schema.String
}) {
  override get message(): string {
    return `The database server at ${this.server} takes no writes: it is a read-only replica, or default_transaction_read_only is on. Connect to the primary, or switch that off.`
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
 * A setting is missing, is not valid, or does not fit the database; `problem` states what is expected. A retry does not
 * help. The configuration has to change.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidSettings extends Schema.TaggedError<InvalidSettings>(id("InvalidSettings"))("InvalidSettings", {
  setting: Schema.String,
  problem: Schema.String
}) {
  override get message(): string {
    return `Setting "${this.setting}": ${this.problem}`
  }
}

/**
 * Two projections of one orchestrator have the same name, under which progress is stored. A retry does not help. The
 * caller renames one of them.
 *
 * @category errors
 * @since 0.1.0
 */
export class DuplicateProjection extends Schema.TaggedError<DuplicateProjection>(id("DuplicateProjection"))(
  "DuplicateProjection",
  { projection: Schema.String }
) {
  override get message(): string {
    return `Two projections are named "${this.projection}". Progress is stored by name; give each projection its own.`
  }
}

/**
 * The worker id belongs to another live worker. The library waits until an earlier registration is stale, and fails
 * once the other worker sends a heartbeat. A retry helps only after that worker has ended. The operator stops it, or
 * the configuration has to contain a different id for each worker, or none.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkerIdInUse extends Schema.TaggedError<WorkerIdInUse>(id("WorkerIdInUse"))("WorkerIdInUse", {
  replicaSet: Schema.String,
  workerId: Schema.String,
  host: Schema.String,
  pid: Schema.Int,
  since: Schema.Date
}) {
  override get message(): string {
    return `Worker id "${this.workerId}" of replica set "${this.replicaSet}" is in use by process ${this.pid} on ${this.host} since ${this.since.toISOString()}. Stop that process, or choose another workerId (without one, an id is drawn).`
  }
}

/**
 * Another process has registered under this worker's id, and this worker ends. A restart does not help while the other
 * process runs. Nothing has to be fixed if the other process is the successor; otherwise the configuration has to
 * contain a different id for each worker.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkerReplaced extends Schema.TaggedError<WorkerReplaced>(id("WorkerReplaced"))("WorkerReplaced", {
  replicaSet: Schema.String,
  workerId: Schema.String
}) {
  override get message(): string {
    return `Another process has registered as worker "${this.workerId}" of replica set "${this.replicaSet}" and replaced this one. If both are meant to run, give them different ids.`
  }
}

/**
 * The worker has lost its registration: it was evicted, or its row is missing. It registers again by itself, so that
 * this error appears only in activities and the log. Nothing has to be fixed, unless it recurs: handlers that block the
 * event loop are the caller's to fix, lost connections the operator's.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkerEvicted extends Schema.TaggedError<WorkerEvicted>(id("WorkerEvicted"))("WorkerEvicted", {
  replicaSet: Schema.String,
  workerId: Schema.String,
  /**
   * `evicted`: another worker has detected missed heartbeats or a missing presence, and has stopped this registration.
   * `missing`: the row was deleted, or the server has lost its latest commits.
   */
  reason: Schema.Literals(["evicted", "missing"])
}) {
  override get message(): string {
    const worker = `worker "${this.workerId}" of replica set "${this.replicaSet}"`
    return this.reason === "missing"
      ? `The registration of ${worker} is no longer in the table of workers: its row was deleted, or the server has lost its latest commits. The worker registers again.`
      : `Another worker has evicted ${worker}, because its heartbeats or its database session had been missing for too long. It registers again.`
  }
}

/**
 * A live worker of another replica set carries the projection, and this worker ends. A retry helps only after the
 * projection was stopped there. The operator stops the other worker, or the caller gives one of the projections another
 * name.
 *
 * @category errors
 * @since 0.1.0
 */
export class ProjectionInOtherReplicaSet
  extends Schema.TaggedError<ProjectionInOtherReplicaSet>(id("ProjectionInOtherReplicaSet"))(
    "ProjectionInOtherReplicaSet",
    {
      projection: Schema.String,
      replicaSet: Schema.String,
      otherReplicaSet: Schema.String,
      workerId: Schema.String
    }
  )
{
  override get message(): string {
    return `Projection "${this.projection}" of replica set "${this.replicaSet}" is being run by replica set "${this.otherReplicaSet}" (worker "${this.workerId}"). Stop it there first, or give this projection another name.`
  }
}

/**
 * The filter of a projection differs from the one under which its progress was made. A retry does not help. The caller
 * sets `acceptFilterChange`, renames the projection or runs the newer version. A running worker does not end but gives
 * up this projection; a starting worker and `catchUp` fail.
 *
 * @category errors
 * @since 0.1.0
 */
export class FilterChanged extends Schema.TaggedError<FilterChanged>(id("FilterChanged"))("FilterChanged", {
  projection: Schema.String,
  /** The filter under which progress was made, in the form of `EventFilter.canonical`. */
  recorded: Schema.String,
  /** The filter of this worker, in the same form. */
  given: Schema.String,
  /** Set if another worker changed the recorded filter while this one was running. */
  whileRunning: Schema.optionalKey(Schema.Boolean)
}) {
  override get message(): string {
    const given = `"${EventFilter.format(this.given)}"`
    const recorded = `"${EventFilter.format(this.recorded)}"`
    return this.whileRunning === true
      ? `Another worker, probably of a newer version, has changed the filter of projection "${this.projection}" from ${given}, which this worker has, to ${recorded}. Run the newer version here, too.`
      : `Projection "${this.projection}" has the filter ${given}, but its progress was made under ${recorded}, so that past events which only the new filter selects are missing. Set acceptFilterChange: true to continue from its present position, or give the projection a new name to build it from the beginning; if a newer version has changed the filter, run that version.`
  }
}

/**
 * A checkpoint lies beyond the last position that was assigned: the events table lost events, or belongs to another
 * database. The worker ends; a retry does not help. The operator restores the events or corrects the configuration; or
 * the caller rebuilds the projection under a new name.
 *
 * @category errors
 * @since 0.1.0
 */
export class CheckpointAheadOfEvents
  extends Schema.TaggedError<CheckpointAheadOfEvents>(id("CheckpointAheadOfEvents"))("CheckpointAheadOfEvents", {
    /** The projection of the checkpoint, if it is known. */
    projection: Schema.optionalKey(Schema.String),
    position: Schema.BigInt,
    lastPosition: Schema.BigInt
  })
{
  override get message(): string {
    const who = this.projection === undefined ? "A projection" : `Projection "${this.projection}"`
    return `${who} has handled events up to position ${this.position}, but the events table has only issued positions up to ${this.lastPosition}. The database has lost events that were already handled (restored backup, failover with lost commits), or the events are of another database. Restore the events, or rebuild the projection under a new name.`
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
 * The worker did not reach its assignment in time and ends; time without a database does not count. A restart helps
 * once the handler or the other worker in `waitingFor` has stopped. The caller bounds the handler, or raises
 * `coordinationTimeout` in the configuration.
 *
 * @category errors
 * @since 0.1.0
 */
export class CoordinationTimeout extends Schema.TaggedError<CoordinationTimeout>(id("CoordinationTimeout"))(
  "CoordinationTimeout",
  {
    replicaSet: Schema.String,
    workerId: Schema.String,
    generationId: Schema.BigInt,
    timeout: Schema.String,
    waitingFor: Schema.String
  }
) {
  override get message(): string {
    return `Worker "${this.workerId}" of replica set "${this.replicaSet}" did not reach its assignment of generation ${this.generationId} within ${this.timeout}: ${this.waitingFor}. Look for a handler that does not end, or raise coordinationTimeout.`
  }
}

/**
 * The same orchestrator is already running. A retry helps only after that run has ended. The caller runs it once, or
 * builds one layer for each worker.
 *
 * @category errors
 * @since 0.1.0
 */
export class AlreadyRunning extends Schema.TaggedError<AlreadyRunning>(id("AlreadyRunning"))("AlreadyRunning", {
  replicaSet: Schema.String
}) {
  override get message(): string {
    return `This orchestrator of replica set "${this.replicaSet}" is already running. Run it once; to run several workers in one process, build the layer several times.`
  }
}

/**
 * A range of a projection is halted because its handler failed, or because an event cannot be received or read. Only
 * `catchUp` fails with it; a running worker logs the same message and continues with other ranges. A worker that starts
 * later retries the event, which helps once the caller has fixed the handler, or the operator the event.
 *
 * @category errors
 * @since 0.1.0
 */
export class ProjectionHalted extends Schema.TaggedError<ProjectionHalted>(id("ProjectionHalted"))("ProjectionHalted", {
  projection: Schema.String,
  range: Schema.String,
  position: Schema.BigInt,
  eventId: Schema.String,
  /** Type, aggregate and version of the event, and the error. */
  error: Schema.String,
  /** By the database's clock. */
  since: Schema.optionalKey(Schema.Date)
}) {
  override get message(): string {
    const since = this.since === undefined ? "" : ` since ${this.since.toISOString()}`
    // An event that cannot be received or read never reaches the handler.
    const wrong = /\bEvent(TooLarge|Unreadable): /.test(this.error) ? "cause" : "handler"
    return `Projection "${this.projection}" is halted in range ${this.range}${since}: event ${this.eventId} at position ${this.position}, ${
      sentence(this.error)
    } Fix the ${wrong} and restart the worker: a worker that starts after the failure retries the event. Other ranges and projections continue.`
  }
}

/**
 * The aggregate is not at the version that the append expected; nothing was appended. Repeating the same append does
 * not help. The caller reads the stream again and decides again; nothing else has to be fixed.
 *
 * @category errors
 * @since 0.1.0
 */
export class ConcurrencyConflict extends Schema.TaggedError<ConcurrencyConflict>(id("ConcurrencyConflict"))(
  "ConcurrencyConflict",
  {
    boundedContext: Schema.String,
    aggregateType: Schema.String,
    aggregateId: Schema.String,
    expected: Schema.String,
    /** The last version found; absent if only a violated constraint revealed a concurrent append. */
    actual: Schema.optionalKey(Schema.BigInt)
  }
) {
  override get message(): string {
    return `${this.aggregateType} "${this.aggregateId}" was expected at version ${this.expected} but ${
      this.actual === undefined ? "was appended to at the same time" : `is at version ${this.actual}`
    }. Read the stream again and repeat the decision.`
  }
}

/**
 * An event with this id is already stored. When an append is retried with the same `eventId`s, this means that the
 * earlier attempt was committed, and nothing has to be fixed. Otherwise a retry does not help, and the caller gives
 * each event its own id. It is reported in preference to `ConcurrencyConflict`.
 *
 * @category errors
 * @since 0.1.0
 */
export class DuplicateEvent extends Schema.TaggedError<DuplicateEvent>(id("DuplicateEvent"))("DuplicateEvent", {
  detail: Schema.String
}) {
  override get message(): string {
    return `An event with the same id is already stored: ${this.detail}. If this append repeats an earlier one, that one was committed; otherwise give each event a UUID of its own.`
  }
}

/**
 * The events cannot be appended as given; nothing was sent to the database. A retry does not help. The caller corrects
 * the events.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidEvents extends Schema.TaggedError<InvalidEvents>(id("InvalidEvents"))("InvalidEvents", {
  problem: Schema.String
}) {
  override get message(): string {
    return this.problem
  }
}

/**
 * An event is larger than the client can receive, which halts the ranges that would receive it. A retry does not help
 * until `maxMessageSize` of `PgClient` is raised in the configuration and the worker restarted.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventTooLarge extends Schema.TaggedError<EventTooLarge>(id("EventTooLarge"))("EventTooLarge", {
  position: Schema.BigInt,
  eventId: Schema.String,
  aggregateId: Schema.String,
  aggregateType: Schema.optionalKey(Schema.String),
  aggregateVersion: Schema.optionalKey(Schema.BigInt),
  eventType: Schema.optionalKey(Schema.String),
  bytes: Schema.Int,
  limit: Schema.Int,
  /** The server epoch in which it was read. */
  epoch: Schema.optionalKey(Schema.String)
}) {
  override get message(): string {
    return `The event at position ${this.position} (${this.eventId}) has ${this.bytes} bytes, more than the ${this.limit} that the client receives. Raise maxMessageSize of PgClient.`
  }
}

/**
 * The stored bytes of an event cannot be read: they are damaged, are not valid text in the database's encoding, or
 * exceed a limit of the server. This halts only the ranges that would receive it. A retry does not help: the operator
 * restores or corrects the row, then restarts a worker.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventUnreadable extends Schema.TaggedError<EventUnreadable>(id("EventUnreadable"))("EventUnreadable", {
  position: Schema.BigInt,
  /** Absent if it cannot be read either. The same applies to the type and to the fields about the aggregate. */
  eventId: Schema.optionalKey(Schema.String),
  aggregateId: Schema.optionalKey(Schema.String),
  aggregateType: Schema.optionalKey(Schema.String),
  aggregateVersion: Schema.optionalKey(Schema.BigInt),
  eventType: Schema.optionalKey(Schema.String),
  /** SQLSTATE; absent if the server sent the row and the client could not decode it. */
  code: Schema.optionalKey(Schema.String),
  detail: Schema.String,
  /** The server epoch in which it was read. */
  epoch: Schema.optionalKey(Schema.String)
}) {
  override get message(): string {
    const advice = this.code === "XX002"
      ? "Run REINDEX TABLE on the events table"
      : "Restore its row from a backup, or correct it with UPDATE"
    return `The event at position ${this.position} (${this.eventId ?? "id unreadable"}) cannot be read: ${this.detail}${
      this.code === undefined ? "" : ` (SQLSTATE ${this.code})`
    }. ${advice}, then restart the worker.`
  }
}

/**
 * An error that concerns a single event and halts the ranges that would receive it. A retry does not help until the
 * event can be read and a worker has been restarted.
 *
 * @category errors
 * @since 0.1.0
 */
export type EventError = EventTooLarge | EventUnreadable

/**
 * A handler repeatedly took so long to handle one event that its batches were rolled back. The library has retried the
 * event; now its range is halted, with this error in the halt's text. A restart retries the event, but helps only after
 * the caller has fixed the handler.
 *
 * @category errors
 * @since 0.1.0
 */
export class HandlerOverran extends Schema.TaggedError<HandlerOverran>(id("HandlerOverran"))("HandlerOverran", {
  times: Schema.Int,
  /** The time that every one of these attempts exceeded. */
  longerThan: Schema.Duration
}) {
  override get message(): string {
    return `The handler took longer than ${
      Duration.format(this.longerThan)
    } at this event and lost its transaction, ${this.times} times. It keeps the process from its heartbeats, or waits without end: give long computations to a worker thread, and what it waits for a time limit.`
  }
}

/**
 * A handler returned, or succeeded with, a value that nothing runs, awaits or raises. Its work would be lost, or would
 * be done outside the batch's transaction. The range is halted, with this error in the halt's text. A retry does not
 * help until the caller has fixed the handler.
 *
 * @category errors
 * @since 0.1.0
 */
export class HandlerResultUnused extends Schema.TaggedError<HandlerResultUnused>(id("HandlerResultUnused"))(
  "HandlerResultUnused",
  { result: Schema.Literals(["Effect", "failure", "Stream", "Promise", "not an Effect"]) }
) {
  override get message(): string {
    switch (this.result) {
      case "Effect":
        return "The handler succeeded with an Effect, which nothing runs. Use yield* on it, or Effect.flatMap or Effect.all; the diagnostic floatingEffect of @effect/language-service finds others that are not run at all."
      case "failure":
        return "The handler succeeded with a failure, which it did not raise. Use return yield* on it; to ignore a failure, use Effect.ignore."
      case "Stream":
        return "The handler succeeded with a Stream, which nothing runs. Run it, for example with Stream.runDrain."
      case "Promise":
        return "The handler succeeded with a Promise or another thenable, which nothing awaits. Use Effect.promise or Effect.tryPromise."
      case "not an Effect":
        return "The handler did not return an Effect. Use Effect.fnUntraced instead of a generator function, and Effect.tryPromise around an async function."
    }
  }
}

/**
 * The errors with which any operation of a store can fail. `isTransient` identifies those that a retry can help; a
 * worker retries more of them, as each error states.
 *
 * @category errors
 * @since 0.1.0
 */
export type StoreError = DatabaseUnavailable | StoreFailure | ReadOnlyReplica | UnsupportedDatabase

/**
 * @category guards
 * @since 0.1.0
 */
export const isStoreError = (error: unknown): error is StoreError =>
  error instanceof DatabaseUnavailable || error instanceof StoreFailure || error instanceof ReadOnlyReplica ||
  error instanceof UnsupportedDatabase

const transientReasons: ReadonlySet<DatabaseUnavailable["reason"]> = new Set([
  "refused",
  "unreachable",
  "shutting down",
  "too many connections",
  "connection lost",
  "no answer in time",
  "no connection in time"
])

/**
 * SQLSTATE classes 40 (conflicts between transactions), 53 (insufficient resources) and 58 (system errors, such as disk
 * failures).
 */
const transientCodes = /^(40|53|58)/

/**
 * Whether the failure is transient: the same statement may succeed a little later without manual intervention.
 *
 * @category guards
 * @since 0.1.0
 */
export const isTransient = (error: StoreError): boolean =>
  error._tag === "DatabaseUnavailable"
    ? transientReasons.has(error.reason)
    : error._tag === "StoreFailure" && transientCodes.test(error.code ?? "")

/**
 * The errors with which opening the stores can fail. Transient ones have been retried for five seconds; the others need
 * the change that each of them states.
 *
 * @category errors
 * @since 0.1.0
 */
export type StoresError = StoreError | TablesMissing | SchemaVersionMismatch | InvalidSettings

/**
 * The errors with which running an orchestrator can fail. Everything that a retry by the worker can help has been
 * retried. A restart alone helps after a transient `StoreError` of the start and after `CoordinationTimeout`; the other
 * errors need the change that each of them states.
 *
 * @category errors
 * @since 0.1.0
 */
export type OrchestratorError =
  | StoreError
  | AlreadyRunning
  | CheckpointAheadOfEvents
  | CoordinationTimeout
  | FilterChanged
  | InvalidSettings
  | ProjectionHalted
  | ProjectionInOtherReplicaSet
  | WorkerIdInUse
  | WorkerReplaced
