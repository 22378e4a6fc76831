/** @module-tag long */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as ChildProcess from "node:child_process"
import { fileURLToPath } from "node:url"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"

const script = fileURLToPath(new URL("../../scripts/db.ts", import.meta.url))

/** Returns the output of `npm run db -- sql` for a statement. */
const sql = Effect.fnUntraced(function*(statement: string) {
  const { url } = yield* PostgresTest.TestDatabase
  return yield* Effect.callback<string>((resume) => {
    const child = ChildProcess.execFile(
      process.execPath,
      [script, "sql", statement],
      { env: { ...process.env, DATABASE_URL: url } },
      (_error, out, err) => resume(Effect.succeed((out + err).trimEnd()))
    )
    return Effect.sync(() => child.kill())
  })
})

describe("npm run db -- sql", () => {
  it.live("prints every column of a repeated name and runs the statement once", () =>
    Effect.gen(function*() {
      const client = yield* SqlClient.SqlClient
      yield* client`CREATE TABLE lines (id int, "?column?" text)`
      const outputs = yield* Effect.all([
        sql(`SELECT 1 AS a, 'x' AS b, 2 AS a, NULL AS a`),
        sql(`SELECT a.id, b.id FROM (VALUES (1), (2)) AS a (id), (VALUES (7)) AS b (id) ORDER BY 1`),
        sql(`INSERT INTO lines VALUES (5, 'five') RETURNING id, id + 1 AS id`),
        sql(`SELECT 'only' AS one`),
        sql(`VACUUM lines`),
        sql(`SELECT 1 / 0 AS a, 2 AS a`)
      ], { concurrency: 3 })
      assert.deepStrictEqual(outputs, [
        "a | b | a | a\n--+---+---+-----\n1 | x | 2 | NULL\n(1 row)",
        "id | id\n---+---\n 1 |  7\n 2 |  7\n(2 rows)",
        "id | id\n---+---\n 5 |  6\n(1 row)",
        "one\n----\nonly\n(1 row)",
        "VACUUM",
        "ERROR: division by zero (22012)"
      ])
      assert.deepStrictEqual(yield* client`SELECT count(*) AS n FROM lines`, [{ n: 1n }])
    }).pipe(Effect.provide(PostgresTest.layer)))
})
