/** @module-tag long */
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type { SqlClient } from "effect/sql/SqlClient"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as Commands from "../support/Commands.ts"
import * as PgBouncer from "../support/PgBouncer.ts"
import * as Tests from "../support/Tests.ts"

const test = Tests.postgres

/** A projection with a halted range and three parked events of two keys. */
const prepared = Effect.fnUntraced(function*(sql: SqlClient, url: string) {
  yield* Migrations.up
  yield* sql`INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, replica_set, filter,
      halted_since, halted_error, halted_position, halted_event_id)
    VALUES ('users', 0, 4294967296, 'main', '[null,null,null]', now(), 'Broken', 9, 'e9')`
  yield* sql`INSERT INTO orchestrator_parked_events (projection_name, position, key, key_hash, event_id, event_type,
      aggregate_type, aggregate_id, aggregate_version, attempts, first_attempt_at, last_attempt_at, error_tag, error_message)
    VALUES ('users', 5, 'a', 1, 'e5', 'Renamed', 'User', 'a', 2, 3, now(), now(), 'NoName', 'NoName: no name'),
      ('users', 7, 'a', 1, 'e7', 'Removed', 'User', 'a', 3, 0, NULL, NULL, NULL, NULL),
      ('users', 8, 'b', 2, 'e8', 'Renamed', 'User', 'b', 2, 1, now(), now(), 'Timeout', 'Timeout: 5 s')`
  return (...args: ReadonlyArray<string>) => Commands.run(args, url)
})

const requests = (sql: SqlClient) =>
  Effect.map(
    sql<{ readonly request: string | null }>`SELECT request FROM orchestrator_parked_events ORDER BY position`,
    (rows) => rows.map(({ request }) => request)
  )

const idsOf = (out: string) => out.trim().split("\n").map((line) => JSON.parse(line).eventId)

describe("parked", () => {
  test("list prints the selected events, and nothing but an error for an unknown projection", function*({ sql, url }) {
    const run = yield* prepared(sql, url)
    const all = yield* run("parked", "list", "users")
    assert.deepStrictEqual([all.code, all.err], [0, ""])
    assert.match(all.out, /^POSITION .*\n5 +a +Renamed v2 +3 .*\n {2}NoName: no name\n7 +a +Removed v3 +queued +-\n8 /)
    const some = yield* run("parked", "list", "users", "--error", "Timeout", "--json")
    assert.deepStrictEqual([some.code, idsOf(some.out)], [0, ["e8"]])
    const none = yield* run("parked", "list", "users", "--key", "z")
    assert.deepStrictEqual([none.code, none.out], [0, "No parked event of users matches.\n"])
    const unknown = yield* run("parked", "list", "user")
    assert.deepStrictEqual([unknown.code, unknown.out], [1, ""])
    assert.match(unknown.err, /^No projection "user" has progress in this database\. Use one of these names: users\.$/m)
  })

  test("retry and drop record the request and the requester, and only without --dry-run", function*({ sql, url }) {
    const run = yield* prepared(sql, url)
    const dry = yield* run("parked", "retry", "users", "--key", "a", "--dry-run")
    assert.deepStrictEqual([dry.code, dry.err], [0, ""])
    assert.include(dry.out, "Nothing was requested. Without --dry-run, this would retry 2 parked events of users.")
    assert.deepStrictEqual(yield* requests(sql), [null, null, null])

    const retried = yield* run("parked", "retry", "users", "--error", "NoName", "--json")
    assert.deepStrictEqual([retried.code, idsOf(retried.out)], [0, ["e5", "e7"]])
    const dropped = yield* run("parked", "drop", "users", "--error", "Timeout")
    assert.deepStrictEqual([dropped.code, dropped.err], [0, ""])
    for (const line of dropped.out.split("\n")) assert.isAtMost(line.length, 80, line)
    assert.include(dropped.out, "Requested: drop 1 parked event of users.")
    assert.deepStrictEqual(yield* requests(sql), ["retry", "retry", "drop"])
    const by = yield* sql<{ readonly by: string }>`SELECT DISTINCT requested_by AS by FROM orchestrator_parked_events`
    assert.strictEqual(by.length, 1)
    assert.match(by[0]!.by, /^.+@.+$/)
  })

  test(
    "a selection is required, must be the only one, and exit code 2 reports that it is empty",
    function*({ sql, url }) {
      const run = yield* prepared(sql, url)
      for (const flags of [[], ["--all", "--key", "a"], ["--first", "0"]]) {
        const refused = yield* run("parked", "drop", "users", ...flags)
        assert.strictEqual(refused.code, 1, flags.join(" "))
        assert.match(refused.err, flags.includes("--first") ? /at least 1/ : /one of --all, --key, --error and --first/)
      }
      const empty = yield* run("parked", "drop", "users", "--key", "z")
      assert.deepStrictEqual([empty.code, empty.err], [2, ""])
      assert.include(empty.out, "nothing was requested")
      assert.deepStrictEqual(yield* requests(sql), [null, null, null])
      assert.strictEqual((yield* run("parked", "drop", "users", "--all")).code, 0)
      assert.deepStrictEqual(yield* requests(sql), ["drop", "drop", "drop"])
    }
  )
})

describe.skipIf(PgBouncer.missing !== undefined && process.env["CI"] === undefined)("behind a pooler", () => {
  test("commands need no prepared statements", function*({ sql, url }) {
    yield* prepared(sql, url)
    const pooled = yield* PgBouncer.make(url, { mode: "transaction", size: 2 })
    for (const [args, code] of [[["parked", "retry", "users", "--all"], 0], [["status"], 2]] as const) {
      const run = yield* Commands.run(args, pooled, url)
      assert.deepStrictEqual([run.code, run.err], [code, ""])
    }
    assert.deepStrictEqual(yield* requests(sql), ["retry", "retry", "retry"])
  })
})

test("retry and skip accept only the event at which a range is halted", function*({ sql, url }) {
  const run = yield* prepared(sql, url)
  const request = Effect.map(
    sql<{ readonly halted_request: string | null }>`SELECT halted_request FROM orchestrator_checkpoints`,
    ([row]) => row?.halted_request
  )
  const other = yield* run("skip", "users", "e5")
  assert.deepStrictEqual([other.code, other.out], [1, ""])
  assert.include(other.err, "Projection \"users\" is not halted at event e5. It is halted at e9: use one of these ids.")
  assert.isNull(yield* request)
  for (const command of ["retry", "skip"]) {
    const asked = yield* run(command, "users", "e9")
    assert.deepStrictEqual([asked.code, asked.err], [0, ""])
    assert.include(asked.out, `Requested: ${command} event e9 of users.`)
    assert.strictEqual(yield* request, command)
  }
})
