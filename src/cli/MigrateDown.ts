/** `migrate down`: drops the tables of the orchestrator, or those of an event store without events. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Migrations from "../layers/postgres/Migrations.ts"
import { databaseUrl, withDatabase } from "./DatabaseUrl.ts"
import { nameOptions } from "./MigrateFlags.ts"

export const down = Command.make(
  "down",
  {
    databaseUrl,
    eventStore: Flag.Boolean("event-store").pipe(
      Flag.withDescription("Drop the event store's tables instead; refused while they hold events"),
      Flag.withDefault(false)
    )
  },
  Effect.fnUntraced(function*({ databaseUrl, eventStore }) {
    const names = yield* nameOptions
    if (eventStore) {
      yield* withDatabase(databaseUrl, Migrations.downEventStoreWith(names))
      yield* Console.log("The event store's tables were dropped.")
    } else {
      yield* withDatabase(databaseUrl, Migrations.downWith(names))
      yield* Console.log("The orchestrator's tables were dropped; the events remain.")
    }
  })
).pipe(Command.withDescription("Drop the orchestrator's tables, and with them all progress; the events remain"))
