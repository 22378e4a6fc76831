/** `migrate generate`: writes the migrations as files. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as FileSystem from "effect/FileSystem"
import * as Path from "effect/Path"
import * as Schema from "effect/Schema"
import * as Migration from "../layers/postgres/migrations/Migration.ts"
import * as MigrationFormat from "../layers/postgres/migrations/MigrationFormat.ts"
import * as TableNames from "../schema/TableNames.ts"
import { nameOptions, newEventStore } from "./MigrateFlags.ts"

/** The migration files cannot be written. */
export class OutputRefused extends Schema.TaggedError<OutputRefused>("pupsourcing-orchestrator/OutputRefused")(
  "OutputRefused",
  { problem: Schema.String, advice: Schema.String }
) {
  override get message(): string {
    return `${this.problem} ${this.advice}`
  }
}

export const generate = Command.make(
  "generate",
  {
    output: Flag.String("output").pipe(
      Flag.withMetavar("directory"),
      Flag.withDescription("Directory for the files; created if missing")
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

/**
 * Ignores what version control and editors may change: line endings, a byte order mark, and white space at the end. No
 * statement depends on them.
 */
const isSameText = (a: string, b: string): boolean => normalized(a) === normalized(b)

const normalized = (text: string): string => text.replace(/^\uFEFF/, "").replaceAll(/\r\n?/g, "\n").trimEnd()
