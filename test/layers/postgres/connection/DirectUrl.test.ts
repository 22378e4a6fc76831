/** Where the library's own sessions connect, and which `directUrl`s are refused. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlError from "effect/sql/SqlError"
import * as DirectUrl from "../../../../src/layers/postgres/connection/DirectUrl.ts"
import * as CoordinationSession from "../../../../src/layers/postgres/coordination/CoordinationSession.ts"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import * as DatabaseLive from "../../../../src/layers/postgres/DatabaseLive.ts"
import * as SequenceCheck from "../../../../src/layers/postgres/events/SequenceCheck.ts"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import * as PostgresTest from "../../../../src/testing/PostgresTest.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as Roles from "../../../support/Roles.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"

const url = Effect.map(PostgresTest.TestDatabase, ({ url }) => new URL(url))

const refusal = (directUrl: string) =>
  Effect.scoped(Effect.flip(Layer.build(PostgresStores.layerWith({ directUrl: Redacted.make(directUrl) }))))

const { test } = EventStores

describe("the configuration of the library's own sessions", () => {
  it("is the client's without directUrl", () => {
    const config = { url: Redacted.make("postgresql://u:p@pooler/app"), prepare: false }
    assert.strictEqual(DirectUrl.sessionConfig(config, undefined), config)
  })

  it("takes the server from directUrl, and only a missing password from the client", () => {
    const password = Effect.succeed(Redacted.make("renewed"))
    const client = { host: "pooler", port: 6432, username: "u", database: "d", password, prepare: false, ssl: true }
    const without = DirectUrl.sessionConfig(client, Redacted.make("postgresql://direct@server/app"))
    assert.deepInclude(without, { host: undefined, port: undefined, username: undefined, database: undefined })
    assert.deepInclude(without, { password, ssl: true, prepare: undefined })
    const own = DirectUrl.sessionConfig(client, Redacted.make("postgresql://direct:secret@server/app"))
    assert.isUndefined(own.password)
  })
})

describe("directUrl", () => {
  test("from the environment is where the library's own sessions connect", function*({ sql }) {
    const direct = yield* Roles.make
    yield* sql`GRANT SELECT ON ALL TABLES IN SCHEMA public TO ${sql(direct.name)}`
    yield* sql`GRANT SELECT, USAGE ON ALL SEQUENCES IN SCHEMA public TO ${sql(direct.name)}`
    yield* Effect.gen(function*() {
      yield* (yield* EventStore).settledPosition
      assert.deepStrictEqual(
        yield* sql`SELECT usename AS role FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'pupsourcing-orchestrator reader'`.values,
        [[direct.name]]
      )
    }).pipe(
      Effect.provide(
        PostgresStores.layerFromEnv.pipe(
          Layer.provide(
            ConfigProvider.layer(ConfigProvider.fromEnv({ env: { ORCHESTRATOR_DIRECT_URL: direct.url.href } }))
          )
        )
      )
    )
  })

  it.live("to another database is refused", () =>
    Effect.gen(function*() {
      const elsewhere = yield* url
      elsewhere.pathname = "/postgres"
      const failure = yield* refusal(elsewhere.href)
      assert.strictEqual(failure._tag, "InvalidSettings")
      assert.match(
        failure.message,
        /^Setting "directUrl": It leads to another database than the client's URL \(database ".*" at .*\)\. Give the URL of the same database on the same server, without the pooler\.$/
      )
    }).pipe(Effect.provide(EventStores.database())))

  test("of a user whose sessions the client's user cannot identify is refused", function*() {
    const role = yield* Roles.make
    const failure = yield* refusal((yield* url).href).pipe(
      Effect.provide(Layer.fresh(PgClient.layer({ url: Redacted.make(role.url.href) })))
    )
    assert.strictEqual(failure._tag, "InvalidSettings")
    assert.include(
      failure.message,
      `The user "${role.name}" of the client cannot identify the sessions of the user`
    )
    assert.notInclude(failure.message, role.url.password)
  })

  it.live.each([
    ["postgresql://user:se#cret@host/app", "The URL contains a #"],
    ["postgresql://user:secret@host/app?sslmode=maybe", "Unrecognized sslmode"]
  ])(
    "that is not valid is refused by its name, without its password (%#)",
    ([directUrl, problem]) =>
      Effect.gen(function*() {
        const failure = yield* refusal(directUrl!)
        assert.strictEqual(failure._tag, "InvalidSettings")
        assert.include(failure.message, `Setting "directUrl": ${problem}`)
        assert.notInclude(failure.message, "cret")
      }).pipe(Effect.provide(EventStores.database()))
  )

  it.live("of a server that is unreachable is reported with that server's address", () =>
    Effect.gen(function*() {
      const failure = yield* refusal("postgresql://user:secret@127.0.0.1:1/app")
      assert.strictEqual(reasonOf(failure)._tag, "DatabaseUnavailable")
      assert.include(failure.message, "127.0.0.1:1")
    }).pipe(Effect.provide(EventStores.database())), { tags: ["long"] })
})

describe("errors of the library's own sessions name their server", () => {
  const direct = "direct:5432"

  /** The database as if its client's URL led to another server than `directUrl`. */
  const database = Layer.effect(Database)(
    Effect.map(DatabaseLive.make(), (database) => ({
      ...database,
      sessionServer: { ...database.sessionServer, server: direct }
    }))
  )

  it.live("when the decision lock stays held", () =>
    Effect.gen(function*() {
      const process = yield* CoordinationStores.another({}, database)
      const { exclusively } = yield* process.provide(CoordinationSession.CoordinationSession)
      const reason = new SqlError.LockTimeoutError({ cause: new Error("lock timeout"), operation: "query" })
      const failure = yield* Effect.flip(
        exclusively("apply a plan", "locked", () => Effect.fail(new SqlError.SqlError({ reason })))
      )
      assert.include(failure.reason, { _tag: "DatabaseUnavailable", condition: "no answer in time", server: direct })
    }).pipe(Effect.scoped, Effect.provide(EventStores.database())))

  it.live("when it is a standby", () =>
    Effect.gen(function*() {
      const failure = yield* Effect.flip(SequenceCheck.readOnly(yield* Database))
      assert.include(failure.reason, { _tag: "ReadOnlyDatabase", server: direct })
    }).pipe(Effect.provide(database.pipe(Layer.provide(EventStores.database())))))
})
