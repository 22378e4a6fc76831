/** The command `migrate` without its subcommands, and the flags that the subcommands share. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as TableNames from "../schema/TableNames.ts"

export const migrate = Command.make("migrate").pipe(
  Command.withDescription("Create the tables that the library needs, as migration files or in a database"),
  Command.withSharedFlags({
    schema: Flag.String("schema").pipe(
      Flag.withDescription("Schema of the tables; created if missing"),
      Flag.optional
    ),
    eventStoreSchema: Flag.String("event-store-schema").pipe(
      Flag.withMetavar("schema"),
      Flag.withDescription("Schema of events and aggregateHeads, if it differs from --schema"),
      Flag.optional
    ),
    tables: Flag.KeyValuePair("table").pipe(
      Flag.withMetavar("key=name"),
      Flag.withDescription(`Another name for a table or sequence, repeatable: ${TableNames.keys.join(", ")}`),
      Flag.optional
    )
  })
)

/** The names that the flags give. */
export const nameOptions = Effect.map(migrate, ({ eventStoreSchema, schema, tables }): TableNames.Options => ({
  schema: Option.getOrUndefined(schema),
  eventStoreSchema: Option.getOrUndefined(eventStoreSchema),
  tables: Option.getOrUndefined(tables)
}))

export const newEventStore = Flag.Boolean("new-event-store").pipe(
  Flag.withDescription("Create the event store even if the search path contains another one with events"),
  Flag.withDefault(false)
)
