/** `migrate status`: shows the tables and their differences. */
import * as Command from "effect/cli/Command"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Migrations from "../layers/postgres/Migrations.ts"
import { databaseUrl, withDatabase } from "./DatabaseUrl.ts"
import { nameOptions } from "./MigrateFlags.ts"
import { table } from "./Table.ts"

export const status = Command.make(
  "status",
  { databaseUrl },
  Effect.fnUntraced(function*({ databaseUrl }) {
    const names = yield* nameOptions
    const status = yield* withDatabase(databaseUrl, Migrations.statusWith(names))
    const missing = status.tables.some((table) => !table.exists)
    yield* Console.log(table([
      ["TABLE", "NAME", "STATE"],
      ...status.tables.map(({ exists, isForeign, key, name }) => [
        key,
        name,
        isForeign ? "created by other software" : exists ? "present" : "missing"
      ])
    ]))
    yield* Console.log(
      `\nVersion: ${status.version ?? "none"}; this command creates version ${status.expected}.${
        status.refusal === undefined && (missing || status.version !== status.expected)
          ? " Run \"migrate up\"."
          : ""
      }`
    )
    if (status.differences.length > 0) {
      yield* Console.log("\nThe tables differ from what this library needs:")
      for (const difference of status.differences) {
        yield* Console.log(
          `- ${Migrations.describe(difference)}${
            difference.blocking ? "" : " (only keeps this library from appending)"
          }`
        )
      }
    }
    if (status.refusal !== undefined) return yield* status.refusal
  })
).pipe(Command.withDescription("Show which tables exist, and how they differ from what this library needs"))
