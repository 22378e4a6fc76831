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
import * as SqlClient from "effect/sql/SqlClient"
import { InvalidSettings, type StoreError } from "../../schema/Errors.ts"
import * as TableNames from "../../schema/TableNames.ts"
import { layerPer } from "../../services/LayerPer.ts"
import * as EventStoreTables from "./migrations/EventStoreTables.ts"
import * as Inspection from "./migrations/Inspection.ts"
import {
  EventsExist,
  type EventStoreDiffers,
  type EventStoreElsewhere,
  type MigrationError,
  type MissingPrivileges
} from "./migrations/MigrationErrors.ts"
import * as OrchestratorTables from "./migrations/OrchestratorTables.ts"
import * as Privileges from "./migrations/Privileges.ts"
import * as Transaction from "./migrations/Transaction.ts"

export * from "./migrations/MigrationErrors.ts"

/**
 * The names of the tables, which must be those of the stores, and whether an empty event store may be created beside
 * another one (`newEventStore`).
 *
 * @category options
 * @since 0.1.0
 */
export interface Options extends TableNames.Options, EventStoreTables.UpOptions {}

/**
 * The names of the tables.
 *
 * @category options
 * @since 0.1.0
 */
export type { Options as TableOptions } from "../../schema/TableNames.ts"

/**
 * The key of a table or sequence in `tables`.
 *
 * @category options
 * @since 0.1.0
 */
export type { TableKey } from "../../schema/TableNames.ts"

/**
 * A difference between an existing table of the event store and the table that this library creates.
 *
 * @category models
 * @since 0.1.0
 */
export type { Difference } from "./migrations/EventStoreTables.ts"

/**
 * The state of the tables in the database.
 *
 * @category models
 * @since 0.1.0
 */
export type { Status } from "./migrations/Inspection.ts"

/**
 * A difference as one line of text.
 *
 * @category utils
 * @since 0.1.0
 */
export const describe: (difference: EventStoreTables.Difference) => string = EventStoreTables.describe

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
export const upWith = (options: Options): Effect.Effect<Inspection.Status, MigrationError, SqlClient.SqlClient> =>
  Effect.gen(function*() {
    const before = yield* Transaction.readOnly(migrateUp, options, (reading) => Inspection.plan(reading, options))
    const status = before.orchestrator || before.eventStore
      ? yield* Transaction.exclusive(migrateUp, options, (transaction) => create(transaction, options))
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

const migrateUp = "migrate up"

/** Creates what is missing, after another migration may have created it. */
const create = Effect.fnUntraced(function*(transaction: Transaction.Transaction, options: Options) {
  const { names } = transaction
  const { eventStore, orchestrator } = yield* Inspection.plan(transaction, options)
  if (orchestrator) {
    yield* Transaction.requirePrivileges(transaction, Privileges.toCreate(names.schema))
    yield* Transaction.requirePrivileges(transaction, Privileges.toChange(names, OrchestratorTables.owned))
  }
  if (eventStore) {
    yield* Transaction.requirePrivileges(transaction, Privileges.toCreate(names.eventStoreSchema))
    // Missing heads are computed from the events.
    yield* Transaction.requirePrivileges(transaction, Privileges.toRead(names, "events"))
  }
  if (orchestrator) yield* Transaction.runAll(transaction, OrchestratorTables.up(names))
  if (eventStore) yield* Transaction.runAll(transaction, EventStoreTables.up(names, options))
  return yield* Inspection.inspect(transaction, options)
})

/**
 * `upWith` for the default names.
 *
 * @category running
 * @since 0.1.0
 */
export const up: Effect.Effect<Inspection.Status, MigrationError, SqlClient.SqlClient> = upWith({})

/**
 * Drops the orchestrator's tables, and with them all progress; the events are kept. Stop the workers first.
 *
 * @category running
 * @since 0.1.0
 */
export const downWith = (
  options: TableNames.Options
): Effect.Effect<void, Exclude<MigrationError, EventStoreDiffers | EventStoreElsewhere>, SqlClient.SqlClient> =>
  Transaction.exclusive("migrate down", options, (transaction) =>
    Effect.gen(function*() {
      yield* Inspection.requireReading(transaction)
      const refusal = yield* Inspection.findOrchestratorRefusal(transaction)
      // Tables that belong to another events table are dropped as well.
      if (refusal !== undefined && !(refusal instanceof InvalidSettings)) return yield* refusal
      yield* Transaction.requirePrivileges(
        transaction,
        Privileges.toChange(transaction.names, OrchestratorTables.owned)
      )
      yield* Transaction.runAll(transaction, OrchestratorTables.down(transaction.names))
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
  Transaction.exclusive("migrate down --event-store", options, (transaction) =>
    Effect.gen(function*() {
      yield* Transaction.requirePrivileges(transaction, Privileges.toUseSchemas(transaction.names))
      yield* Transaction.requirePrivileges(transaction, Privileges.toChange(transaction.names, EventStoreTables.owned))
      const table = TableNames.qualified(transaction.names, "events")
      if (yield* Transaction.exists(transaction, "events")) {
        // The lock prevents appends between the check and the drop.
        yield* transaction.execute(`LOCK TABLE ${table} IN ACCESS EXCLUSIVE MODE`)
        const rows = yield* transaction.query<{ found: boolean }>(EventStoreTables.anyEvent(transaction.names))
        if (rows[0]?.found === true) return yield* new EventsExist({ table })
      }
      yield* Transaction.runAll(transaction, EventStoreTables.down(transaction.names))
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

/**
 * Returns the status of the tables; changes nothing.
 *
 * @category running
 * @since 0.1.0
 */
export const statusWith = (
  options: Options
): Effect.Effect<Inspection.Status, InvalidSettings | MissingPrivileges | StoreError, SqlClient.SqlClient> =>
  Transaction.readOnly("migrate status", options, (transaction) => Inspection.inspect(transaction, options))

/**
 * `statusWith` for the default names.
 *
 * @category running
 * @since 0.1.0
 */
export const status: Effect.Effect<
  Inspection.Status,
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
      PgClient.PgClient.use((client) => Effect.provideService(upWith(options), SqlClient.SqlClient, client))
    ))

/**
 * `layerWith` for the default names.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<never, MigrationError, PgClient.PgClient> = layerWith({})
