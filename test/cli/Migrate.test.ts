/** @module-tag long */
import * as NodeServices from "@effect/platform-node/NodeServices"
import { assert, describe, it } from "@effect/vitest"
import { ConfigProvider, Effect, Layer } from "effect"
import { Command } from "effect/cli"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import * as Migrate from "../../src/cli/Migrate.ts"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as Commands from "../support/Commands.ts"
import * as Tests from "../support/Tests.ts"

const test = Tests.postgres

const migrate = (...args: ReadonlyArray<string>) =>
  Effect.flatMap(PostgresTest.TestDatabase, ({ url }) => Commands.run(["migrate", ...args], url))

const succeeds = Effect.fnUntraced(function*(...args: ReadonlyArray<string>) {
  const run = yield* migrate(...args)
  assert.strictEqual(run.code, 0, run.out + run.err)
  return run.out
})

/** Asserts that the run failed with a one-line message and no stack trace. */
const refuses = (run: Commands.Run, message: RegExp) => {
  assert.strictEqual(run.code, 1, run.out + run.err)
  assert.match(run.err, message)
  assert.strictEqual(run.err.trimEnd().split("\n").length, 1, run.err)
  assert.notMatch(run.out + run.err, /^\s+at /m)
}

const temporaryFolder = Effect.acquireRelease(
  Effect.sync(() => Fs.mkdtempSync(Path.join(Os.tmpdir(), "cli-"))),
  (path) => Effect.sync(() => Fs.rmSync(path, { recursive: true, force: true }))
)

const unusedPort = Effect.callback<number>((resume) => {
  const server = Net.createServer().listen(0, "127.0.0.1", () => {
    const address = server.address()
    server.close(() => resume(Effect.succeed(address !== null && typeof address === "object" ? address.port : 1)))
  })
})

/** A source of configuration that cannot be read. */
const sealed = ConfigProvider.make(() =>
  Effect.fail(new ConfigProvider.SourceError({ message: "The vault is sealed." }))
)

describe("migrate", () => {
  test("runs up, status, down and down --event-store", function*({ sql }) {
    assert.match(yield* succeeds("status"), /^events +"events" +missing$[^]*Version: none; .* Run "migrate up"\.$/m)
    assert.include(yield* succeeds("up"), "The tables are in place, version 3.")
    const status = yield* succeeds("status")
    assert.match(status, /^workers +"orchestrator_workers" +present$/m)
    assert.match(status, /^Version: 3; this command creates version 3\.$/m)
    yield* sql`INSERT INTO events
          (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES ('a', 'b', 'c', 1, gen_random_uuid(), 'd', '')`
    assert.include(yield* succeeds("down"), "the events remain")
    refuses(yield* migrate("down", "--event-store"), /Table "events" holds events/)
    assert.deepStrictEqual(
      (yield* Migrations.status).tables.filter((table) => table.exists).map((table) => table.key),
      ["events", "aggregateHeads"]
    )
    yield* sql`DELETE FROM events`
    yield* succeeds("down", "--event-store")
    assert.isTrue((yield* Migrations.status).tables.every((table) => !table.exists))
  })

  test("accepts a schema and table names before or after the subcommand", function*() {
    const names = ["--schema", "Order", "--table", "events=user", "--table", "aggregateHeads=heads"]
    yield* succeeds(...names, "up")
    const status = yield* succeeds("status", ...names)
    assert.match(status, /^events +"Order"."user" +present$/m)
    assert.match(status, /^aggregateHeads +"Order"."heads" +present$/m)
    assert.match(yield* succeeds("status"), /^events +"events" +missing$/m)
    refuses(yield* migrate("up", "--table", "foo=bar"), /^Setting "tables\.foo": There is no such table/)
    refuses(yield* migrate("up", "--schema", "a\"b"), /^Setting "schema": .* not a plain identifier/)
  })

  test("shows how an existing event store differs, and refuses it", function*({ sql }) {
    yield* sql`CREATE TABLE events (global_position bigserial PRIMARY KEY, payload jsonb)`
    const expected = "\"events\": payload is jsonb instead of bytea NOT NULL"
    const status = yield* migrate("status")
    refuses(status, /^The tables differ from what this library needs: /)
    assert.include(status.out, `- ${expected}\n`)
    const run = yield* migrate("up")
    refuses(run, /^The tables differ from what this library needs: /)
    assert.include(run.err, expected)
  })

  test("refuses tables of a newer version", function*({ sql }) {
    yield* succeeds("up")
    yield* sql`UPDATE orchestrator_meta SET schema_version = 7`
    refuses(yield* migrate("up"), /^Schema version 7 found; this library supports up to version 3\./)
    refuses(yield* migrate("down"), /^Schema version 7 found/)
    const status = yield* migrate("status")
    refuses(status, /^Schema version 7 found; .* Install the version/)
    assert.match(status.out, /^Version: 7; this command creates version/m)
  })

  test(
    "status reports the Go orchestrator's tables and an event store elsewhere, with the exit code of up",
    function*({ sql }) {
      yield* sql`CREATE TABLE orchestrator_workers (id uuid PRIMARY KEY)`
      const foreign = yield* migrate("status")
      refuses(foreign, /^These tables exist, but this library did not create them: "orchestrator_workers"\./)
      assert.match(foreign.out, /^workers +"orchestrator_workers" +created by other software$/m)
      assert.notInclude(foreign.out, "Run \"migrate up\"")
      refuses(yield* migrate("up"), /--table workers=pupsourcing_workers/)
      yield* succeeds("up", "--table", "workers=pupsourcing_workers")
      yield* sql`INSERT INTO events
          (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES ('a', 'b', 'c', 1, gen_random_uuid(), 'd', '')`
      refuses(
        yield* migrate("status", "--schema", "pup"),
        /^"pup"\."events" does not exist, while public\.events holds/
      )
      refuses(yield* migrate("up", "--schema", "pup"), /--event-store-schema public/)
      yield* succeeds("up", "--schema", "pup", "--event-store-schema", "public")
      const split = yield* succeeds("status", "--schema", "pup", "--event-store-schema", "public")
      assert.match(split, /^workers +"pup"\."orchestrator_workers" +present$/m)
      assert.match(split, /^events +"public"\."events" +present$/m)
      yield* succeeds("up", "--schema", "other", "--new-event-store")
      assert.match(yield* succeeds("status", "--schema", "other"), /^events +"other"\."events" +present$/m)
    }
  )

  test("distinguishes connection failures and never prints the password", { tags: ["long"] }, function*({ url }) {
    const changed = (change: (url: URL) => void) => {
      const other = new URL(url)
      other.password = "s3kret"
      change(other)
      return other.href
    }
    const port = yield* unusedPort
    const refusals: ReadonlyArray<readonly [url: string, message: RegExp]> = [
      [
        changed((other) => {
          other.hostname = "127.0.0.1"
          other.port = String(port)
        }),
        new RegExp(`^The database server at 127\\.0\\.0\\.1:${port} refuses connections\\.`)
      ],
      [
        changed((other) => {
          other.hostname = "nowhere.invalid"
        }),
        /^The host of the database server nowhere\.invalid:\d+ is not known\./
      ],
      [
        changed((other) => {
          other.username = "no_such_role"
        }),
        /^The database server at .* does not accept user /
      ],
      [url.replace(/[^/]*$/, "no_such_database"), /^The database server at .* has no database "no_such_database"\./],
      ["http://user:s3kret@host/db", /^Setting "DATABASE_URL": This is not a PostgreSQL URL\./],
      ["s3kret", /^Setting "DATABASE_URL": This is not a PostgreSQL URL\./]
    ]
    const runs = yield* Effect.forEach(
      refusals,
      ([url, message]) => Effect.map(Commands.run(["migrate", "up"], url), (run) => ({ message, run })),
      { concurrency: 2 }
    )
    for (const { message, run } of runs) {
      refuses(run, message)
      assert.notInclude(run.out + run.err, "s3kret")
      assert.notInclude(run.out + run.err, new URL(url).password)
    }
    refuses(
      yield* Commands.run(["migrate", "up"]),
      /^Setting "DATABASE_URL": DATABASE_URL is not set\. Set DATABASE_URL=/
    )
    const byFlag = yield* Commands.run(
      ["migrate", "status", "--database-url", url],
      "postgresql://s3kret@nowhere.invalid/x"
    )
    assert.strictEqual(byFlag.code, 0, byFlag.err)
  })

  it.live("reports a source of configuration that fails, instead of a missing variable", () =>
    Effect.gen(function*() {
      const error = yield* Effect.flip(Command.runWith(Migrate.command, { version: "0.0.0" })(["status"]))
      assert.strictEqual((error as Error).message, "Setting \"DATABASE_URL\": The vault is sealed.")
    }).pipe(Effect.provide(Layer.merge(NodeServices.layer, ConfigProvider.layer(sealed)))))

  it.live("generates files without overwriting different ones", () =>
    Effect.gen(function*() {
      const folder = Path.join(yield* temporaryFolder, "a", "b")
      const generate = (...args: ReadonlyArray<string>) =>
        Commands.run(["migrate", "generate", "--output", folder, ...args])
      const first = yield* generate()
      assert.strictEqual(first.code, 0, first.err)
      const files = Fs.readdirSync(folder).sort()
      assert.deepStrictEqual(files, [
        "001_create_orchestrator_tables.down.sql",
        "001_create_orchestrator_tables.up.sql",
        "002_create_event_store.down.sql",
        "002_create_event_store.up.sql"
      ])
      assert.deepStrictEqual(first.out.trim().split("\n").sort(), files.map((file) => Path.join(folder, file)))
      assert.strictEqual((yield* generate()).code, 0)
      // Line endings, a BOM or a final newline changed by a checkout or an editor do not count as a difference.
      const up = Path.join(folder, "001_create_orchestrator_tables.up.sql")
      const content = Fs.readFileSync(up, "utf8")
      for (
        const same of [content.replaceAll("\n", "\r\n"), `\uFEFF${content}`, content.trimEnd(), `${content}\n`]
      ) {
        Fs.writeFileSync(up, same)
        const again = yield* generate()
        assert.strictEqual(again.code, 0, again.err)
        assert.strictEqual(Fs.readFileSync(up, "utf8"), same)
      }
      for (const other of [content.replace("\n", " \n"), content.toUpperCase(), ""]) {
        Fs.writeFileSync(up, other)
        refuses(yield* generate(), /001_create_orchestrator_tables\.up\.sql exists and has different content/)
        assert.strictEqual(Fs.readFileSync(up, "utf8"), other)
      }
      Fs.writeFileSync(up, content)
      refuses(yield* generate("--schema", "other"), /exists and has different content; nothing was written\./)
      const again = yield* generate("--schema", "other", "--format", "flyway")
      assert.strictEqual(again.code, 0, again.err)
      assert.include(
        Fs.readFileSync(Path.join(folder, "V2__create_event_store.sql"), "utf8"),
        "CREATE TABLE \"other\".\"events\""
      )
      Fs.writeFileSync(Path.join(folder, "file"), "")
      refuses(
        yield* Commands.run(["migrate", "generate", "--output", Path.join(folder, "file")]),
        /^The migrations cannot be written to .* Choose a directory/
      )
    }).pipe(Effect.scoped))

  test("shows help and refuses unknown subcommands and formats", function*() {
    const help = yield* Commands.run(["migrate", "--help"])
    assert.strictEqual(help.code, 0)
    for (const name of ["generate", "up", "down", "status", "--schema", "--table"]) assert.include(help.out, name)
    const unknown = yield* Commands.run(["migrate", "sideways"])
    assert.strictEqual(unknown.code, 1)
    assert.match(unknown.out + unknown.err, /Unknown subcommand "sideways"/)
    const format = yield* Commands.run(["migrate", "generate", "--output", "x", "--format", "rails"])
    assert.strictEqual(format.code, 1)
    assert.match(format.out + format.err, /golang-migrate/)
  })
})
