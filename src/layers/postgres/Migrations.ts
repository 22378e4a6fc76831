/**
 * Creates, drops and inspects the tables from code, with the statements of the files in `migrations`.
 *
 * Effect's `Migrator` is not used: it has no down migrations, it records what it ran in a table of its own (which does
 * not cover tables that pupsourcing or another tool created), and it takes no names as parameters. What it would add,
 * one migration at a time in one transaction, is ensured by the advisory lock at the beginning of every statement list.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import { InvalidSettings, SchemaVersionMismatch, type StoreError } from "../../schema/Errors.ts"
import * as TableNames from "../../schema/TableNames.ts"
import { layerPer } from "../../services/LayerPer.ts"
import { waitForServer } from "../../services/worker/Startup.ts"
import * as ClientConfig from "./connection/ClientConfig.ts"
import * as LockWait from "./connection/LockWait.ts"
import { serverOf } from "./connection/Server.ts"
import { refail } from "./connection/SqlErrors.ts"
import { asJson } from "./coordination/Rows.ts"
import * as EventStoreTables from "./migrations/EventStoreTables.ts"
import * as OrchestratorTables from "./migrations/OrchestratorTables.ts"
import * as Privileges from "./migrations/Privileges.ts"
import { literal, lock } from "./migrations/Sql.ts"
import * as TableSchemas from "./TableSchemas.ts"

/**
 * Tables differ from what this library needs; they were not changed. Usually these are tables of the event store, which
 * other software may have created.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventStoreDiffers extends Schema.TaggedError<EventStoreDiffers>(
  "pupsourcing-orchestrator/EventStoreDiffers"
)("EventStoreDiffers", { differences: Schema.Array(Schema.String) }) {
  override get message(): string {
    return `The tables differ from what this library needs: ${
      this.differences.join("; ")
    }. Nothing was changed. Change the tables, or choose other names for them.`
  }
}

/**
 * The role lacks privileges that the migration needs.
 *
 * @category errors
 * @since 0.1.0
 */
export class MissingPrivileges extends Schema.TaggedError<MissingPrivileges>(
  "pupsourcing-orchestrator/MissingPrivileges"
)("MissingPrivileges", {
  operation: Schema.String,
  role: Schema.String,
  /** For example `CREATE on schema public`. */
  privileges: Schema.Array(Schema.String)
}) {
  override get message(): string {
    return `Role "${this.role}" lacks privileges that "${this.operation}" needs: ${
      this.privileges.join("; ")
    }. Nothing was changed. Grant them, or migrate as a role that has them; docs/operations.md lists the privileges for migrations.`
  }
}

/**
 * The event store was not dropped, because it holds events.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventsExist extends Schema.TaggedError<EventsExist>("pupsourcing-orchestrator/EventsExist")(
  "EventsExist",
  { table: Schema.String }
) {
  override get message(): string {
    return `Table ${this.table} holds events, and a migration never drops events. Nothing was changed. If they are no longer needed, drop the table manually.`
  }
}

/**
 * Tables with the names of the orchestrator's tables exist, but this library did not create them.
 *
 * @category errors
 * @since 0.1.0
 */
export class TablesNotOurs extends Schema.TaggedError<TablesNotOurs>("pupsourcing-orchestrator/TablesNotOurs")(
  "TablesNotOurs",
  {
    /** Qualified and quoted. */
    tables: Schema.Array(Schema.String),
    /** Their keys in `TableNames`. */
    keys: Schema.Array(Schema.String)
  }
) {
  override get message(): string {
    const go = this.keys.some((key) => key === "generations" || key === "workers")
      ? " If Go's pupsourcing-orchestrator created them and no longer runs, drop them instead: they contain no progress."
      : ""
    return `These tables exist, but this library did not create them: ${
      this.tables.join(", ")
    }. Nothing was changed. Choose other names for these tables: ${
      this.keys.map((key) =>
        `--table ${key}=pupsourcing_${key.replaceAll(/[A-Z]/g, (upper) => `_${upper.toLowerCase()}`)}`
      )
        .join(" ")
    }. Pass the same names as "tables" to PostgresStores.layerWith.${go}`
  }
}

/**
 * The event store's tables do not exist, but the search path contains others that hold events.
 *
 * @category errors
 * @since 0.1.0
 */
export class EventStoreElsewhere extends Schema.TaggedError<EventStoreElsewhere>(
  "pupsourcing-orchestrator/EventStoreElsewhere"
)("EventStoreElsewhere", {
  /** Qualified and quoted. */
  missing: Schema.String,
  found: Schema.String,
  /** The schema of the event store that was found. */
  schema: Schema.String
}) {
  override get message(): string {
    return `${this.missing} does not exist, while ${this.found} holds events: projections of a new event store would receive none of them. Nothing was changed. To use the events that exist, pass --event-store-schema ${this.schema} (eventStoreSchema: "${this.schema}" in PostgresStores.layerWith). To create an empty event store beside them, pass --new-event-store.`
  }
}

/**
 * The errors with which a migration refuses to change anything.
 *
 * @category errors
 * @since 0.1.0
 */
export type Refusal =
  | EventStoreDiffers
  | EventStoreElsewhere
  | InvalidSettings
  | SchemaVersionMismatch
  | TablesNotOurs

/**
 * @category errors
 * @since 0.1.0
 */
export type MigrationError = MissingPrivileges | Refusal | StoreError

/**
 * @category options
 * @since 0.1.0
 */
export interface Options extends TableNames.Options, EventStoreTables.UpOptions {}

/**
 * The state of the tables in the database.
 *
 * @category models
 * @since 0.1.0
 */
export interface Status {
  /** The version of the orchestrator's tables; absent if they have not been created completely. */
  readonly version: number | undefined
  /** The version that this library creates. */
  readonly expected: number
  readonly tables: ReadonlyArray<{
    readonly key: TableNames.TableKey
    /** Qualified and quoted. */
    readonly name: string
    readonly exists: boolean
    /** Whether it exists but was not created by this library; see `TablesNotOurs`. */
    readonly isForeign: boolean
  }>
  /** The differences between the tables and what this library relies on. */
  readonly differences: ReadonlyArray<EventStoreTables.Difference>
  /** The error with which `run` would fail; absent if it may run. */
  readonly refusal: Refusal | undefined
}

/**
 * A difference as one line of text.
 *
 * @category utils
 * @since 0.1.0
 */
export const describe: (difference: EventStoreTables.Difference) => string = EventStoreTables.describe

interface Migrating {
  readonly names: TableNames.TableNames
  readonly operation: string
  readonly query: <A extends object>(text: string) => Effect.Effect<ReadonlyArray<A>, SqlError.SqlError>
  readonly execute: (text: string) => Effect.Effect<unknown, SqlError.SqlError>
}

const inTransaction = <A, E, R>(
  operation: string,
  begin: string,
  options: TableNames.Options,
  body: (migrating: Migrating) => Effect.Effect<A, E | SqlError.SqlError, R>
): Effect.Effect<A, Exclude<E, SqlError.SqlError> | InvalidSettings | StoreError, SqlClient.SqlClient | R> =>
  Effect.gen(function*() {
    const names = yield* Effect.fromResult(TableNames.make(options))
    const client = yield* SqlClient.SqlClient
    // Without the configuration, only the server's name is missing from messages.
    const config = ClientConfig.of(client)
    if (config !== undefined) yield* ClientConfig.check(config)
    const sql = client.withoutTransforms()
    const query = <A extends object>(text: string) => asJson<A>(sql, text)
    const execute = (text: string) => sql.unsafe(text)
    // Messages contain the names as they were given, unless these could refer to temporary tables of the session.
    const located = query<{ schemas: ReadonlyArray<string | null>; current: string | null }>(
      `SELECT ${TableSchemas.find(names, TableSchemas.searchPath)} AS schemas,
        (${TableSchemas.searchPath})[1] AS current
      WHERE pg_catalog.pg_my_temp_schema() <> 0`
    )
    return yield* Effect.flatMap(located, ([row]) =>
      body({
        execute,
        names: row === undefined ? names : TableSchemas.locate(names, row.schemas, row.current),
        operation,
        query
      })).pipe(
        sql.withTransaction,
        Effect.provideService(SqlClient.BeginTransaction, begin),
        LockWait.reporting({ sql, table: TableNames.qualified(names, "meta"), operation: `"${operation}"` }),
        refail(serverOf(config ?? {}), operation),
        waitForServer
      )
  })

/** Runs in a read-only transaction, without the lock that serializes migrations. */
const inspecting = <A, E, R>(
  operation: string,
  options: TableNames.Options,
  body: (migrating: Migrating) => Effect.Effect<A, E | SqlError.SqlError, R>
) => inTransaction(operation, "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY", options, body)

/** Runs in one transaction, after any other migration of this library has ended. */
const migrating = <A, E, R>(
  operation: string,
  options: TableNames.Options,
  body: (migrating: Migrating) => Effect.Effect<A, E | SqlError.SqlError, R>
) =>
  inTransaction(
    operation,
    // Each statement must read what other migrations committed before the lock was acquired.
    "BEGIN ISOLATION LEVEL READ COMMITTED",
    options,
    (migrating) => Effect.andThen(migrating.execute(`SELECT ${lock}`), body(migrating))
  )

/** Fails if the query finds missing privileges; it returns one row per missing privilege. */
const requirePrivileges = Effect.fnUntraced(function*(migrating: Migrating, missing: string) {
  const rows = yield* migrating.query<{ role: string; privilege: string }>(missing)
  const [first] = rows
  if (first === undefined) return
  return yield* new MissingPrivileges({
    operation: migrating.operation,
    role: first.role,
    privileges: rows.map((row) => row.privilege)
  })
})

const exists = (migrating: Migrating, key: TableNames.TableKey) =>
  Effect.map(
    migrating.query<{ found: boolean }>(
      `SELECT to_regclass(${literal(TableNames.qualified(migrating.names, key))}) IS NOT NULL AS found`
    ),
    (rows) => rows[0]?.found === true
  )

const findVersion = Effect.fnUntraced(function*(migrating: Migrating) {
  if (!(yield* exists(migrating, "meta"))) return undefined
  const rows = yield* migrating.query<{ schema_version: number }>(
    `SELECT schema_version FROM ${TableNames.qualified(migrating.names, "meta")}`
  )
  return rows[0]?.schema_version
})

/** The reason why the orchestrator's tables may not be changed; undefined if they may. */
const findOrchestratorRefusal = Effect.fnUntraced(function*(migrating: Migrating) {
  const { names, query } = migrating
  if (yield* exists(migrating, "meta")) {
    const [row] = yield* query<{ version: number; events: string | null }>(
      `SELECT schema_version AS version, ${OrchestratorTables.otherEventsTable(names)} AS events
       FROM ${TableNames.qualified(names, "meta")} AS m`
    )
    const expected = OrchestratorTables.schemaVersion
    if (row !== undefined && row.version > expected) return new SchemaVersionMismatch({ found: row.version, expected })
    const otherEvents = OrchestratorTables.otherEvents(names, row?.events ?? null)
    if (otherEvents !== undefined) return otherEvents
  }
  const strangers = yield* query<{ key: string; name: string }>(OrchestratorTables.strangers(names))
  return strangers.length > 0
    ? new TablesNotOurs({ tables: strangers.map(({ name }) => name), keys: strangers.map(({ key }) => key) })
    : undefined
})

/** Finds an event store with events on the search path when the expected one does not exist. */
const findElsewhere = Effect.fnUntraced(function*(migrating: Migrating) {
  const { names, query } = migrating
  for (const { name, schema } of yield* query<{ name: string; schema: string }>(EventStoreTables.elsewhere(names))) {
    const [readable] = yield* query<{ is: boolean }>(`SELECT has_table_privilege(${literal(name)}, 'SELECT') AS is`)
    // Tables that the role may not read are assumed to hold events.
    const holdsEvents = readable?.is !== true ||
      (yield* query<object>(`SELECT FROM ${name} LIMIT 1`)).length > 0
    if (holdsEvents) {
      return new EventStoreElsewhere({ missing: TableNames.qualified(names, "events"), found: name, schema })
    }
  }
  return undefined
})

const findDifferences = (migrating: Migrating) =>
  migrating.query<EventStoreTables.Difference>(EventStoreTables.differences(migrating.names))

const runAll = (migrating: Migrating, statements: ReadonlyArray<string>) =>
  Effect.forEach(statements, (statement) => migrating.execute(statement), { discard: true })

const requireReading = (migrating: Migrating) =>
  Effect.andThen(
    requirePrivileges(migrating, Privileges.toUseSchemas(migrating.names)),
    requirePrivileges(migrating, Privileges.toRead(migrating.names, "meta"))
  )

/** Returns the status and which migrations have something to do; fails if the tables may not be changed. */
const plan = (options: Options) =>
  Effect.fnUntraced(function*(migrating: Migrating) {
    yield* requireReading(migrating)
    const status = yield* inspect(options)(migrating)
    if (status.refusal !== undefined) return yield* status.refusal
    const isMissing = (keys: ReadonlyArray<TableNames.TableKey>) =>
      status.tables.some((table) => !table.exists && keys.includes(table.key))
    return {
      status,
      orchestrator: isMissing(OrchestratorTables.owned) || status.version !== status.expected ||
        (yield* lacksEventsTable(migrating)),
      eventStore: isMissing(EventStoreTables.owned)
    }
  })

/** Whether the meta table does not name the events table. Its first version lacked the column. */
const lacksEventsTable = Effect.fnUntraced(function*(migrating: Migrating) {
  const [row] = yield* migrating.query<{ lacks: boolean }>(
    `SELECT ${OrchestratorTables.eventsTable} IS NULL AS lacks FROM ${
      TableNames.qualified(migrating.names, "meta")
    } AS m`
  )
  return row?.lacks === true
})

/**
 * Creates the missing tables and returns the resulting status. Running it again, or concurrently, changes nothing.
 * Existing tables of an event store are compared and never changed: it fails with `EventStoreDiffers` if this library
 * cannot work with them, and logs a warning if only appends may fail. An event store is not created while the search
 * path contains another one with events (`EventStoreElsewhere`), unless `newEventStore` is set.
 *
 * **Details**
 *
 * If a table has to be created or changed, the role needs the privileges for that, and the migration waits for other
 * migrations. Otherwise it only reads the catalog and the meta table, for which the role of a worker or an appender
 * suffices.
 *
 * @category running
 * @since 0.1.0
 */
export const runWith = (options: Options): Effect.Effect<Status, MigrationError, SqlClient.SqlClient> =>
  Effect.gen(function*() {
    const operation = "migrate up"
    const before = yield* inspecting(operation, options, plan(options))
    const status = before.orchestrator || before.eventStore
      ? yield* migrating(operation, options, (migrating) =>
        Effect.gen(function*() {
          const { names } = migrating
          const { eventStore, orchestrator } = yield* plan(options)(migrating)
          if (orchestrator) {
            yield* requirePrivileges(migrating, Privileges.toCreate(names.schema))
            yield* requirePrivileges(migrating, Privileges.toChange(names, OrchestratorTables.owned))
          }
          if (eventStore) {
            yield* requirePrivileges(migrating, Privileges.toCreate(names.eventStoreSchema))
            // Missing heads are computed from the events.
            yield* requirePrivileges(migrating, Privileges.toRead(names, "events"))
          }
          if (orchestrator) yield* runAll(migrating, OrchestratorTables.up(names))
          if (eventStore) yield* runAll(migrating, EventStoreTables.up(names, options))
          return yield* inspect(options)(migrating)
        }))
      : before.status
    if (status.differences.length > 0) {
      yield* Effect.logWarning(
        `Appending through this library may fail, because the event store's tables differ from those that it creates: ${
          status.differences.map(describe).join("; ")
        }`
      )
    }
    return status
  })

/**
 * `runWith` for the default names.
 *
 * @category running
 * @since 0.1.0
 */
export const run: Effect.Effect<Status, MigrationError, SqlClient.SqlClient> = runWith({})

/**
 * Drops the orchestrator's tables, and with them all progress; the events are kept. Stop the workers first.
 *
 * @category running
 * @since 0.1.0
 */
export const downWith = (
  options: TableNames.Options
): Effect.Effect<void, Exclude<MigrationError, EventStoreDiffers | EventStoreElsewhere>, SqlClient.SqlClient> =>
  migrating("migrate down", options, (migrating) =>
    Effect.gen(function*() {
      yield* requireReading(migrating)
      const refusal = yield* findOrchestratorRefusal(migrating)
      // Tables that belong to another events table are dropped as well.
      if (refusal !== undefined && !(refusal instanceof InvalidSettings)) return yield* refusal
      yield* requirePrivileges(migrating, Privileges.toChange(migrating.names, OrchestratorTables.owned))
      yield* runAll(migrating, OrchestratorTables.down(migrating.names))
    }))

/**
 * `downWith` for the default names.
 *
 * @category running
 * @since 0.1.0
 */
export const down: Effect.Effect<
  void,
  Exclude<MigrationError, EventStoreDiffers | EventStoreElsewhere>,
  SqlClient.SqlClient
> = downWith({})

/**
 * Drops the event store's tables, but fails with `EventsExist` while they hold an event.
 *
 * @category running
 * @since 0.1.0
 */
export const downEventStoreWith = (
  options: TableNames.Options
): Effect.Effect<void, EventsExist | InvalidSettings | MissingPrivileges | StoreError, SqlClient.SqlClient> =>
  migrating("migrate down --event-store", options, (migrating) =>
    Effect.gen(function*() {
      yield* requirePrivileges(migrating, Privileges.toUseSchemas(migrating.names))
      yield* requirePrivileges(migrating, Privileges.toChange(migrating.names, EventStoreTables.owned))
      const table = TableNames.qualified(migrating.names, "events")
      if (yield* exists(migrating, "events")) {
        // The lock prevents appends between the check and the drop.
        yield* migrating.execute(`LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`)
        const rows = yield* migrating.query<{ found: boolean }>(EventStoreTables.anyEvent(migrating.names))
        if (rows[0]?.found === true) return yield* new EventsExist({ table })
      }
      yield* runAll(migrating, EventStoreTables.down(migrating.names))
    }))

/**
 * `downEventStoreWith` for the default names.
 *
 * @category running
 * @since 0.1.0
 */
export const downEventStore: Effect.Effect<
  void,
  EventsExist | InvalidSettings | MissingPrivileges | StoreError,
  SqlClient.SqlClient
> = downEventStoreWith({})

const inspect = (options: Options) =>
  Effect.fnUntraced(function*(migrating: Migrating) {
    const { names } = migrating
    const differences = yield* findDifferences(migrating)
    const blocking = differences.filter((difference) => difference.blocking)
    const refusal = (yield* findOrchestratorRefusal(migrating)) ??
      (blocking.length > 0
        ? new EventStoreDiffers({ differences: blocking.map(describe) })
        : options.newEventStore === true
        ? undefined
        : yield* findElsewhere(migrating))
    const foreign = refusal instanceof TablesNotOurs ? refusal.keys : []
    const status: Status = {
      version: yield* findVersion(migrating),
      expected: OrchestratorTables.schemaVersion,
      tables: yield* Effect.forEach(TableNames.keys, (key) =>
        Effect.map(exists(migrating, key), (exists) => ({
          key,
          name: TableNames.qualified(names, key),
          exists,
          isForeign: foreign.includes(key)
        }))),
      differences,
      refusal
    }
    return status
  })

/**
 * Returns the status of the tables; changes nothing.
 *
 * @category running
 * @since 0.1.0
 */
export const statusWith = (
  options: Options
): Effect.Effect<Status, InvalidSettings | MissingPrivileges | StoreError, SqlClient.SqlClient> =>
  inspecting(
    "migrate status",
    options,
    (migrating) => Effect.andThen(requireReading(migrating), inspect(options)(migrating))
  )

/**
 * `statusWith` for the default names.
 *
 * @category running
 * @since 0.1.0
 */
export const status: Effect.Effect<
  Status,
  InvalidSettings | MissingPrivileges | StoreError,
  SqlClient.SqlClient
> = statusWith({})

/**
 * Runs the migrations while the layer is built. Like the stores, it uses `PgClient` and runs once for each client.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWith = (options: Options): Layer.Layer<never, MigrationError, PgClient.PgClient> =>
  layerPer(PgClient.PgClient, () =>
    Layer.effectDiscard(
      PgClient.PgClient.use((client) => Effect.provideService(runWith(options), SqlClient.SqlClient, client))
    ))

/**
 * `layerWith` for the default names.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<never, MigrationError, PgClient.PgClient> = layerWith({})
