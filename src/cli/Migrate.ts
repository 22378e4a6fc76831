/**
 * The command `migrate`: writes the migrations as files, or runs them.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Config from "effect/Config"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Option from "effect/Option"
import * as Path from "effect/Path"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as SqlClient from "effect/sql/SqlClient"
import * as ClientConfig from "../layers/postgres/connection/ClientConfig.ts"
import { serverOf } from "../layers/postgres/connection/Server.ts"
import { refail } from "../layers/postgres/connection/SqlErrors.ts"
import * as Migrations from "../layers/postgres/Migrations.ts"
import * as Migration from "../layers/postgres/migrations/Migration.ts"
import * as MigrationFormat from "../layers/postgres/migrations/MigrationFormat.ts"
import { configErrorText } from "../schema/ConfigErrorText.ts"
import { InvalidSettings } from "../schema/Errors.ts"
import * as TableNames from "../schema/TableNames.ts"

/**
 * The migration files cannot be written.
 *
 * @category errors
 * @since 0.1.0
 */
export class OutputRefused extends Schema.TaggedError<OutputRefused>("pupsourcing-orchestrator/OutputRefused")(
  "OutputRefused",
  { problem: Schema.String, advice: Schema.String }
) {
  override get message(): string {
    return `${this.problem} ${this.advice}`
  }
}

const migrate = Command.make("migrate").pipe(
  Command.withDescription("Make the tables that the library needs, as files or in a database"),
  Command.withSharedFlags({
    schema: Flag.String("schema").pipe(
      Flag.withDescription("Schema of the tables; created when missing"),
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

const databaseUrl = Flag.Redacted("database-url").pipe(
  Flag.withMetavar("url"),
  Flag.withDescription(
    "postgresql://user:password@host:port/database; better in DATABASE_URL, others can see arguments"
  ),
  Flag.optional
)

const nameOptions = Effect.map(migrate, ({ eventStoreSchema, schema, tables }): TableNames.Options => ({
  schema: Option.getOrUndefined(schema),
  eventStoreSchema: Option.getOrUndefined(eventStoreSchema),
  tables: Option.getOrUndefined(tables)
}))

const newEventStore = Flag.Boolean("new-event-store").pipe(
  Flag.withDescription("Create the event store even if the search path leads to another one with events"),
  Flag.withDefault(false)
)

const resolveUrl = Effect.fnUntraced(function*(given: Option.Option<Redacted.Redacted<string>>) {
  const url = Option.isSome(given)
    ? given
    : yield* Config.option(Config.Redacted("DATABASE_URL")).pipe(
      Effect.mapError((error) => new InvalidSettings({ setting: "DATABASE_URL", problem: configErrorText(error) }))
    )
  if (Option.isNone(url)) {
    return yield* new InvalidSettings({
      setting: "DATABASE_URL",
      problem:
        "DATABASE_URL is not set. Set DATABASE_URL=postgresql://user:password@host:5432/database, or pass --database-url."
    })
  }
  const problem = ClientConfig.urlProblem(Redacted.value(url.value))
  if (problem !== undefined) return yield* new InvalidSettings({ setting: "DATABASE_URL", problem })
  return url.value
})

const withDatabase = <A, E, R>(
  given: Option.Option<Redacted.Redacted<string>>,
  self: Effect.Effect<A, E, SqlClient.SqlClient | R>
) =>
  Effect.flatMap(resolveUrl(given), (url) => {
    const config = { url, maxConnections: 1, applicationName: "pupsourcing-orchestrator migrate" }
    return self.pipe(Effect.provide(PgClient.layer(config)), refail(serverOf(config), "connect"))
  })

const table = (rows: ReadonlyArray<ReadonlyArray<string>>): string => {
  const widths = (rows[0] ?? []).map((_, column) => Math.max(...rows.map((row) => (row[column] ?? "").length)))
  return rows.map((row) => row.map((cell, column) => cell.padEnd(widths[column] ?? 0)).join("  ").trimEnd()).join("\n")
}

/**
 * Ignores what version control and editors may change: line endings, a byte order mark, and white space at the end. No
 * statement depends on them.
 */
const isSameText = (a: string, b: string): boolean => normalized(a) === normalized(b)

const normalized = (text: string): string => text.replace(/^\uFEFF/, "").replaceAll(/\r\n?/g, "\n").trimEnd()

const generate = Command.make(
  "generate",
  {
    output: Flag.String("output").pipe(
      Flag.withMetavar("directory"),
      Flag.withDescription("Where the files go; created when missing")
    ),
    format: Flag.Literals("format", MigrationFormat.formats).pipe(
      Flag.withDescription("The tool that will run them"),
      Flag.withDefault("golang-migrate" as const)
    ),
    newEventStore
  },
  Effect.fnUntraced(function*({ format, newEventStore, output }) {
    const names = yield* Effect.fromResult(TableNames.make(yield* nameOptions))
    const fs = yield* FileSystem.FileSystem
    const path = yield* Path.Path
    const files = MigrationFormat.render(Migration.all(names, { newEventStore }), format).map((file) => ({
      path: path.join(output, file.name),
      content: file.content
    }))
    yield* Effect.gen(function*() {
      yield* fs.makeDirectory(output, { recursive: true })
      for (const file of files) {
        if (!(yield* fs.exists(file.path))) continue
        if (isSameText(yield* fs.readFileString(file.path), file.content)) continue
        return yield* new OutputRefused({
          problem: `${file.path} exists and has different content; nothing was written.`,
          advice: "Move it, or choose another directory."
        })
      }
      for (const file of files) {
        // Existing files are not changed: migration tools keep checksums of the files that they have run.
        if (!(yield* fs.exists(file.path))) yield* fs.writeFileString(file.path, file.content)
      }
    }).pipe(
      Effect.catchTag("PlatformError", (error) =>
        Effect.fail(
          new OutputRefused({
            problem: `The migrations cannot be written to ${output}: ${error.message}.`,
            advice: "Choose a directory that can be written to."
          })
        ))
    )
    for (const file of files) yield* Console.log(file.path)
  })
).pipe(Command.withDescription("Write the migrations as files for a migration tool"))

const up = Command.make(
  "up",
  { databaseUrl, newEventStore },
  Effect.fnUntraced(function*({ databaseUrl, newEventStore }) {
    const names = yield* nameOptions
    const status = yield* withDatabase(databaseUrl, Migrations.upWith({ ...names, newEventStore }))
    yield* Console.log(`The tables are in place, version ${status.version}.`)
  })
).pipe(Command.withDescription("Make the tables that are missing; an event store that exists is never changed"))

const down = Command.make(
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

const status = Command.make(
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
      `\nVersion: ${status.version ?? "none"}; this command makes version ${status.expected}.${
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
).pipe(Command.withDescription("Show which tables are there, and whether they fit"))

/**
 * @category commands
 * @since 0.1.0
 */
export const command = migrate.pipe(Command.withSubcommands([generate, up, down, status]))
