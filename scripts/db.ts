/**
 * `npm run db -- start | stop | url | sql "SELECT …"`: the database of the examples, for readers who have no PostgreSQL and no psql at hand.
 * Parsed by hand: `url` is used inside other commands, and a command-line library would double its start-up time.
 */
import type * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import type * as SqlError from "effect/sql/SqlError"
import * as EmbeddedPostgres from "../src/testing/EmbeddedPostgres.ts"

const usage = `Usage: npm run db -- <command>

  start         start the database (it keeps running)
  stop          stop it; its data stays
  url           print its connection URL, starting it if needed
  sql "SELECT…" run one SQL statement and print the result

Option: --name <name>  another database server of this checkout (the tests use "test")
When DATABASE_URL is set, url and sql use it instead.`

/** The words on the command line make no command. */
class UsageError extends Schema.TaggedError<UsageError>()("UsageError", { message: Schema.String }) {}

/** PostgreSQL refused the statement, or could not be reached. */
class QueryFailed extends Schema.TaggedError<QueryFailed>()("QueryFailed", { message: Schema.String }) {}

const print = (text: string) => Effect.sync(() => console.log(text))
const note = (text: string) => Effect.sync(() => console.error(text))

const start = Effect.fnUntraced(function*(options: EmbeddedPostgres.Options) {
  const server = yield* EmbeddedPostgres.ensure(options)
  yield* print(
    `PostgreSQL ${
      server.started ? "started" : "is running already"
    } on 127.0.0.1:${server.port}; its log: ${server.log}`
  )
  if (server.started) {
    yield* print(
      "It keeps running when this command ends. To stop it:  npm run db -- stop\nIts connection URL:  npm run db -- url"
    )
  }
})

const stop = Effect.fnUntraced(function*(options: EmbeddedPostgres.Options) {
  const stopped = yield* EmbeddedPostgres.stop(options)
  yield* print(stopped ? "PostgreSQL stopped. Its data stays for the next start." : "PostgreSQL was not running.")
})

/** Notices go to stderr: what is on stdout is often read by another program. */
const findUrl = Effect.fnUntraced(function*(options: EmbeddedPostgres.Options) {
  const given = process.env["DATABASE_URL"]
  if (given !== undefined && given !== "") return given
  const server = yield* EmbeddedPostgres.ensure(options)
  if (server.started) yield* note("PostgreSQL started and keeps running. To stop it:  npm run db -- stop")
  return server.url
})

const show = (value: unknown): string => {
  if (value === null || value === undefined) return "NULL"
  if (value instanceof Date) return Number.isNaN(value.getTime()) ? "infinity" : value.toISOString()
  if (value instanceof Uint8Array) return `\\x${Buffer.from(value).toString("hex")}`
  if (typeof value === "object") {
    return JSON.stringify(value, (_key, inner) => typeof inner === "bigint" ? String(inner) : inner)
  }
  // A line break would tear the table apart.
  return String(value).replaceAll("\n", "\\n")
}

const isNumber = (value: unknown): boolean => typeof value === "number" || typeof value === "bigint"

/** The result of a statement: one value per column, even if columns have the same name. */
interface Output {
  readonly command: string
  readonly names: ReadonlyArray<string>
  readonly rows: ReadonlyArray<ReadonlyArray<unknown>>
}

const table = (result: Output): string => {
  if (result.names.length === 0) return result.command
  const columns = result.names.map((name, index) => {
    const cells = result.rows.map((row) => show(row[index]))
    const width = [name, ...cells].reduce((widest, cell) => Math.max(widest, cell.length), 0)
    const toRight = result.rows.some((row) => isNumber(row[index]))
    const pad = (text: string) => toRight ? text.padStart(width) : text.padEnd(width)
    return { head: pad(name), rule: "-".repeat(width), cells: cells.map(pad) }
  })
  const line = (cells: ReadonlyArray<string>, between: string) => cells.join(between).trimEnd()
  return [
    line(columns.map((column) => column.head), " | "),
    line(columns.map((column) => column.rule), "-+-"),
    ...result.rows.map((_, row) => line(columns.map((column) => column.cells[row] ?? ""), " | ")),
    `(${result.rows.length} ${result.rows.length === 1 ? "row" : "rows"})`
  ].join("\n")
}

/** The fields of an error message of the server; an error of the connection has none of them. */
interface Detail {
  readonly message?: string
  readonly code?: string
  readonly detail?: string
  readonly hint?: string
}

const explain = (error: SqlError.SqlError, url: string): QueryFailed => {
  const cause = error.reason.cause as Detail | undefined
  if (error.reason._tag === "ConnectionError") {
    // The URL carries a password: only the place is named.
    return new QueryFailed({
      message:
        `No PostgreSQL answers at ${URL.parse(url)?.host ?? "the address in DATABASE_URL"} (${
          cause?.message ?? error.reason.message
        }).\n` +
        "Check DATABASE_URL, or unset it to use the database that comes with this project."
    })
  }
  const lines = [
    `ERROR: ${cause?.message ?? error.reason.message}${cause?.code === undefined ? "" : ` (${cause.code})`}`
  ]
  if (cause?.detail !== undefined) lines.push(`DETAIL: ${cause.detail}`)
  if (cause?.hint !== undefined) lines.push(`HINT: ${cause.hint}`)
  if (cause?.message?.includes("multiple commands") === true) lines.push("HINT: Run one statement at a time.")
  return new QueryFailed({ message: lines.join("\n") })
}

/** VACUUM and similar statements, and procedures that commit. */
const needsNoTransaction = (error: SqlError.SqlError): boolean =>
  ["25001", "2D000"].includes((error.reason.cause as Detail | undefined)?.code ?? "")

/**
 * The driver returns rows with one value per name, or lists of values without names. If two columns have the same name,
 * the statement is rolled back and run again to read its values.
 */
const run = Effect.fnUntraced(function*(connection: PgConnection.PgConnection, statement: string) {
  const attempt = (text: string) => connection.query(text, [], false)
  yield* attempt("BEGIN")
  const result = yield* attempt(statement).pipe(
    Effect.catchIf(needsNoTransaction, () => Effect.andThen(attempt("ROLLBACK"), attempt(statement)))
  )
  const names = result.fields.map(({ name }) => name)
  const isAmbiguous = new Set(names).size < names.length
  yield* attempt(isAmbiguous ? "ROLLBACK" : "COMMIT")
  const output: Output = {
    command: result.command,
    names,
    rows: isAmbiguous
      ? yield* connection.queryValues(statement, [], false)
      : result.rows.map((row) => names.map((name) => row[name]))
  }
  return output
})

const sql = Effect.fnUntraced(function*(options: EmbeddedPostgres.Options, statement: string) {
  const url = yield* findUrl(options)
  // Only here, because loading it takes as long as everything else together.
  const PgConnection = yield* Effect.promise(() => import("@effect/sql-pg/PgConnection"))
  const result = yield* PgConnection.make({ url: Redacted.make(url), applicationName: "npm run db" }).pipe(
    Effect.flatMap((connection) => run(connection, statement)),
    Effect.scoped,
    Effect.mapError((error) => explain(error, url))
  )
  yield* print(table(result))
})

const main = Effect.fnUntraced(function*(args: ReadonlyArray<string>) {
  const at = args.indexOf("--name")
  const name = at < 0 ? undefined : args[at + 1]
  if (at >= 0 && (name === undefined || !/^[a-z0-9-]+$/i.test(name))) {
    return yield* new UsageError({ message: `--name consists of letters, digits and dashes.\n\n${usage}` })
  }
  const [command, ...rest] = at < 0 ? args : args.toSpliced(at, 2)
  if (command === "sql" && rest.length > 0) return yield* sql({ name }, rest.join(" "))
  if (rest.length > 0) return yield* new UsageError({ message: `Unexpected: ${rest.join(" ")}\n\n${usage}` })
  switch (command) {
    case "start":
      return yield* start({ name })
    case "stop":
      return yield* stop({ name })
    case "url":
      return yield* Effect.flatMap(findUrl({ name }), print)
    case "--help":
    case "-h":
      return yield* print(usage)
    default:
      return yield* new UsageError({ message: usage })
  }
})

await Effect.runPromise(
  main(process.argv.slice(2)).pipe(
    Effect.catch((error) =>
      Effect.andThen(
        note(error.message),
        Effect.sync(() => {
          process.exitCode = 1
        })
      )
    )
  )
)
