import { assert, describe, it } from "@effect/vitest"
import { Effect, Result } from "effect"
import { SqlClient } from "effect/sql"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { fileURLToPath } from "node:url"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as Migration from "../../../src/layers/postgres/migrations/Migration.ts"
import * as MigrationFormat from "../../../src/layers/postgres/migrations/MigrationFormat.ts"
import * as TableNames from "../../../src/schema/TableNames.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"

const folder = fileURLToPath(new URL("../../../migrations/", import.meta.url))
const dbmate = fileURLToPath(new URL("../../../node_modules/.bin/dbmate", import.meta.url))
// A user's own machine may lack these tools; the project's CI installs them.
const hasPsql = ChildProcess.spawnSync("psql", ["--version"]).status === 0

const execute = (command: string, args: ReadonlyArray<string>) =>
  Effect.callback<{ readonly code: number; readonly output: string }>((resume) => {
    const child = ChildProcess.execFile(command, args, (error, stdout, stderr) => {
      const code = error === null ? 0 : typeof error.code === "number" ? error.code : -1
      resume(Effect.succeed({ code, output: `${stdout}${stderr}` }))
    })
    return Effect.sync(() => child.kill())
  })

const succeed = Effect.fnUntraced(function*(command: string, args: ReadonlyArray<string>) {
  const { code, output } = yield* execute(command, args)
  assert.strictEqual(code, 0, output)
  return output
})

const names = (options: TableNames.Options) => Result.getOrThrow(TableNames.make(options))

const temporaryFolder = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "migrations-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
)

const write = Effect.fnUntraced(function*(options: TableNames.Options, format: MigrationFormat.MigrationFormat) {
  const path = yield* temporaryFolder
  for (const file of MigrationFormat.render(Migration.all(names(options)), format)) {
    Fs.writeFileSync(Path.join(path, file.name), file.content)
  }
  return path
})

const there = Effect.fnUntraced(function*(options: TableNames.Options = {}) {
  const { tables } = yield* Migrations.statusWith(options)
  return tables.filter((table) => table.exists).map((table) => table.key)
})

const insertEvent = Effect.fnUntraced(function*(table: string) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`INSERT INTO ${sql(table)}
      (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    VALUES ('a', 'b', 'c', 1, gen_random_uuid(), 'd', '')`
})

describe("the files of the migrations", () => {
  it("in the folder equal what the source renders (scripts/generate.ts writes them)", () => {
    const files = MigrationFormat.render(Migration.all(TableNames.defaults), "golang-migrate")
    assert.deepStrictEqual(
      Fs.readdirSync(folder).filter((name) => name.endsWith(".sql")).sort(),
      files.map((file) => file.name).sort()
    )
    for (const file of files) {
      assert.strictEqual(Fs.readFileSync(Path.join(folder, file.name), "utf8"), file.content, file.name)
    }
  })

  it("contain no password and no transaction of their own, and end in a newline", () => {
    for (const format of MigrationFormat.formats) {
      for (const file of MigrationFormat.render(Migration.all(TableNames.defaults), format)) {
        assert.notMatch(file.content, /^\s*(COMMIT|ROLLBACK)\b/im, file.name)
        assert.match(file.content, /[^\n]\n$/, file.name)
        assert.isTrue(Array.from(file.content).every((character) => character < "\u007f"), file.name)
      }
    }
  })

  it("have the names and markers that the migration tools expect", () => {
    const rendered = (format: MigrationFormat.MigrationFormat) =>
      MigrationFormat.render(Migration.all(TableNames.defaults), format)
    assert.deepStrictEqual(rendered("golang-migrate").map((file) => file.name), [
      "001_create_orchestrator_tables.up.sql",
      "001_create_orchestrator_tables.down.sql",
      "002_create_event_store.up.sql",
      "002_create_event_store.down.sql"
    ])
    assert.deepStrictEqual(rendered("flyway").map((file) => file.name), [
      "V1__create_orchestrator_tables.sql",
      "U1__create_orchestrator_tables.sql",
      "V2__create_event_store.sql",
      "U2__create_event_store.sql"
    ])
    for (const file of rendered("dbmate")) {
      assert.match(file.name, /^\d{14}_\w+\.sql$/)
      assert.match(file.content, /^-- migrate:up\n[^]*\n-- migrate:down\n/)
    }
    // Flyway replaces ${…}.
    for (const file of rendered("flyway")) assert.notInclude(file.content, "${")
    for (const file of rendered("liquibase")) {
      const lines = file.content.trimEnd().split("\n")
      assert.strictEqual(lines[0], "--liquibase formatted sql")
      assert.match(lines[2] ?? "", /^--changeset pupsourcing-orchestrator:00\d-\w+ splitStatements:false /)
      const first = lines.findIndex((line) => line.startsWith("--rollback "))
      assert.isAbove(first, 0)
      // Everything after the first line of the rollback belongs to it.
      assert.isTrue(lines.slice(first).every((line) => line.startsWith("--rollback ")))
    }
  })

  it.live.skipIf(!hasPsql)(
    "run in psql, up twice and down twice, with and without a transaction",
    () =>
      Effect.gen(function*() {
        const { url } = yield* PostgresTest.TestDatabase
        const psql = (file: string, ...more: ReadonlyArray<string>) =>
          execute("psql", ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, ...more, "-f", Path.join(folder, file)])
        const run = Effect.fnUntraced(function*(file: string, ...more: ReadonlyArray<string>) {
          const { code, output } = yield* psql(file, ...more)
          assert.strictEqual(code, 0, output)
        })
        for (const more of [[], ["-1"]]) {
          yield* run("001_create_orchestrator_tables.up.sql", ...more)
          yield* run("002_create_event_store.up.sql", ...more)
          assert.deepStrictEqual(yield* there(), [...TableNames.keys])
        }
        yield* insertEvent("events")
        const refused = yield* psql("002_create_event_store.down.sql")
        assert.strictEqual(refused.code, 3, refused.output)
        assert.include(refused.output, "the table of events is not empty")
        for (const more of [[], ["-1"]]) {
          yield* run("001_create_orchestrator_tables.down.sql", ...more)
          assert.deepStrictEqual(yield* there(), ["events", "aggregateHeads"])
        }
        const sql = yield* SqlClient.SqlClient
        yield* sql`DELETE FROM events`
        for (const more of [[], ["-1"]]) yield* run("002_create_event_store.down.sql", ...more)
        assert.deepStrictEqual(yield* there(), [])
      }).pipe(Effect.provide(PostgresTest.layer))
  )

  it.live.skipIf(!hasPsql)("run in several psql processes at the same time", () =>
    Effect.gen(function*() {
      const { url } = yield* PostgresTest.TestDatabase
      const files = MigrationFormat.render(Migration.all(TableNames.defaults), "golang-migrate")
        .filter((file) => file.name.endsWith(".up.sql"))
      yield* Effect.all(
        Array.from({ length: 4 }, () =>
          succeed("psql", [
            "-X",
            "-q",
            "-1",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            url,
            ...files.flatMap((file) => ["-f", Path.join(folder, file.name)])
          ])),
        { concurrency: "unbounded" }
      )
      assert.deepStrictEqual(yield* there(), [...TableNames.keys])
    }).pipe(Effect.provide(PostgresTest.layer)))

  it.live.skipIf(!hasPsql)("for liquibase have a rollback equal to the down migration", () =>
    Effect.gen(function*() {
      const { url } = yield* PostgresTest.TestDatabase
      for (const file of MigrationFormat.render(Migration.all(names({ schema: "Work" })), "liquibase")) {
        const rollback = file.content.split("\n").filter((line) => line.startsWith("--rollback "))
          .map((line) => line.slice("--rollback ".length)).join("\n")
        const path = yield* temporaryFolder
        Fs.writeFileSync(Path.join(path, "up.sql"), file.content)
        Fs.writeFileSync(Path.join(path, "down.sql"), rollback)
        yield* Migrations.upWith({ schema: "Work" })
        const before = yield* there({ schema: "Work" })
        for (const name of ["down.sql", "up.sql"]) {
          yield* succeed("psql", ["-X", "-q", "-1", "-v", "ON_ERROR_STOP=1", "-d", url, "-f", Path.join(path, name)])
          if (name === "down.sql") assert.notDeepEqual(yield* there({ schema: "Work" }), before)
        }
        assert.deepStrictEqual(yield* there({ schema: "Work" }), before)
      }
    }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))

  it.live("run in dbmate: up, down, up, with other names and a schema too", () =>
    Effect.gen(function*() {
      const { url } = yield* PostgresTest.TestDatabase
      const plain = new URL(url)
      plain.searchParams.set("sslmode", "disable")
      for (const options of [{}, { schema: "Order", tables: { events: "user", workers: "W$do$x" } }]) {
        const path = yield* write(options, "dbmate")
        const run = (command: string) =>
          execute(dbmate, [
            "--url",
            plain.href,
            "--migrations-dir",
            path,
            "--migrations-table",
            `migrations_of_${options.schema ?? "public"}`,
            "--no-dump-schema",
            command
          ])
        const expectCode = Effect.fnUntraced(function*(command: string, expected: number) {
          const { code, output } = yield* run(command)
          assert.strictEqual(code, expected, output)
          return output
        })
        yield* expectCode("up", 0)
        assert.deepStrictEqual(yield* there(options), [...TableNames.keys])
        yield* insertEvent("schema" in options ? "Order.user" : "events")
        assert.include(yield* expectCode("rollback", 2), "the table of events is not empty")
        assert.deepStrictEqual(yield* there(options), [...TableNames.keys])
        const sql = yield* SqlClient.SqlClient
        yield* sql`DELETE FROM ${sql("schema" in options ? "Order.user" : "events")}`
        yield* expectCode("rollback", 0)
        assert.notInclude(yield* there(options), "events")
        yield* expectCode("rollback", 0)
        assert.deepStrictEqual(yield* there(options), [])
        yield* expectCode("up", 0)
        assert.deepStrictEqual(yield* there(options), [...TableNames.keys])
      }
    }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))
})
