/** Defaults of the database, the role and the client that the library's own sessions must override. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import * as Migrations from "../../../../src/layers/postgres/Migrations.ts"
import * as EventStoreTables from "../../../../src/layers/postgres/migrations/EventStoreTables.ts"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import * as TableNames from "../../../../src/schema/TableNames.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import { Membership } from "../../../../src/services/Membership.ts"
import * as Orchestrator from "../../../../src/services/Orchestrator.ts"
import * as Projection from "../../../../src/services/Projection.ts"
import * as PostgresTest from "../../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as Servers from "../../../support/Servers.ts"

/**
 * The settings that the library overrides, each with a value that an administrator may have set for the whole database.
 */
const hostile: Readonly<Record<string, string>> = {
  default_transaction_isolation: "serializable",
  statement_timeout: "1234",
  lock_timeout: "1234",
  idle_session_timeout: "1234567",
  idle_in_transaction_session_timeout: "1234",
  transaction_timeout: "1234567",
  standard_conforming_strings: "off",
  quote_all_identifiers: "on",
  exit_on_error: "on",
  jit: "on"
}

const alter = Effect.fnUntraced(function*(settings: Readonly<Record<string, string>>) {
  const sql = yield* SqlClient.SqlClient
  const { name } = yield* PostgresTest.TestDatabase
  for (const [setting, value] of Object.entries(settings)) {
    yield* sql.unsafe(`ALTER DATABASE "${name}" SET ${setting} = '${value}'`)
  }
})

/** A client whose sessions start now, with the current defaults. */
const client = (config: Omit<PgClient.PgPoolConfig, "url"> = {}) =>
  Layer.unwrap(
    Effect.map(PostgresTest.TestDatabase, ({ url }) => PgClient.layer({ ...config, url: Redacted.make(url) }))
  )

/** Runs an effect as another fiber of the process does, outside the transaction. */
const inNoTransaction = <A, E>(sql: SqlClient.SqlClient, self: Effect.Effect<A, E>): Effect.Effect<A, E> =>
  Effect.updateContext(
    self,
    (context: Context.Context<never>) => Context.omit(sql.transactionService)(context) as Context.Context<never>
  )

const settingsOf = (names: ReadonlyArray<string>) =>
  `SELECT json_object_agg(name, current_setting(name, true))::text AS settings
   FROM unnest(ARRAY[${names.map((name) => `'${name}'`).join(", ")}]) AS s (name)`

interface Found {
  readonly settings: string
}

describe("the library's sessions", () => {
  const ownSettings = (options: PostgresTest.Options, config: Omit<PgClient.PgPoolConfig, "url">) =>
    Effect.gen(function*() {
      const names = Object.keys(hostile)
      const sql = yield* SqlClient.SqlClient
      const [supported] = yield* sql.unsafe<Found>(settingsOf(names))
      const known = names.filter((name) => JSON.parse(supported!.settings)[name] !== null)
      yield* alter(Object.fromEntries(known.map((name) => [name, hostile[name]!])))
      yield* Effect.gen(function*() {
        const database = yield* Database
        const session = yield* database.openSession({
          name: "s",
          deadline: Duration.seconds(5),
          state: () => undefined
        })
        const [inSession] = yield* session.use("look", ({ sql }) => sql.unsafe<Found>(settingsOf(known)))
        const connection = yield* database.openConnection("c")
        const { rows } = yield* connection.query(settingsOf(known))
        // Repeats the list of SessionSettings.ts on purpose: a setting that is dropped there must fail here.
        const expected = {
          default_transaction_isolation: "read committed",
          statement_timeout: "0",
          lock_timeout: "0",
          idle_session_timeout: "0",
          idle_in_transaction_session_timeout: "0",
          transaction_timeout: "0",
          standard_conforming_strings: "on",
          quote_all_identifiers: "off",
          exit_on_error: "off",
          jit: "off"
        }
        for (const found of [inSession!.settings, String(rows[0]!["settings"])]) {
          assert.deepStrictEqual(
            JSON.parse(found),
            Object.fromEntries(Object.entries(expected).filter(([name]) => known.includes(name)))
          )
        }
      }).pipe(Effect.scoped, Effect.provide(EventStores.stores().pipe(Layer.provide(client(config)))))
    }).pipe(Effect.provide(EventStores.database(options)))

  it.live("ignore the defaults of the database", () => ownSettings({}, {}))

  it.live("ignore the startup parameters of the client", () =>
    ownSettings({}, {
      startupParameters: { statement_timeout: "4321", default_transaction_isolation: "serializable" }
    }))

  const postgres14 = Servers.postgres14()

  it.live("ignore the defaults on the oldest supported server", () =>
    Effect.flatMap(postgres14, (serverUrl) => ownSettings({ serverUrl }, {})))

  EventStores.test(
    "read events beside a prepared writer that conflicts, where transactions are serializable by default",
    function*({ sql }) {
      yield* Effect.provide(
        Effect.flatMap(EventStore, (store) => store.append([EventStores.event("a")])),
        EventStores.stores()
      )
      yield* sql`CREATE TABLE accounts (balance int)`
      yield* sql`INSERT INTO accounts VALUES (1)`
      yield* alter({ default_transaction_isolation: "serializable" })
      // The writer reads what another transaction then changes, and writes an event. Serializable readers of the event
      // would complete the cycle, and the prepared transaction cannot be the one to abort.
      const gid = `writer-${(yield* PostgresTest.TestDatabase).name}`
      yield* Effect.gen(function*() {
        const writer = yield* PgClient.PgClient
        yield* Effect.scoped(Effect.gen(function*() {
          const connection = yield* writer.reserve
          const run = (text: string) => connection.executeUnprepared(text, [], undefined)
          yield* run("BEGIN")
          yield* run("SELECT balance FROM accounts")
          yield* run(
            `INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
             VALUES ('test', 'Test', 'b', 1, gen_random_uuid(), 'Happened', '{}')`
          )
          yield* writer.withTransaction(writer`UPDATE accounts SET balance = 2`)
          yield* run(`PREPARE TRANSACTION '${gid}'`)
        }))
        const failure = yield* Effect.flip(writer`SELECT * FROM events`)
        assert.strictEqual(failure.reason._tag, "SerializationError")
        yield* Effect.gen(function*() {
          const store = yield* EventStore
          const { events, position } = yield* store.read({ after: 0n })
          assert.deepStrictEqual([events.length, position], [1, 1n])
          assert.strictEqual(yield* store.headPosition, 1n)
          yield* sql.unsafe(`COMMIT PREPARED '${gid}'`).unprepared
          const upTo = yield* store.settledBeyond(1n, Duration.millis(20))
          assert.strictEqual((yield* store.read({ after: 1n, upTo })).events.length, 1)
        }).pipe(Effect.provide(EventStores.stores()))
      }).pipe(
        // Already committed unless the test failed.
        Effect.ensuring(Effect.ignore(sql.unsafe(`ROLLBACK PREPARED '${gid}'`).unprepared)),
        Effect.provide(client())
      )
    }
  )

  EventStores.test("outlive idle_session_timeout", function*({ sql }) {
    yield* alter({ idle_session_timeout: "1s" })
    const own = Effect.map(
      sql<{ readonly pid: number; readonly name: string }>`
          SELECT pid, application_name AS name FROM pg_stat_activity
          WHERE datname = current_database() AND application_name LIKE 'pupsourcing-orchestrator %' ORDER BY name`,
      (rows) => rows.map(({ name, pid }) => `${name} ${pid}`)
    )
    const gone = (application: string) =>
      TimeLimits.waitUntil(
        `${application} has ended`,
        sql`SELECT FROM pg_stat_activity WHERE application_name = ${application}`,
        (rows) => rows.length === 0
      )
    yield* Effect.gen(function*() {
      const registered = yield* CoordinationStores.join("set", "worker", ["p"])
      yield* (yield* Membership).wakeUps(registered)
      const before = yield* own
      assert.deepStrictEqual(before.map((line) => line.split(" ")[1]), ["coordination", "listener"])
      // A session that keeps the default is ended meanwhile, and so is one that began later.
      for (const application of ["idle 1", "idle 2"]) {
        yield* (yield* PgClient.PgClient).reserve.pipe(
          Effect.flatMap((connection) =>
            connection.executeUnprepared(
              `SELECT set_config('application_name', '${application}', false)`,
              [],
              undefined
            )
          ),
          Effect.andThen(gone(application)),
          Effect.scoped
        )
      }
      assert.deepStrictEqual(yield* own, before)
    }).pipe(Effect.scoped, Effect.provide(CoordinationStores.over().pipe(Layer.provideMerge(client()))))
  })

  EventStores.test("handle events under all such defaults at once", function*({ sql }) {
    yield* alter({
      default_transaction_isolation: "serializable",
      default_transaction_deferrable: "on",
      // The application's own sessions have the default too, and on a slow machine may be idle for longer than a
      // fixed time.
      idle_session_timeout: `${TimeLimits.scaledMillis(1500)}ms`,
      quote_all_identifiers: "on",
      standard_conforming_strings: "off",
      plan_cache_mode: "force_custom_plan",
      enable_indexscan: "off",
      enable_indexonlyscan: "off",
      enable_nestloop: "off",
      jit_above_cost: "0",
      bytea_output: "escape",
      datestyle: "SQL, DMY",
      intervalstyle: "sql_standard",
      timezone: "Asia/Kathmandu",
      extra_float_digits: "-15",
      client_encoding: "LATIN1",
      lc_monetary: "C",
      array_nulls: "off",
      transform_null_equals: "on",
      synchronous_commit: "off"
    })
    yield* sql`CREATE TABLE handled (aggregate_id text, created_at timestamptz)`
    const projection = Projection.make("seen", {
      handle: Effect.fnUntraced(function*(event) {
        const sql = yield* SqlClient.SqlClient
        yield* sql`INSERT INTO handled VALUES (${event.aggregateId}, ${event.createdAt})`
      })
    })
    yield* Effect.gen(function*() {
      const { differences, expected, version } = yield* Migrations.up
      assert.deepStrictEqual([version, differences], [expected, []])
      yield* Effect.gen(function*() {
        const store = yield* EventStore
        yield* store.append([EventStores.event("é")])
        assert.strictEqual((yield* store.readStream(EventStores.event("é"))).length, 1)
        yield* Orchestrator.catchUp
      }).pipe(
        Effect.provide(
          Orchestrator.layer({ replicaSet: "main", projections: [projection] }).pipe(
            Layer.provideMerge(PostgresStores.layer)
          )
        )
      )
    }).pipe(Effect.provide(client()))
    const rows = yield* sql`
        SELECT h.aggregate_id, h.created_at = date_trunc('milliseconds', e.created_at) AS same
        FROM handled h JOIN events e USING (aggregate_id)`
    assert.deepStrictEqual(rows, [{ aggregate_id: "é", same: true }])
  })
})

describe("appends", () => {
  EventStores.test("that conflict with others are retried where transactions are serializable by default", function*() {
    yield* alter({ default_transaction_isolation: "serializable" })
    yield* Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const store = yield* EventStore
      const many = Array.from({ length: 16 }, (_, index) => index)
      const one = yield* Effect.forEach(many, () => store.append([EventStores.event("one")]), { concurrency: 8 })
      assert.deepStrictEqual(
        one.map(({ firstVersion }) => Number(firstVersion)).sort((a, b) => a - b),
        many.map((index) => index + 1)
      )
      const raced = yield* Effect.forEach(
        many,
        () => Effect.result(store.append([EventStores.event("raced")], { expectedVersion: "none" })),
        { concurrency: 8 }
      )
      const lost = raced.flatMap((result) => result._tag === "Failure" ? [result.failure._tag] : [])
      assert.deepStrictEqual(lost, many.slice(1).map(() => "ConcurrencyConflict" as const))
      // A transaction of the caller is the caller's to retry.
      const failure = yield* Effect.flip(sql.withTransaction(Effect.gen(function*() {
        yield* sql`SELECT count(*) FROM events`
        yield* inNoTransaction(sql, store.append([EventStores.event("one")]))
        return yield* store.append([EventStores.event("one")])
      })))
      assert(failure._tag === "StoreError" && failure.reason._tag === "StatementFailed")
      assert.strictEqual(failure.reason.code, "40001")
    }).pipe(Effect.provide(EventStores.stores().pipe(Layer.provideMerge(client()))))
  })
})

describe("migrations", () => {
  it.live("find no differences where every identifier is quoted, as files and in code", () =>
    Effect.gen(function*() {
      yield* alter({ quote_all_identifiers: "on", default_transaction_isolation: "serializable" })
      yield* Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        const status = yield* Migrations.up
        assert.deepStrictEqual(status.differences, [])
        assert.deepStrictEqual(yield* Migrations.status, status)
        for (const statement of EventStoreTables.up(TableNames.defaults)) yield* sql.unsafe(statement)
      }).pipe(Effect.provide(client()))
    }).pipe(Effect.provide(PostgresTest.layer)))
})
