import { assert, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Alarm from "../../../src/services/worker/Alarm.ts"
import { pass } from "../World.ts"

/** Runs an effect in virtual time, and returns after how many milliseconds it ended. */
const duration = Effect.fnUntraced(function*(self: Effect.Effect<void>) {
  const began = yield* Clock.monotonicTimeNanos
  const fiber = yield* Effect.forkChild(Effect.andThen(self, Clock.monotonicTimeNanos))
  yield* pass(2000, 1)
  const end = fiber.pollUnsafe()
  return end?._tag === "Success" ? Number((end.value - began) / 1_000_000n) : undefined
})

it.effect("a burst of wake-ups by other workers is handled by one pass; an ended range does not wait", () =>
  Effect.gen(function*() {
    const alarm = Alarm.make()
    yield* pass(1000)
    const passBeganAt = yield* Clock.monotonicTimeNanos
    yield* pass(2)
    Alarm.ringFromOutside(alarm)
    assert.strictEqual(yield* duration(Alarm.letBurstPass(alarm, passBeganAt)), 3)
    assert.isFalse(alarm.latch.isOpen())

    alarm.latch.openUnsafe()
    assert.strictEqual(yield* duration(Alarm.letBurstPass(alarm, yield* Clock.monotonicTimeNanos)), 0)
    Alarm.ringFromOutside(alarm)
    assert.strictEqual(yield* duration(Alarm.letBurstPass(alarm, 0n)), 0, "the first pass")
  }))

it.effect("waits until a wake-up, the poll interval or the recheck, whichever is first", () =>
  Effect.gen(function*() {
    const alarm = Alarm.make()
    assert.strictEqual(yield* duration(Alarm.wait(alarm, { longestMillis: 1000, recheckMillis: undefined })), 1000)
    assert.strictEqual(yield* duration(Alarm.wait(alarm, { longestMillis: 1000, recheckMillis: 700 })), 700)
    alarm.latch.openUnsafe()
    assert.strictEqual(yield* duration(Alarm.wait(alarm, { longestMillis: 1000, recheckMillis: 700 })), 0)
  }))

it.effect("rechecks back off to 250 ms while they follow each other", () =>
  Effect.gen(function*() {
    const alarm = Alarm.make()
    const recheck = (recheckMillis: number) => duration(Alarm.wait(alarm, { longestMillis: 1000, recheckMillis }))
    const waits = yield* Effect.forEach([50, 50, 50, 50, 50], recheck)
    assert.deepStrictEqual(waits, [50, 100, 200, 250, 250])
    assert.strictEqual(yield* recheck(300), 300)
    assert.strictEqual(yield* recheck(50), 50)
  }))
