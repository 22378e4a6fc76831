/** `migrate up`: creates the missing tables. */
import * as Command from "effect/cli/Command"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Migrations from "../layers/postgres/Migrations.ts"
import { databaseUrl, withDatabase } from "./DatabaseUrl.ts"
import { nameOptions, newEventStore } from "./MigrateFlags.ts"

export const up = Command.make(
  "up",
  { databaseUrl, newEventStore },
  Effect.fnUntraced(function*({ databaseUrl, newEventStore }) {
    const names = yield* nameOptions
    const status = yield* withDatabase(databaseUrl, Migrations.upWith({ ...names, newEventStore }))
    yield* Console.log(`The tables are in place, version ${status.version}.`)
  })
).pipe(Command.withDescription("Create the missing tables; an existing event store is never changed"))
