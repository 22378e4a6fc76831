/** The flags that name the tables. */
import * as Flag from "effect/cli/Flag"
import * as Option from "effect/Option"
import * as TableNames from "../schema/TableNames.ts"

export const nameFlags = {
  schema: Flag.String("schema").pipe(
    Flag.withDescription("Schema of the tables"),
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
}

/** The names that the flags give. */
export const toNames = ({ eventStoreSchema, schema, tables }: {
  readonly schema: Option.Option<string>
  readonly eventStoreSchema: Option.Option<string>
  readonly tables: Option.Option<Readonly<Record<string, string>>>
}): TableNames.Options => ({
  schema: Option.getOrUndefined(schema),
  eventStoreSchema: Option.getOrUndefined(eventStoreSchema),
  tables: Option.getOrUndefined(tables)
})
