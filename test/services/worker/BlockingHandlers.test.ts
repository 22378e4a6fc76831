import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as TestClock from "effect/testing/TestClock"
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
})
