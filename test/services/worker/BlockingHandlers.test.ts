import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as TestClock from "effect/testing/TestClock"
import * as HashRange from "../../../src/schema/HashRange.ts"
import * as BlockingHandlers from "../../../src/services/worker/BlockingHandlers.ts"

describe("BlockingHandlers", () => {
  it.effect("runs a hundred queued batches one at a time", () =>
    Effect.gen(function*() {
      const blocking = BlockingHandlers.make()
      let running = 0
      let most = 0
      const batch = Effect.acquireUseRelease(
        Effect.sync(() => {
          most = Math.max(most, ++running)
        }),
        () => Effect.sleep("100 millis"),
        () => Effect.sync(() => running--)
      )
      const all = yield* Effect.forkChild(
        Effect.all(Array.from({ length: 100 }, () => blocking.runInTurn(batch, Effect.never)), {
          concurrency: "unbounded"
        })
      )
      yield* TestClock.adjust("10 seconds")
      yield* Fiber.join(all)
      assert.strictEqual(most, 1)
    }))

  it.effect("waits at most fifteen seconds for a turn that does not end", () =>
    Effect.gen(function*() {
      const blocking = BlockingHandlers.make()
      yield* Effect.forkChild(blocking.runInTurn(Effect.never, Effect.never))
      yield* Effect.yieldNow
      const second = yield* Effect.forkChild(blocking.runInTurn(Effect.succeed("ran"), Effect.never))
      yield* TestClock.adjust("14900 millis")
      assert.isUndefined(second.pollUnsafe())
      yield* TestClock.adjust("100 millis")
      assert.deepStrictEqual(yield* Fiber.join(second), Option.some("ran"))
    }))

  it("limits the batches of a range until it has passed the events of the call that overran", () => {
    const blocking = BlockingHandlers.make()
    const held = (range: HashRange.HashRange) => ({ projection: "users", range })
    const positions = Array.from({ length: 100 }, (_, index) => BigInt(index + 1))
    blocking.recordOverrun(held(HashRange.whole), positions)
    assert.strictEqual(blocking.largestBatchAt(held(HashRange.whole), 1n), 13)
    // A part of the range, and another projection, show nothing about the other events.
    blocking.clearOverruns(held(HashRange.partition(0, 2)), 104n)
    blocking.clearOverruns({ projection: "orders", range: HashRange.whole }, 104n)
    assert.strictEqual(blocking.largestBatchAt(held(HashRange.whole), 1n), 13)
    // The last of the smaller calls contains later events, too.
    blocking.clearOverruns(held(HashRange.whole), 104n)
    assert.strictEqual(blocking.largestBatchAt(held(HashRange.whole), 1n), Infinity)
  })
})
