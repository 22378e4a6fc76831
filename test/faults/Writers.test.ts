/** Writers that do not use this library, and commits out of order. */
import { assert, describe, it } from "@effect/vitest"
import { Deferred, Effect, Fiber } from "effect"
import { SqlClient } from "effect/sql"
import * as Harness from "./Harness.ts"

describe("writers", { concurrent: false }, () => {
  it.live("events of writers that notify nobody are found", () =>
    Effect.gen(function*() {
      const harness = yield* Harness.Harness
      yield* harness.append(300, { through: "sql" })
      yield* harness.start("a")
      yield* harness.start("b")
      yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
      yield* harness.append(600, { through: "sql", writers: 8 })
      yield* harness.append(100, { through: "store", prefix: "s" })
      const end = yield* harness.quiesce()
      assert.strictEqual(end.events, 1000)
      assert.deepStrictEqual(end.refusals, [])
    }).pipe(Effect.scoped, Effect.provide(Harness.layer)), Harness.patience)

  it.live("a writer that commits late is waited for, across hand-overs", () =>
    Effect.gen(function*() {
      const harness = yield* Harness.Harness
      const sql = yield* SqlClient.SqlClient
      const drawn = yield* Deferred.make<bigint>()
      const release = yield* Deferred.make<void>()
      const a = yield* harness.start("a")
      yield* harness.waitUntil("a works", Harness.sharedBy(["a"]))
      yield* harness.append(100)

      const late = yield* Effect.gen(function*() {
        const [row] = yield* sql<{ readonly global_position: bigint }>`
          INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
          VALUES ('faults', 'Thing', 'late', 1, gen_random_uuid(), 'Happened', convert_to('{"weight": 7}', 'UTF8'))
          RETURNING global_position`
        yield* Deferred.succeed(drawn, row!.global_position)
        yield* Deferred.await(release)
      }).pipe(sql.withTransaction, Effect.forkScoped)
      const position = yield* Deferred.await(drawn)
      yield* harness.append(200)

      const isBefore = ({ checkpoints }: Harness.State) => checkpoints.every((row) => row.position < position)
      yield* harness.waitUntil("what came before it is handled", ({ applied }) =>
        Object.keys(applied).length === 2 && Object.values(applied).every((events) => events === 100))
      const b = yield* harness.start("b")
      const joined = yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
      assert.isTrue(isBefore(joined.state))
      yield* a.kill
      const taken = yield* harness.waitUntil("b has all", Harness.sharedBy(["b"]))
      assert.isTrue(isBefore(taken.state))
      assert.deepStrictEqual(taken.state.applied, { per_aggregate: 100, shared_totals: 100 })

      yield* Deferred.succeed(release, undefined)
      yield* Fiber.join(late)
      const end = yield* harness.quiesce()
      assert.strictEqual(end.events, 301)
      assert.deepStrictEqual(end.refusals, [])
      assert.deepStrictEqual(yield* b.stop, { code: 0, signal: null })
    }).pipe(Effect.scoped, Effect.provide(Harness.layer)), Harness.patience)
})
