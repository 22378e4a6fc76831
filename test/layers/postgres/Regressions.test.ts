/** Interactions between the parts on PostgreSQL that must not happen. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { describe } from "vitest"
import type { NewEvent } from "../../../src/schema/Event.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import { patient } from "../../suites/Suite.ts"
import * as CoordinationStores from "../../support/CoordinationStores.ts"
import * as EventStores from "../../support/EventStores.ts"

const event = (aggregateId: string): NewEvent => ({
  boundedContext: "test",
  aggregateType: "Test",
  aggregateId,
  eventType: "Happened",
  payload: {}
})

const append = Effect.fnUntraced(function*(aggregateId: string) {
  const appended = yield* (yield* EventStore).append([event(aggregateId)])
  return appended.positions[0]!
})

const poll = Duration.millis(50)

describe("settled position", () => {
  it.live("a checkpoint ahead of the events does not advance other readers", () =>
    Effect.gen(function*() {
      const store = yield* EventStore
      const first = yield* append("a")
      assert.strictEqual((yield* Effect.flip(store.settledBeyond(1000n, poll)))._tag, "CheckpointAheadOfEvents")
      const second = yield* append("a")
      const upTo = yield* store.settledBeyond(first, poll)
      assert.strictEqual(upTo, second)
      const page = yield* store.read({ after: first, upTo })
      assert.strictEqual(page.position, second)
    }).pipe(Effect.provide(EventStores.layerWith())))

  it.live("a new reader starts at the settled position, not at the first gap of the history", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      yield* append("a")
      yield* Effect.exit(sql.withTransaction(Effect.andThen(append("b"), Effect.fail("no"))))
      const before = yield* append("a")
      const open = yield* Deferred.make<void>()
      const done = yield* Deferred.make<void>()
      yield* Effect.forkChild(sql.withTransaction(
        Effect.andThen(append("c"), Effect.andThen(Deferred.succeed(open, undefined), Deferred.await(done)))
      ))
      yield* Deferred.await(open)
      yield* append("a")
      const found = yield* Effect.gen(function*() {
        const store = yield* EventStore
        yield* Effect.forkChild(Effect.andThen(Effect.sleep("1 second"), Deferred.succeed(done, undefined)))
        return yield* store.settledPosition
      }).pipe(Effect.provide(EventStores.stores()))
      assert.isAtLeast(Number(found), Number(before))
    }).pipe(Effect.provide(EventStores.layerWith())))
})

describe("presence", () => {
  it.live("a presence key that the sequence returns again while another process holds it is not used", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const first = yield* CoordinationStores.join("set", "first", ["p"])
      // As after a failover that lost the sequence's last steps.
      yield* sql`SELECT setval('orchestrator_presence_keys', 1, false)`
      const process = yield* CoordinationStores.another()
      const second = yield* process.provide(CoordinationStores.join("set", "second", ["p"]))
      const { evict, generation } = yield* process.provide(CoordinationStores.decide(second, {
        rules: { ...patient, presenceGraceMillis: 0 }
      }))
      assert.deepStrictEqual(evict, [])
      assert.deepStrictEqual(generation?.members.map(({ workerId }) => workerId), [first.workerId, second.workerId])
    }).pipe(Effect.scoped, Effect.provide(CoordinationStores.layerWith())))
})
