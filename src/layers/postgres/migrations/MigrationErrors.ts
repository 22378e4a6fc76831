/**
 * The errors of migrations. No retry helps with those that are defined here, and nothing was changed when one occurs.
 *
 * @since 0.1.0
 */
import * as Schema from "effect/Schema"
import type { InvalidSettings, SchemaVersionMismatch, StoreError } from "../../../schema/Errors.ts"

/**
 * Tables differ from what this library needs, usually those of an event store that other software created; they were
 * not changed. A retry does not help. The operator changes the tables, or configures other names.
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
 * The role lacks privileges that the migration needs; nothing was changed. A retry does not help until the operator
 * grants the privileges, or runs the migration under another role.
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
    }. Nothing was changed. Grant them (migrations/roles/admin.sql), or migrate as a role that has them; docs/operations.md lists the privileges for migrations.`
  }
}

/**
 * The event store was not dropped, because it holds events. A retry does not help. If the events are no longer needed,
 * the operator drops the table manually.
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
 * Tables with the names of the orchestrator's tables exist, but this library did not create them; nothing was changed.
 * A retry does not help. The operator configures other names, or drops the tables.
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
 * The event store's tables do not exist, but the search path contains others that hold events; nothing was changed. A
 * retry does not help. The operator configures the schema of the existing event store, or requests a new one.
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
 * The errors with which a migration refuses to change anything. A retry does not help: the operator changes the
 * database, or the configuration changes.
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
 * The errors with which a migration can fail. Only a `StoreError` can be retryable (`isRetryable`); it has
 * then been retried for five seconds, and the migration can be run again.
 *
 * @category errors
 * @since 0.1.0
 */
export type MigrationError = MissingPrivileges | Refusal | StoreError
