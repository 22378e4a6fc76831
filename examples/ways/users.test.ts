import { assert, it } from "@effect/vitest"
import { Effect, TxRef } from "effect"
import { TestClock } from "effect/testing"
import { EventStore, MemoryStores, Orchestrator, Projection } from "pupsourcing-orchestrator"

it.effect("counts the users", () =>
  Effect.gen(function*() {
    const count = yield* TxRef.make(0) // commits and rolls back with the batch
    const users = Projection.make("user_count", {
      eventTypes: ["UserCreated"],
      handle: () => TxRef.update(count, (n) => n + 1)
    })
    const worker = yield* Orchestrator.make({ replicaSet: "test", projections: [users] })
    yield* Effect.forkChild(worker.run)

    const events = yield* EventStore.EventStore
    yield* events.append([{
      boundedContext: "accounts",
      aggregateType: "User",
      aggregateId: "ada",
      eventType: "UserCreated",
      payload: { name: "Ada" }
    }])

    yield* TestClock.adjust("1 second")
    assert.strictEqual(yield* TxRef.get(count), 1)
  }).pipe(Effect.provide(MemoryStores.layer)))
