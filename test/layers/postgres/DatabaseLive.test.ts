/** What is checked when the stores are opened, and the errors that the checks report. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as Net from "node:net"
import { describe } from "vitest"
import * as DatabaseLive from "../../../src/layers/postgres/DatabaseLive.ts"
import * as Migrations from "../../../src/layers/postgres/Migrations.ts"
import * as OrchestratorTables from "../../../src/layers/postgres/migrations/OrchestratorTables.ts"
import * as TimeLimits from "../../../src/testing/TimeLimits.ts"
import { logs } from "../../services/World.ts"
import * as EventStores from "../../support/EventStores.ts"
import * as Tests from "../../support/Tests.ts"

/** Opens the database as an application with this URL does. */
const openWith = (config: PgClient.PgPoolConfig, options: DatabaseLive.Options = {}) =>
  PgClient.make(config).pipe(
    Effect.flatMap((client) => Effect.provideService(DatabaseLive.make(options), PgClient.PgClient, client)),
    Effect.provide(Reactivity.layer),
    Effect.scoped
  )

const open = (url: string, options: DatabaseLive.Options = {}) => openWith({ url: Redacted.make(url) }, options)

const changed = (url: string, change: (url: URL) => void): string => {
  const parsed = new URL(url)
  change(parsed)
  return parsed.href
}

const test = EventStores.test

/** A port where nothing listens. */
const closedPort = Effect.callback<number>((resume) => {
  const server = Net.createServer()
  server.listen(0, "127.0.0.1", () => {
    const address = server.address()
    const port = typeof address === "object" && address !== null ? address.port : 0
    server.close(() => resume(Effect.succeed(port)))
  })
})

/** The result, and the number of pauses before a retry; a timeout that did not expire does not count. */
const pauses = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const clock = yield* Clock.Clock
    let count = 0
    const sleep = (duration: Duration.Duration) =>
      Effect.tap(clock.sleep(duration), () =>
        Effect.sync(() => {
          count++
        }))
    const counting: Clock.Clock = Object.assign(Object.create(clock), { sleep })
    const value = yield* Effect.provideService(self, Clock.Clock, counting)
    return [value, count] as const
  })

/** A clock on which a minute passes when `skip` runs; other times are real. */
const minuteSkipping = Effect.gen(function*() {
  const clock = yield* Clock.Clock
  const minute = yield* Deferred.make<void>()
  let skipped = 0n
  const monotonicTimeNanosUnsafe = () => clock.monotonicTimeNanosUnsafe() + skipped
  const changed: Pick<Clock.Clock, "monotonicTimeNanos" | "monotonicTimeNanosUnsafe" | "sleep"> = {
    monotonicTimeNanosUnsafe,
    monotonicTimeNanos: Effect.sync(monotonicTimeNanosUnsafe),
    sleep: (duration) => Duration.toMillis(duration) === 60_000 ? Deferred.await(minute) : clock.sleep(duration)
  }
  const skip = Effect.suspend(() => {
    skipped = 60_000_000_000n
    return Deferred.succeed(minute, undefined)
  })
  return { clock: Object.assign(Object.create(clock), changed) as Clock.Clock, skip }
})

describe("DatabaseLive", () => {
  test("opens the tables that the migrations created", function*({ url }) {
    const database = yield* open(url)
    assert.deepStrictEqual(database.channels, { events: "pupsourcing_events", control: "pupsourcing_control" })
    assert.strictEqual(database.qualified("events"), `"public"."events"`)
    assert.deepStrictEqual([database.listen, database.presence], [true, true])
  })

  test("gives each schema of a database its own channels, however the schema is found", function*({ sql, url }) {
    const schema = "s".repeat(63)
    const channels = {
      events: `pupsourcing_events_${"s".repeat(44)}`,
      control: `pupsourcing_control_${"s".repeat(43)}`
    }
    const client = PgClient.layer({ url: Redacted.make(url) })
    yield* Effect.provide(Migrations.upWith({ schema }), client)
    const named = yield* open(url, { schema })
    assert.deepStrictEqual(named.channels, channels)
    const found = yield* openWith({ url: Redacted.make(url), startupParameters: { search_path: schema } })
    assert.deepStrictEqual(found.channels, channels)
    // The server accepts channel names of this length.
    yield* sql`SELECT pg_notify(${named.channels.events}, ''), pg_notify(${named.channels.control}, '')`
  })

  Tests.postgres("reports missing tables by name, with the remedy", function*({ url }) {
    const all = yield* Effect.flip(open(url))
    assert(all._tag === "TablesMissing")
    assert.include(all.tables, `"orchestrator_checkpoints"`)
    assert.include(all.message, "migrate up")
    const elsewhere = yield* Effect.flip(open(url, { schema: "elsewhere", tables: { events: "happenings" } }))
    assert(elsewhere._tag === "TablesMissing")
    assert.include(elsewhere.tables, `"elsewhere"."happenings"`)
  })

  test("reports a single missing table alone", function*({ sql, url }) {
    yield* sql`DROP TABLE aggregate_heads`
    const error = yield* Effect.flip(open(url))
    assert(error._tag === "TablesMissing")
    assert.deepStrictEqual(error.tables, [`"aggregate_heads"`])
  })

  test("distinguishes older from newer schema versions", function*({ sql, url }) {
    const expected = OrchestratorTables.schemaVersion
    for (const found of [0, expected - 1, expected + 1]) {
      yield* sql`UPDATE orchestrator_meta SET schema_version = ${found}`
      const error = yield* Effect.flip(open(url))
      assert(error._tag === "SchemaVersionMismatch")
      assert.deepStrictEqual([error.found, error.expected], [found, expected])
      assert.include(error.message, found < expected ? "migrate up" : "newer")
    }
  })

  test(
    "a start that waits for a lock on the version table logs the wait and the session that holds the lock",
    function*({ sql, url }) {
      const { layer, lines } = logs()
      const done = yield* Deferred.make<void>()
      const locked = yield* Deferred.make<number>()
      const holding = Effect.gen(function*() {
        yield* sql`LOCK TABLE orchestrator_meta IN ACCESS EXCLUSIVE MODE`
        const [row] = yield* sql<{ readonly pid: number }>`SELECT pg_backend_pid() AS pid`
        yield* Deferred.succeed(locked, row!.pid)
        yield* Deferred.await(done)
      }).pipe(sql.withTransaction)
      const holder = yield* Effect.forkScoped(holding)
      const pid = yield* Deferred.await(locked)
      const opened = yield* Effect.forkScoped(Effect.provide(open(url), layer))
      const migrated = yield* Effect.forkScoped(
        Migrations.up.pipe(Effect.provideService(SqlClient.SqlClient, sql), Effect.provide(layer))
      )
      const said = (what: string) => lines.filter(({ text }) => text.startsWith(what))
      yield* TimeLimits.waitUntil(
        "both waits are logged",
        Effect.sync(() => [said("Opening the stores waits"), said("\"migrate up\" waits")]),
        (logged) => logged.every((lines) => lines.length > 0)
      )
      for (const line of [...said("Opening"), ...said("\"migrate up\"")]) {
        assert.include(line.text, `"orchestrator_meta", which is held by session ${pid} (`)
      }
      yield* Deferred.succeed(done, undefined)
      yield* Fiber.join(holder)
      yield* Fiber.join(opened)
      yield* Fiber.join(migrated)
      assert.strictEqual(lines.filter(({ text }) => text.includes("waits for")).length, 2)
    }
  )

  test(
    "a start that waits for a lock on the version table fails after a minute",
    function*({ sql, url }) {
      const { layer, lines } = logs()
      const { clock, skip } = yield* minuteSkipping
      const begun = yield* Deferred.make<void>()
      const done = yield* Deferred.make<void>()
      const migration = sql`LOCK TABLE orchestrator_meta IN ACCESS EXCLUSIVE MODE`.pipe(
        Effect.andThen(Deferred.succeed(begun, undefined)),
        Effect.andThen(Deferred.await(done)),
        sql.withTransaction
      )
      const migrating = yield* Effect.forkScoped(migration)
      yield* Deferred.await(begun)
      const starting = yield* Effect.forkScoped(
        Effect.flip(open(url)).pipe(Effect.provide(layer), Effect.provideService(Clock.Clock, clock))
      )
      const waits = Effect.sync(() =>
        lines.filter(({ text }) => text.startsWith("Opening the stores waits for a lock"))
      )
      yield* TimeLimits.waitUntil("the wait is logged", waits, (lines) => lines.length > 0)
      assert.isUndefined(starting.pollUnsafe())
      yield* skip
      const error = yield* TimeLimits.within("30 seconds")(Fiber.join(starting))
      assert(error._tag === "StoreError" && error.reason._tag === "DatabaseUnavailable")
      assert.strictEqual(error.reason.condition, "no answer in time")
      assert.include(error.message, "Check its load, locks and network")
      assert.deepStrictEqual(lines.map(({ level }) => level), ["Warn"])
      const waiting = sql`SELECT FROM pg_locks WHERE NOT granted AND relation = 'orchestrator_meta'::regclass`
      yield* TimeLimits.waitUntil("no session waits for the lock", waiting, (rows) => rows.length === 0)
      yield* Deferred.succeed(done, undefined)
      yield* Fiber.join(migrating)
      yield* open(url)
    }
  )

  test("refuses a server whose hash function gives other answers", function*({ sql, url }) {
    yield* sql`UPDATE orchestrator_meta SET hash_answers = hash_answers || '{"user-1": 1}'::jsonb`
    const error = yield* Effect.flip(open(url))
    assert(error._tag === "StoreError" && error.reason._tag === "UnsupportedDatabase")
    assert.include(error.message, "hashtext")
  })

  test("refuses a replica", function*({ sql, url }) {
    yield* sql`CREATE SCHEMA replica`
    yield* sql`CREATE FUNCTION replica.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'`
    const error = yield* Effect.flip(
      openWith({ url: Redacted.make(url), startupParameters: { search_path: "replica, pg_catalog, public" } })
    )
    assert(error._tag === "StoreError" && error.reason._tag === "ReadOnlyDatabase")
    assert.include(error.message, "primary")
  })

  test(
    "refuses orchestrator tables that belong to another events table, and so do the migrations",
    function*({ sql, url }) {
      const tables = { events: "billing_events", aggregateHeads: "billing_heads" }
      const refusals = yield* Effect.all([
        Effect.flip(open(url, { tables })),
        Effect.flip(Effect.provide(Migrations.upWith({ tables }), PgClient.layer({ url: Redacted.make(url) })))
      ])
      for (const error of refusals) {
        assert.strictEqual(error._tag, "InvalidSettings")
        assert.match(
          error.message,
          /"tables\.events": .* for the events table "events", not for "billing_events"/
        )
      }
      // Tables created before `events_table` existed are accepted; the next migration records the name.
      yield* sql`ALTER TABLE orchestrator_meta DROP COLUMN events_table`
      yield* open(url)
      yield* Effect.provide(Migrations.up, PgClient.layer({ url: Redacted.make(url) }))
      assert.deepStrictEqual(yield* sql`SELECT events_table FROM orchestrator_meta`, [{ events_table: "events" }])
    }
  )

  test("refuses invalid identifiers before it sends a statement", function*({ url }) {
    const error = yield* Effect.flip(open(url, { tables: { events: "events; DROP TABLE events" } }))
    assert(error._tag === "InvalidSettings")
    assert.strictEqual(error.setting, "tables.events")
  })

  test("a wrong password, database or host fails at once, and no message contains the password", function*({ url }) {
    const cases = [
      [
        "wrong password",
        changed(url, (url) => {
          url.username = "nobody_at_all"
          url.password = "sesame-open"
        })
      ],
      [
        "unknown database",
        changed(url, (url) => {
          url.pathname = "/no_such_database"
        })
      ],
      [
        "unknown host",
        changed(url, (url) => {
          url.hostname = "no-such-host.invalid"
        })
      ],
      [
        "TLS failed",
        // The test server has no certificate.
        changed(url, (url) => {
          url.searchParams.set("sslmode", "require")
        })
      ]
    ] as const
    for (const [reason, wrong] of cases) {
      const [error, paused] = yield* pauses(Effect.flip(open(wrong)))
      assert(error._tag === "StoreError" && error.reason._tag === "DatabaseUnavailable")
      assert.strictEqual(error.reason.condition, reason)
      assert.strictEqual(paused, 0, reason)
      const { hostname, password, port } = new URL(wrong)
      assert.include(error.message, `${hostname}:${port || 5432}`)
      assert.notInclude(error.message + JSON.stringify(error), password)
    }
  })

  test("retries a server that refuses connections for a bounded time", { tags: ["long"] }, function*({ url }) {
    const port = yield* closedPort
    const [error, paused] = yield* pauses(Effect.flip(open(changed(url, (url) => {
      url.port = String(port)
    }))))
    assert(error._tag === "StoreError" && error.reason._tag === "DatabaseUnavailable")
    assert.strictEqual(error.reason.condition, "refused")
    assert.include(error.message, `:${port}`)
    assert.isAbove(paused, 3)
  })

  test("waits for a server that comes up later, and so do the migrations", function*({ url }) {
    const target = new URL(url)
    const port = yield* closedPort
    yield* Effect.acquireRelease(
      Effect.callback<Net.Server>((resume) => {
        const server = Net.createServer((client) => {
          const upstream = Net.connect({ host: target.hostname, port: Number(target.port || 5432) })
          client.pipe(upstream).pipe(client)
          for (const socket of [client, upstream]) socket.on("error", () => socket.destroy())
        })
        server.listen(port, "127.0.0.1", () => resume(Effect.succeed(server)))
      }).pipe(Effect.delay("1 seconds")),
      (server) => Effect.sync(() => server.close())
    ).pipe(Effect.forkScoped)
    const late = changed(url, (url) => {
      url.hostname = "127.0.0.1"
      url.port = String(port)
    })
    const migrate = Effect.provide(Migrations.status, PgClient.layer({ url: Redacted.make(late) }))
    const [database, { version }] = yield* Effect.all([open(late), migrate], { concurrency: "unbounded" })
    assert.include(database.server.server, String(port))
    assert.strictEqual(version, OrchestratorTables.schemaVersion)
  })
})
