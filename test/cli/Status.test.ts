/** @module-tag long */
import { assert, describe } from "@effect/vitest"
import { Schema } from "effect"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as Status from "../../src/schema/Status.ts"
import * as Commands from "../support/Commands.ts"
import * as Tests from "../support/Tests.ts"

const test = Tests.postgres

describe("status", () => {
  test("before the migrations, the exit code is 1", function*({ url }) {
    const run = yield* Commands.run(["status"], url)
    assert.deepStrictEqual([run.code, run.out], [1, ""])
    assert.match(run.err, /^These tables do not exist: .*Run "npx pupsourcing-orchestrator migrate up"/)
  })

  test("the exit code reports whether a range needs attention", function*({ sql, url }) {
    yield* Migrations.up
    const empty = yield* Commands.run(["status"], url)
    assert.deepStrictEqual([empty.code, empty.err], [0, ""])
    assert.include(empty.out, "No worker has registered yet.")

    yield* sql`INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, replica_set, filter)
      VALUES ('users', 0, 4294967296, 'main', '[null,null,null]')`
    const unowned = yield* Commands.run(["status"], url)
    assert.deepStrictEqual([unowned.code, unowned.err], [2, ""])
    assert.match(unowned.out, /users +\[0, 4294967296\) +0 +0 +NONE/)

    yield* sql`UPDATE orchestrator_checkpoints SET halted_since = now(), halted_error = 'no such customer'`
    const halted = yield* Commands.run(["status", "--json"], url)
    assert.deepStrictEqual([halted.code, halted.err], [2, ""])
    const json = Schema.fromJsonString(Schema.toCodecJson(Status.Status))
    const status = yield* Schema.decodeUnknownEffect(json)(halted.out)
    assert.deepStrictEqual(
      Status.problems(status).map(({ problem, projection, range }) => [problem, projection, range.halt?.error]),
      [["halted", "users", "no such customer"]]
    )
  })

  test("tables with other names, and a wrong name", function*({ url }) {
    yield* Migrations.upWith({ schema: "pup" })
    assert.strictEqual((yield* Commands.run(["status", "--schema", "pup"], url)).code, 0)
    const wrong = yield* Commands.run(["status", "--schema", "pap"], url)
    assert.strictEqual(wrong.code, 1)
    assert.include(wrong.err, "These tables do not exist")
  })
})
