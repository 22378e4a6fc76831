/** The command `migrate` without its subcommands, and the flags that the subcommands share. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import { nameFlags, toNames } from "./NameFlags.ts"

export const migrate = Command.make("migrate").pipe(
  Command.withDescription("Create the tables that the library needs, as migration files or in a database"),
  Command.withSharedFlags(nameFlags)
)

/** The names that the flags give. */
export const nameOptions = Effect.map(migrate, toNames)

export const newEventStore = Flag.Boolean("new-event-store").pipe(
  Flag.withDescription("Create the event store even if the search path contains another one with events"),
  Flag.withDefault(false)
)
