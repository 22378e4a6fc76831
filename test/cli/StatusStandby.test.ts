/** @module-tag long */
import { assert, it } from "@effect/vitest"
import { Effect, Schema } from "effect"
import { SqlClient } from "effect/sql"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as Status from "../../src/schema/Status.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Commands from "../support/Commands.ts"
import * as Standby from "../support/Standby.ts"

const json = Schema.fromJsonString(Schema.toCodecJson(Status.Status))

/** A worker that holds a range and is present, as its rows and its lock show it. */
const worker = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  yield* sql`INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, state, projections, presence_key)
    VALUES ('main', 'a', 1, 'running', '["users"]', 1)`
  yield* sql`INSERT INTO orchestrator_checkpoints
      (projection_name, range_start, range_end, replica_set, filter, worker_id, incarnation, generation_id)
    VALUES ('users', 0, 4294967296, 'main', '[null,null,null]', 'a', 1, 1)`
})

it.live("the status is read from a standby, without what is not visible there", () =>
  Effect.gen(function*() {
    const servers = yield* Standby.make
    const { name, url } = yield* PostgresTest.make({ serverUrl: servers.primary })
    yield* PostgresTest.withConnection(url, Effect.andThen(Migrations.up, worker))
    const standbyUrl = new URL(servers.standby)
    standbyUrl.pathname = `/${name}`
    yield* TimeLimits.waitUntil(
      "the rows are replayed",
      PostgresTest.withConnection(
        standbyUrl.href,
        Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT FROM orchestrator_checkpoints`)
      ).pipe(Effect.orElseSucceed(() => [])),
      (rows) => rows.length > 0
    )
    const run = yield* Commands.run(["status", "--json"], standbyUrl.href)
    assert.deepStrictEqual([run.code, run.err], [0, ""])
    const status = yield* Schema.decodeUnknownEffect(json)(run.out)
    assert.notProperty(status, "openWriters")
    const [main] = status.replicaSets
    assert.notProperty(main!.workers[0], "isPresent")
    assert.deepStrictEqual(main!.projections[0]!.ranges.map(({ owner }) => owner), ["a"])
    const text = yield* Commands.run(["status"], standbyUrl.href)
    assert.include(text.out, "Read from a standby: whether processes live and readers wait is not known.")
    // On the primary the missing lock is visible.
    const primary = yield* Commands.run(["status"], url)
    assert.strictEqual(primary.code, 2)
    assert.include(primary.out, "running (gone)")
  }))
