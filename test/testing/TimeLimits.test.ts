import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import { TestClock } from "effect/testing"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"

const never = () => false
const every = "1 second"
const afterStall = Duration.toMillis(TimeLimits.stalled) + 2000

it.effect("a wait without progress fails, with a description of the last result", () =>
  Effect.gen(function*() {
    const look = Effect.succeed("two workers")
    const waiting = yield* Effect.forkChild(
      TimeLimits.waitUntil("there are three", look, never, {
        every,
        progress: (text) => text,
        describe: (text) => text
      })
    )
    yield* TestClock.adjust(Duration.toMillis(TimeLimits.stalled) - 2000)
    assert.isUndefined(waiting.pollUnsafe())
    yield* TestClock.adjust(4000)
    // Polled, because a wait that never fails must fail this test instead of hanging.
    const exit = waiting.pollUnsafe()
    assert(exit !== undefined && Exit.isFailure(exit), "the wait continues")
    assert.match(Cause.pretty(exit.cause), /No progress for .* while waiting until there are three\s+two workers/)
  }))

it.effect("a wait with progress continues until its condition holds", () =>
  Effect.gen(function*() {
    let looks = 0
    let done = false
    const waiting = yield* Effect.forkChild(
      TimeLimits.waitUntil("it is done", Effect.sync(() => ++looks), () => done, { every, progress: (count) => count })
    )
    yield* TestClock.adjust(afterStall)
    assert.isUndefined(waiting.pollUnsafe())
    done = true
    yield* TestClock.adjust(every)
    assert.strictEqual(yield* Fiber.join(waiting), looks)
  }))

it.effect("a wait fails in the end, however much changes", () =>
  Effect.gen(function*() {
    let looks = 0
    const waiting = yield* Effect.forkChild(
      TimeLimits.waitUntil("it is done", Effect.sync(() => ++looks), never, { every, progress: (count) => count })
    )
    yield* TestClock.adjust("25 minutes")
    yield* TestClock.adjust(every)
    const exit = waiting.pollUnsafe()
    assert(exit !== undefined && Exit.isFailure(exit), "the wait continues")
    assert.match(Cause.pretty(exit.cause), /Not within .* while waiting until it is done/)
  }))

it.effect("an effect that does not end within its limit fails", () =>
  Effect.gen(function*() {
    const waiting = yield* Effect.forkChild(TimeLimits.within("10 seconds")(Effect.never))
    yield* TestClock.adjust(TimeLimits.scaledMillis(9_000))
    assert.isUndefined(waiting.pollUnsafe())
    yield* TestClock.adjust(TimeLimits.scaledMillis(1_000))
    const exit = waiting.pollUnsafe()
    assert(exit !== undefined && Exit.isFailure(exit), "the wait continues")
    assert.include(Cause.pretty(exit.cause), "Not finished after")
  }))

it.effect("a pause of the whole test process does not count as waiting", () =>
  Effect.gen(function*() {
    const watch = yield* TimeLimits.stallWatch
    assert.isUndefined(yield* watch.check("same"))
    yield* TestClock.adjust(Duration.toMillis(TimeLimits.stalled) + 1000)
    assert.isUndefined(yield* watch.check("same"))
  }))
