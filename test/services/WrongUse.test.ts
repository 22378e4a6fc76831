/**
 * Tests that misuse fails with a typed error whose message states what to do. Each test uses the public API on a real
 * server.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as References from "effect/References"
import * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"
import * as Stream from "effect/Stream"
import * as Net from "node:net"
import * as Os from "node:os"
import { inspect } from "node:util"
import { EventStore, Migrations, Orchestrator, PostgresStores, Projection } from "pupsourcing-orchestrator"
import { codeOf, toStoreError } from "../../src/layers/postgres/connection/SqlErrors.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Roles from "../support/Roles.ts"
import * as Seam from "../support/Seam.ts"
import { reasonOf } from "../support/StoreErrors.ts"
import * as Tests from "../support/Tests.ts"
import { event } from "./World.ts"

const nothing = (name: string, options: Projection.CommonOptions = {}) =>
  Projection.make(name, { handle: () => Effect.void, ...options })

type Settings = Omit<Orchestrator.Options<[]>, "projections">

/** A worker on the client in the context; it ends with its own scope. */
const worker = <E, R>(
  projection: Projection.Projection<E, R>,
  settings: Partial<Settings> = {},
  stores: PostgresStores.Options = {}
) =>
  Orchestrator.layer({ replicaSet: projection.name, projections: [projection], ...settings }).pipe(
    Layer.provide(PostgresStores.layerWith(stores))
  )

const quietly = <A, E, R, ROut, E2, R2>(self: Effect.Effect<A, E, R>, live: Layer.Layer<ROut, E2, R2>) =>
  Effect.provideService(Effect.provide(self, live), References.MinimumLogLevel, "None")

/** Runs the worker and returns the error with which it fails, in bounded time. */
const refusal = <E extends { readonly _tag: string; readonly message: string }, R>(
  live: Layer.Layer<Orchestrator.Orchestrator, E, R>
) =>
  Effect.flip(Effect.provide(Orchestrator.run, live)).pipe(
    TimeLimits.within("60 seconds"),
    Effect.provideService(References.MinimumLogLevel, "None")
  )

const told = (error: { readonly message: string }, ...parts: ReadonlyArray<string | RegExp>) => {
  for (const part of parts) {
    if (typeof part === "string") assert.include(error.message, part)
    else assert.match(error.message, part)
  }
}

/** Runs the worker beside `self`, which starts when the worker has reached its assignment. */
const beside = <A, E, R, E2, R2>(live: Layer.Layer<Orchestrator.Orchestrator, E2, R2>, self: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const orchestrator = yield* Orchestrator.Orchestrator
    const works = yield* Deferred.make<void>()
    yield* orchestrator.activity.pipe(
      Stream.runForEach((entry) =>
        entry._tag === "AssignmentReached" ? Deferred.succeed(works, undefined) : Effect.void
      ),
      Effect.forkChild({ startImmediately: true })
    )
    const fiber = yield* Effect.forkChild(orchestrator.run)
    yield* Effect.raceFirst(Deferred.await(works), Fiber.join(fiber))
    const result = yield* self
    yield* Fiber.interrupt(fiber)
    return result
  }).pipe(Effect.provide(live), Effect.provideService(References.MinimumLogLevel, "None"))

const migrated = Layer.effectDiscard(Migrations.up).pipe(Layer.provideMerge(PostgresTest.layer))

const serverUrl = (change: (url: URL) => void): Redacted.Redacted<string> => {
  const url = new URL(PostgresTest.serverUrl())
  change(url)
  return Redacted.make(url.href)
}

const hostAndPort = () => {
  const url = new URL(PostgresTest.serverUrl())
  return `${url.hostname}:${url.port}`
}

/** A server that accepts connections and never responds. */
const silentServer = Effect.acquireRelease(
  Effect.callback<{ readonly port: number; readonly close: () => void }>((resume) => {
    const sockets = new Set<Net.Socket>()
    const server = Net.createServer((socket) => {
      sockets.add(socket)
      socket.on("error", () => {})
    })
    server.listen(0, "127.0.0.1", () => {
      const address = server.address()
      resume(Effect.succeed({
        port: typeof address === "object" && address !== null ? address.port : 0,
        close: () => {
          for (const socket of sockets) socket.destroy()
          server.close()
        }
      }))
    })
  }),
  ({ close }) => Effect.sync(close)
)
const closedPort = Effect.scoped(Effect.map(silentServer, ({ port }) => port))

it.live(
  "an unusable server is reported in bounded time, with its address and the reason",
  () =>
    Effect.gen(function*() {
      const secret = "hunter2-very-secret"
      const closed = yield* closedPort
      const silent = yield* silentServer
      const refused = (url: Redacted.Redacted<string>, condition: string, ...parts: ReadonlyArray<string | RegExp>) =>
        Effect.gen(function*() {
          const error = yield* refusal(
            worker(nothing("unreachable")).pipe(
              Layer.provide(PgClient.layer({ url, connectTimeout: TimeLimits.scaled("1 second") }))
            )
          )
          assert(error._tag === "StoreError" && error.reason._tag === "DatabaseUnavailable", inspect(error))
          assert.strictEqual(error.reason.condition, condition)
          told(error, ...parts)
          for (const text of [error.message, String(error), JSON.stringify(error), inspect(error, { depth: 20 })]) {
            assert.notInclude(text, secret)
          }
          assert.notInclude(Cause.pretty(Cause.fail(error)), secret)
        })
      const { port } = new URL(PostgresTest.serverUrl())
      yield* Effect.all([
        refused(
          serverUrl((url) => {
            url.hostname = "127.0.0.1"
            url.port = String(closed)
            url.password = secret
          }),
          "refused",
          `127.0.0.1:${closed}`,
          "Check that PostgreSQL runs there"
        ),
        refused(
          serverUrl((url) => {
            url.hostname = "127.0.0.1"
            url.port = String(silent.port)
            url.password = secret
          }),
          "unreachable",
          `127.0.0.1:${silent.port}`
        ),
        refused(
          serverUrl((url) => {
            url.hostname = "no-such-host.invalid"
            url.password = secret
          }),
          "unknown host",
          `no-such-host.invalid:${port}`,
          "Check the host name"
        ),
        refused(
          serverUrl((url) => {
            url.password = secret
          }),
          "wrong password",
          hostAndPort(),
          `"${new URL(PostgresTest.serverUrl()).username}"`,
          "Check user and password"
        ),
        refused(
          serverUrl((url) => {
            url.pathname = "/no_such_database"
          }),
          "unknown database",
          hostAndPort(),
          "\"no_such_database\"",
          "Create it"
        )
      ], { concurrency: "unbounded", discard: true })
    }),
  { tags: ["long"] }
)

it.live("reports missing tables and tables of an older or newer schema version", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const missing = yield* refusal(worker(nothing("tables")))
    assert.strictEqual(missing._tag, "TablesMissing")
    told(missing, "\"events\"", "\"orchestrator_checkpoints\"", "npx pupsourcing-orchestrator migrate up")
    yield* Migrations.up
    const elsewhere = yield* refusal(worker(nothing("tables"), {}, { schema: "elsewhere" }))
    assert.strictEqual(elsewhere._tag, "TablesMissing")
    told(elsewhere, "\"elsewhere\".\"events\"", "PostgresStores.layerWith")
    yield* sql`UPDATE orchestrator_meta SET schema_version = 0`
    const old = yield* refusal(worker(nothing("tables")))
    assert.strictEqual(old._tag, "SchemaVersionMismatch")
    told(old, "version 0", "requires version 3", "migrate up")
    yield* sql`UPDATE orchestrator_meta SET schema_version = 99`
    const newer = yield* refusal(worker(nothing("tables")))
    assert.strictEqual(newer._tag, "SchemaVersionMismatch")
    told(newer, "version 99", "up to version 3", /Install the version/)
  }).pipe(Effect.provide(PostgresTest.layer)))

it.live("reports a position sequence with CACHE greater than 1", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    yield* sql`ALTER SEQUENCE events_global_position_seq CACHE 20`
    const error = yield* refusal(worker(nothing("cached")))
    assert.strictEqual(reasonOf(error)._tag, "UnsupportedDatabase")
    told(error, "events_global_position_seq", "CACHE 20", "ALTER SEQUENCE")
  }).pipe(Effect.provide(migrated)))

it.live("reports a read-only database", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const { name, url } = yield* PostgresTest.TestDatabase
    yield* sql`ALTER DATABASE ${sql(name)} SET default_transaction_read_only = on`
    const error = yield* refusal(
      worker(nothing("read_only")).pipe(Layer.provide(PgClient.layer({ url: Redacted.make(url) })))
    )
    assert.strictEqual(reasonOf(error)._tag, "ReadOnlyDatabase")
    told(error, hostAndPort(), "Connect to the primary")
  }).pipe(Effect.provide(migrated)))

it("a write refused by a replica is distinguished from other refusals", () => {
  const server = { server: "db:5432", database: "app", user: "app" }
  const cause = Object.assign(new Error("cannot execute INSERT in a read-only transaction"), { code: "25006" })
  const error = toStoreError(server, "register a worker")(
    new SqlError.SqlError({ reason: new SqlError.UnknownError({ cause, operation: "execute" }) })
  )
  assert.strictEqual(reasonOf(error)._tag, "ReadOnlyDatabase")
  told(error, "db:5432", "Connect to the primary")
})

it.live("reports a checkpoint beyond the last event", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    yield* Effect.gen(function*() {
      const events = yield* EventStore.EventStore
      yield* events.append([event("a"), event("a"), event("a")])
    }).pipe(Effect.provide(PostgresStores.layer))
    yield* quietly(Orchestrator.catchUp, worker(nothing("ahead")))
    yield* sql`TRUNCATE events, aggregate_heads`
    yield* sql`ALTER SEQUENCE events_global_position_seq RESTART`
    const error = yield* refusal(worker(nothing("ahead")))
    assert.strictEqual(error._tag, "CheckpointAheadOfEvents")
    told(error, "position 3", "Restore the events")
  }).pipe(Effect.provide(migrated)))

it.layer(migrated, { excludeTestServices: true })(
  "on a migrated database",
  (it) => {
    const test = Tests.on(it.effect, Effect.all({ sql: SqlClient.SqlClient, url: Tests.url }))

    test("reports invalid table and schema names", function*() {
      const error = yield* refusal(worker(nothing("names"), {}, { tables: { events: "events; DROP TABLE events" } }))
      assert.strictEqual(error._tag, "InvalidSettings")
      told(error, "tables.events", "not a plain identifier", "letters, digits")
      const schema = yield* refusal(worker(nothing("names"), {}, { schema: "my schema" }))
      told(schema, "\"schema\"", "not a plain identifier")
      const same = yield* refusal(worker(nothing("names"), {}, { tables: { events: "orchestrator_workers" } }))
      told(same, "a name of its own")
    })

    test("reports a worker id that is in use", function*() {
      const begun = yield* Clock.currentTimeMillis
      const live = () =>
        worker(nothing("id_in_use"), {
          workerId: "pod-0",
          heartbeatInterval: "100 millis",
          registrationWindow: "10 millis"
        })
      const error = yield* beside(live(), refusal(live()))
      assert.strictEqual(error._tag, "WorkerIdInUse")
      if (error._tag !== "WorkerIdInUse") return
      told(error, "\"pod-0\"", `process ${process.pid}`, Os.hostname(), "choose another workerId")
      assert.isBelow(Math.abs(error.since.getTime() - begun), TimeLimits.scaledMillis(60_000))
      assert.strictEqual(error.host, Os.hostname())
    })

    test("reports a projection that another replica set runs", function*() {
      const error = yield* beside(
        worker(nothing("elsewhere"), { replicaSet: "owners", workerId: "owner" }),
        refusal(worker(nothing("elsewhere"), { replicaSet: "others" }))
      )
      assert.strictEqual(error._tag, "ProjectionInOtherReplicaSet")
      told(error, "\"elsewhere\"", "\"owners\"", "\"owner\"", "another name")
    })

    test("reports a changed filter unless it replaces the recorded one", function*() {
      const live = (options: Projection.CommonOptions) =>
        worker(nothing("filtered", options), { pollInterval: "50 millis" })
      yield* quietly(Orchestrator.catchUp, live({ aggregateTypes: ["User"] }))
      const error = yield* refusal(live({ aggregateTypes: ["User", "Group"] }))
      assert.strictEqual(error._tag, "FilterChanged")
      told(
        error,
        "\"filtered\"",
        "\"aggregateTypes: Group, User\"",
        "new name",
        "replacesFilter: { aggregateTypes: [\"User\"] }"
      )
      yield* quietly(
        Orchestrator.catchUp,
        live({ aggregateTypes: ["User", "Group"], replacesFilter: { aggregateTypes: ["User"] } })
      )
      yield* quietly(Orchestrator.catchUp, live({ aggregateTypes: ["Group", "User"] }))
    })

    const writing = (name: string) =>
      Projection.make(name, {
        handle: Effect.fnUntraced(function*(event) {
          const sql = yield* SqlClient.SqlClient
          yield* sql`INSERT INTO read_model (projection, id) VALUES (${name}, ${event.aggregateId})`
        })
      })

    const readModel = Effect.flatMap(
      SqlClient.SqlClient,
      (sql) => sql`CREATE TABLE IF NOT EXISTS read_model (projection text, id text, PRIMARY KEY (projection, id))`
    )

    test("reports a handler that would use a different client than the stores", function*({ url }) {
      const client = () => PgClient.layer({ url: Redacted.make(url) })
      const error = yield* refusal(
        Orchestrator.layer({ replicaSet: "foreign", projections: [writing("foreign")] }).pipe(
          Layer.provide(PostgresStores.layer.pipe(Layer.provide(client()))),
          Layer.provide(client())
        )
      )
      assert.strictEqual(error._tag, "ForeignSqlClient")
      told(error, "\"foreign\"", "Provide one PgClient layer, once")
    })

    test("handlers keep the client of their layer when run has another one in its context", function*({ sql }) {
      yield* readModel
      yield* Effect.gen(function*() {
        const events = yield* EventStore.EventStore
        yield* events.append([event("some")])
        yield* events.append([event("some other")])
        const orchestrator = yield* Orchestrator.make({
          replicaSet: "captured",
          projections: [writing("captured")],
          pollInterval: "50 millis"
        })
        // Another database, without a read model.
        const database = Effect.flatMap(SqlClient.SqlClient, (client) => client`SELECT current_database()`)
        const other = PostgresTest.layerWith({})
        yield* quietly(
          Effect.gen(function*() {
            assert.notDeepEqual(yield* database, yield* sql`SELECT current_database()`)
            yield* orchestrator.catchUp
          }),
          other
        )
      }).pipe(Effect.provide(PostgresStores.layer))
      const rows = yield* sql<
        { id: string }
      >`SELECT id FROM read_model WHERE projection = 'captured' AND id LIKE 'some%' ORDER BY id`
      assert.deepStrictEqual(rows.map(({ id }) => id), ["some", "some other"])
    })

    test("every statement of a process that appends and reads is permitted by appender.sql", function*({ sql }) {
      const { config, name } = yield* Roles.make
      yield* Roles.grant("appender", name)
      const sessions = new Set<string>()
      const failures: Array<string> = []
      const hooks: Seam.Hooks = {
        around: ({ session, text }, send) => {
          sessions.add(session)
          return Effect.tapError(send, (error) =>
            Effect.sync(() => {
              if (codeOf(error) === "42501") failures.push(`${session}: ${text}`)
            }))
        }
      }
      const listener = Effect.map(
        sql<{ readonly pid: number }>`
            SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND usename = ${name}
              AND application_name = 'pupsourcing-orchestrator listener'`,
        ([row]) => row?.pid
      )
      yield* Effect.gen(function*() {
        const events = yield* EventStore.EventStore
        const appended = event("appended only")
        let expected = 0n
        for (let turn = 0; turn < 4; turn++) {
          const { positions } = yield* events.append([appended])
          expected = positions[0]!
          const settled = yield* events.settledBeyond(expected - 1n, Duration.millis(20))
          assert.isTrue((yield* events.settledPosition) >= settled && (yield* events.headPosition) >= expected)
          yield* events.openWriters
          assert.strictEqual((yield* events.readStream(appended)).length, turn + 1)
          const page = yield* events.read({ after: expected - 1n, upTo: settled })
          assert.isAbove(page.events.length, 0)
          // The listening session is terminated and must be reopened.
          const pid = yield* TimeLimits.waitUntil("the process listens", listener, (pid) => pid !== undefined)
          yield* sql`SELECT pg_terminate_backend(${pid}, 5000)`
          yield* TimeLimits.waitUntil("it listens again", listener, (now) => now !== undefined && now !== pid)
        }
      }).pipe(
        Effect.provide(Seam.stores(hooks).pipe(Layer.provide(Seam.client(config, hooks)))),
        Effect.provideService(References.MinimumLogLevel, "None")
      )
      assert.deepStrictEqual(failures, [])
      // There is no coordination session: the process runs no worker.
      assert.deepStrictEqual([...sessions].sort(), [
        "pool",
        "pupsourcing-orchestrator listener",
        "pupsourcing-orchestrator reader"
      ])
    })
  }
)
