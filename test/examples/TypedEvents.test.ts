/** Tests `examples/typed-events` as users run it. */
import * as NodeFileSystem from "@effect/platform-node/NodeFileSystem"
import { assert, it } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Path from "node:path"
import { AccountEvents } from "../../examples/typed-events/events.ts"
import * as EventSet from "../../src/services/EventSet.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"

const folder = Path.resolve(import.meta.dirname, "../../examples/typed-events")

const run = Effect.fnUntraced(function*(file: string, args: ReadonlyArray<string> = []) {
  const { url } = yield* PostgresTest.TestDatabase
  const env = { DATABASE_URL: url }
  const process = yield* WorkerProcess.spawn({ id: file, script: Path.join(folder, file), args, env, mayEnd: true })
  assert.deepStrictEqual(yield* process.ended, { code: 0, signal: null }, process.output())
  return process.output()
})

it.live("a projection handles the events of both versions", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    assert.include(
      yield* run("append.ts"),
      "Refused: Event 1 of 1 (Deposited) does not match its schema: a value is not valid at payload.cents."
    )
    yield* run("main.ts", ["--once"])
    assert.deepStrictEqual(yield* sql`SELECT owner, currency, cents FROM accounts ORDER BY id`, [
      { owner: "Ada", currency: "EUR", cents: 500n },
      { owner: "Grace", currency: "CHF", cents: 750n }
    ])
  }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))

it.live("every stored payload decodes", () =>
  Effect.gen(function*() {
    assert.deepStrictEqual(yield* EventSet.golden(AccountEvents, Path.join(folder, "golden")), [])
  }).pipe(Effect.provide(NodeFileSystem.layer)))
