/** One process at a time creates a read model, however many start at once. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import { describe } from "vitest"
import * as ReadModel from "../../../src/layers/postgres/ReadModel.ts"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import * as Seam from "../../support/Seam.ts"
import * as Tests from "../../support/Tests.ts"

const test = Tests.postgres

/** A read model whose creation races in several catalogs: a schema, a type, a table, an index. */
const create = (name: string) => (sql: SqlClient.SqlClient) =>
  Effect.all([
    sql`CREATE SCHEMA IF NOT EXISTS ${sql(name)}`,
    sql`CREATE TABLE IF NOT EXISTS ${sql(`${name}.days`)} (day date PRIMARY KEY, amount bigint NOT NULL)`,
    sql`CREATE INDEX IF NOT EXISTS by_amount ON ${sql(`${name}.days`)} (amount)`
  ])

const processes = 8

/** As many pools as there are processes, each with an open connection, which run an effect at the same moment. */
const atOnce = <A, E>(
  url: string,
  self: Effect.Effect<A, E, PgClient.PgClient | SqlClient.SqlClient>,
  config: Omit<PgClient.PgPoolConfig, "url"> = {}
) =>
  Effect.gen(function*() {
    const start = yield* Deferred.make<void>()
    let ready = 0
    return yield* Effect.forEach(Array.from({ length: processes }), () =>
      Effect.gen(function*() {
        const sql = yield* SqlClient.SqlClient
        yield* sql`SELECT 1`
        if (++ready === processes) yield* Deferred.succeed(start, undefined)
        yield* Deferred.await(start)
        return yield* Effect.exit(self)
      }).pipe(
        Effect.provide(Layer.fresh(PgClient.layer({ ...config, url: Redacted.make(url), maxConnections: 1 })))
      ), { concurrency: "unbounded" })
  })

const failed = (exits: ReadonlyArray<Exit.Exit<unknown, unknown>>) => exits.filter(Exit.isFailure).map(String)

/** The error over a client whose statements pass through the hooks. */
const runWith = (hooks: Seam.Hooks, self: Effect.Effect<unknown, unknown, SqlClient.SqlClient>) =>
  Effect.flatMap(
    PostgresTest.TestDatabase,
    ({ url }) => Effect.provide(self, Seam.client({ url: Redacted.make(url), maxConnections: 2 }, hooks))
  )

describe("ReadModel", () => {
  test("eight processes that start at the same moment create it together", function*({ url }) {
    let races = 0
    for (let round = 0; round < 4; round++) {
      const plain = yield* atOnce(url, Effect.flatMap(SqlClient.SqlClient, create(`plain_${round}`)))
      races += failed(plain).length
      const locked = yield* atOnce(url, ReadModel.run("days", create(`locked_${round}`)))
      assert.deepStrictEqual(failed(locked), [])
      // Two read models may create the same objects.
      const layers = yield* atOnce(
        url,
        Layer.build(Layer.mergeAll(
          ReadModel.layer("a", create(`shared_${round}`)),
          ReadModel.layer("b", create(`shared_${round}`))
        )).pipe(Effect.scoped)
      )
      assert.deepStrictEqual(failed(layers), [])
    }
    // Without the helper the same statements fail.
    assert.isAbove(races, 0)
  })

  test(
    "works where transactions are serializable and read-only by default, and statements are not prepared",
    function*({ url }) {
      const exits = yield* atOnce(url, ReadModel.run("days", create("defaults")), {
        prepare: false,
        startupParameters: {
          default_transaction_isolation: "serializable",
          default_transaction_read_only: "on"
        }
      })
      assert.deepStrictEqual(failed(exits), [])
    }
  )

  test("a failed statement is reported with the remedy, and nothing is created", function*({ sql }) {
    yield* sql`CREATE TABLE taken (id text)`
    const second = (statement: string) =>
      Effect.flip(
        ReadModel.run("days", (sql) => Effect.andThen(sql`CREATE TABLE days (day date)`, sql.unsafe(statement)))
      )
    const cases: ReadonlyArray<readonly [string, RegExp]> = [
      ["CREATE TABLE taken (id text)", /"days" cannot be created: .*taken.* \(SQLSTATE 42P07\)\. .*IF NOT EXISTS/],
      ["CREATE INDEX CONCURRENTLY ON taken (id)", /SQLSTATE 25001\)\. .*migration/],
      ["CREATE TABLE wrong (id nosuchtype)", /nosuchtype.*SQLSTATE 42704\)\. Correct its statements/],
      ["CREATE TABLE pg_catalog.mine (id text)", /SQLSTATE 42501\)\. Grant the role CREATE/]
    ]
    for (const [statement, expected] of cases) {
      const error = yield* second(statement)
      assert.strictEqual(error._tag, "ReadModelFailed")
      assert.match(error.message, expected)
    }
    assert.deepStrictEqual(yield* sql`SELECT 1 FROM pg_class WHERE relname = 'days'`, [])
    // An error of the program's own is returned unchanged.
    const own = yield* Effect.flip(ReadModel.run("days", () => Effect.fail("own" as const)))
    assert.strictEqual(own, "own")
  })

  test("a connection lost before, within or after its statements is retried", function*({ sql }) {
    let n = 0
    let sent = 0
    do {
      const lost = n++
      sent = 0
      yield* runWith({
        around: (statement, send) => sent++ !== lost ? send : Effect.andThen(send, statement.lose)
      }, ReadModel.run("days", create("lost")))
      // BEGIN, the lock, three statements, COMMIT.
    } while (n < sent)
    assert.isAtLeast(n, 6)
    assert.strictEqual((yield* sql`SELECT 1 FROM pg_class WHERE relname = 'by_amount'`).length, 1)
  })

  test("one layer over two clients creates the tables in both databases, and once per client", function*() {
    let runs = 0
    const layer = ReadModel.layer("days", (sql) =>
      Effect.andThen(
        Effect.sync(() => runs++),
        sql`CREATE TABLE IF NOT EXISTS days (day date)`
      ))
    const clients = yield* Effect.forEach(
      [1, 2],
      () => Effect.map(PostgresTest.make(), ({ url }) => PgClient.layer({ url: Redacted.make(url) }))
    )
    yield* Layer.build(Layer.mergeAll(
      layer.pipe(Layer.provide(clients[0]!)),
      layer.pipe(Layer.provide(clients[1]!)),
      layer.pipe(Layer.provide(clients[1]!))
    ))
    assert.strictEqual(runs, 2)
    for (const client of clients) {
      const tables = SqlClient.SqlClient.use((sql) => sql`SELECT 1 FROM pg_class WHERE relname = 'days'`)
      assert.strictEqual((yield* Effect.provide(tables, client)).length, 1)
    }
  })

  test("sql runs a statement of the client in the context, in its transaction", function*() {
    const sql = yield* SqlClient.SqlClient
    yield* ReadModel.sql`CREATE TABLE names (id int, name text)`
    const rolledBack = ReadModel.sql`INSERT INTO names VALUES (${1}, ${"lost"})`.pipe(
      Effect.andThen(Effect.fail("rollback")),
      sql.withTransaction
    )
    assert.strictEqual(yield* Effect.flip(rolledBack), "rollback")
    yield* ReadModel.sql`INSERT INTO names VALUES (${2}, ${"it's"})`
    const rows = yield* ReadModel.sql<{ readonly name: string }>`SELECT name FROM names WHERE id > ${0}`
    assert.deepStrictEqual(rows.map(({ name }) => name), ["it's"])
  })

  it.effect("a wrong client configuration is reported at once", () =>
    Effect.gen(function*() {
      const client = PgClient.layer({ url: Redacted.make("postgresql://u:12#secret@h/db") })
      const error = yield* Effect.flip(Effect.provide(ReadModel.run("days", create("days")), client))
      assert.strictEqual(error._tag, "InvalidSettings")
      assert.notInclude(error.message, "secret")
    }))
})
