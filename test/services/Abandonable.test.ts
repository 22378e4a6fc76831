import { assert, describe, it } from "@effect/vitest"
import { Data, Deferred, Duration, Effect, Exit, Fiber, Latch, Option } from "effect"
import { TestClock } from "effect/testing"
import * as Abandonable from "../../src/services/Abandonable.ts"
import * as Tests from "../support/Tests.ts"

const test = Tests.on(it.effect)

class TooLate extends Data.TaggedError("TooLate") {}

const limit = Abandonable.after("1 second", () => new TooLate())
const grace = Duration.seconds(1)

/** An effect that cannot be interrupted and ends when `finish` is opened. */
const stubborn = () => {
  const finish = Latch.makeUnsafe(false)
  return { finish, effect: Effect.uninterruptible(finish.await) }
}

/** Interrupts `caller`, and returns how it ended, if it did within `duration`. */
const interruptFor = <A, E>(caller: Fiber.Fiber<A, E>, duration: Duration.Input) =>
  Effect.andThen(
    Effect.sync(() => caller.interruptUnsafe()),
    Effect.map(TestClock.adjust(duration), () => caller.pollUnsafe())
  )

/** Records the fibers that were left behind. */
const record = () => {
  const left: Array<Fiber.Fiber<unknown, unknown>> = []
  return { left, onAbandoned: (fiber: Fiber.Fiber<unknown, unknown>) => Effect.sync(() => void left.push(fiber)) }
}

describe("run", () => {
  test("returns the result, whether it is a value, an error, a defect or an interruption", function*() {
    const { left, onAbandoned } = record()
    for (const exit of [Exit.succeed(1), Exit.fail("no"), Exit.die("bug"), Exit.interrupt(1)]) {
      assert.deepStrictEqual(yield* Effect.exit(Abandonable.run(exit, { limit, grace, onAbandoned })), exit)
    }
    assert.isEmpty(left)
  })

  test("waits for the effect's child fibers", function*() {
    let ended = false
    const child = Effect.onExit(Effect.never, () => Effect.sync(() => void (ended = true)))
    yield* Abandonable.run(Effect.forkChild(child, { startImmediately: true }), {})
    assert.isTrue(ended)
  })

  test("fails at the limit, and lets an effect without grace run to its end", function*() {
    const { left, onAbandoned } = record()
    const finish = Latch.makeUnsafe(false)
    const caller = yield* Effect.forkChild(Abandonable.run(finish.await, { limit, onAbandoned }))
    yield* TestClock.adjust("1 second")
    assert.isUndefined(caller.pollUnsafe(), "answers that have already arrived are read first")
    yield* TestClock.adjust("50 millis")
    assert.deepStrictEqual(caller.pollUnsafe(), Exit.fail(new TooLate()))
    yield* finish.open
    assert.deepStrictEqual(yield* Fiber.await(left[0]!), Exit.void)
  })

  test("interrupts an effect with grace at the limit, without waiting for it", function*() {
    const { left, onAbandoned } = record()
    const { effect, finish } = stubborn()
    const caller = yield* Effect.forkChild(Abandonable.run(effect, { limit, grace, onAbandoned }))
    yield* TestClock.adjust("1050 millis")
    assert.deepStrictEqual(caller.pollUnsafe(), Exit.fail(new TooLate()))
    yield* finish.open
    assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(left[0]!)))
  })

  test("fails at the limit even if abandoning ends the effect at once", function*() {
    const caller = yield* Effect.forkChild(Abandonable.run(Effect.never, { limit, grace }))
    yield* TestClock.adjust("1050 millis")
    assert.deepStrictEqual(caller.pollUnsafe(), Exit.fail(new TooLate()))
  })

  test("returns a result that arrives together with the limit", function*() {
    const result = yield* Deferred.make<number>()
    const together = Effect.andThen(Deferred.succeed(result, 1), Effect.fail(new TooLate()))
    assert.strictEqual(yield* Abandonable.run(Deferred.await(result), { limit: together }), 1)
  })

  test("passes the fiber on, so that a late result can be released", function*() {
    let released = ""
    const resource = yield* Deferred.make<string>()
    const caller = yield* Effect.forkChild(
      Abandonable.run(Deferred.await(resource), {
        limit,
        onAbandoned: (fiber) =>
          Effect.asVoid(Abandonable.start(Effect.map(Fiber.await(fiber), (exit) => {
            if (Exit.isSuccess(exit)) released = String(exit.value)
          })))
      })
    )
    yield* TestClock.adjust("1050 millis")
    assert.deepStrictEqual(caller.pollUnsafe(), Exit.fail(new TooLate()))
    yield* Deferred.succeed(resource, "connection")
    yield* TestClock.adjust("1 milli")
    assert.strictEqual(released, "connection")
  })

  test("interrupts the effect with its caller, and waits until it has stopped", function*() {
    const { left, onAbandoned } = record()
    let stopped = false
    const effect = Effect.onInterrupt(
      Effect.never,
      () => Effect.map(Effect.sleep("500 millis"), () => void (stopped = true))
    )
    const caller = yield* Effect.forkChild(Abandonable.run(effect, { limit, grace, onAbandoned }))
    yield* TestClock.adjust("1 milli")
    assert.isUndefined(yield* interruptFor(caller, "499 millis"))
    yield* TestClock.adjust("1 milli")
    assert.isTrue(stopped)
    assert.isTrue(Exit.hasInterrupts(caller.pollUnsafe()!))
    assert.isEmpty(left)
  })

  test("leaves an effect behind that has not stopped within the grace", function*() {
    const { left, onAbandoned } = record()
    const { effect } = stubborn()
    const caller = yield* Effect.forkChild(Abandonable.run(effect, { grace, onAbandoned }))
    yield* TestClock.adjust("1 milli")
    assert.isUndefined(yield* interruptFor(caller, "1 second"))
    yield* TestClock.adjust("50 millis")
    assert.isTrue(Exit.hasInterrupts(caller.pollUnsafe()!))
    assert.lengthOf(left, 1)
  })

  test("returns to an interrupted caller at once if there is no grace, and keeps the limit", function*() {
    const { left, onAbandoned } = record()
    const caller = yield* Effect.forkChild(Abandonable.run(Effect.never, { limit, onAbandoned }))
    yield* TestClock.adjust("1 milli")
    assert.isTrue(Exit.hasInterrupts((yield* interruptFor(caller, 0))!))
    assert.isEmpty(left)
    yield* TestClock.adjust("1050 millis")
    assert.lengthOf(left, 1)
    assert.isUndefined(left[0]!.pollUnsafe(), "the effect is never interrupted")
  })

  test("abandons nothing if the effect ends after its caller was interrupted", function*() {
    const { left, onAbandoned } = record()
    const finish = Latch.makeUnsafe(false)
    const caller = yield* Effect.forkChild(Abandonable.run(finish.await, { limit, onAbandoned }))
    yield* TestClock.adjust("1 milli")
    yield* interruptFor(caller, "500 millis")
    yield* finish.open
    yield* TestClock.adjust("2 seconds")
    assert.isEmpty(left)
  })
})

describe("in a finalizer of an interrupted fiber", () => {
  /** Runs an effect as the finalizer of a fiber that is interrupted. */
  const finally_ = <A, E>(self: Effect.Effect<A, E>) =>
    Effect.gen(function*() {
      const exit = yield* Deferred.make<A, E>()
      const fiber = yield* Effect.forkChild(
        Effect.onExit(Effect.never, () => Deferred.complete(exit, self)),
        { startImmediately: true }
      )
      fiber.interruptUnsafe()
      return exit
    })

  test("`run` waits for the result, and no longer than the limit", function*() {
    const quick = yield* finally_(Abandonable.run(Effect.as(Effect.sleep("500 millis"), 1), { limit }))
    const slow = yield* finally_(Effect.flip(Abandonable.run(Effect.never, { limit })))
    yield* TestClock.adjust("500 millis")
    assert.strictEqual(yield* Deferred.await(quick), 1)
    yield* TestClock.adjust("550 millis")
    assert.deepStrictEqual(yield* Deferred.await(slow), new TooLate())
  })

  test("`end` and `interrupt` wait no longer than the limit", function*() {
    const { effect } = stubborn()
    const fiber = yield* Abandonable.start(effect)
    const ended = yield* finally_(Abandonable.end(fiber, "1 second"))
    const interrupted = yield* finally_(Abandonable.interrupt(fiber, "1 second"))
    yield* TestClock.adjust("1050 millis")
    assert.deepStrictEqual(yield* Deferred.await(ended), Option.none())
    assert.deepStrictEqual(yield* Deferred.await(interrupted), Option.none())
  })
})

test("`end` returns how a fiber ended", function*() {
  const fiber = yield* Abandonable.start(Effect.andThen(Effect.sleep("500 millis"), Effect.fail("no")))
  const end = yield* Effect.forkChild(Abandonable.end(fiber, "1 second"))
  yield* TestClock.adjust("500 millis")
  assert.deepStrictEqual(yield* Fiber.join(end), Option.some(Exit.fail("no")))
})

test("`start` starts at once, and the fiber outlives its parent", function*() {
  let ran = false
  const fiber = yield* Fiber.join(
    yield* Effect.forkChild(
      Abandonable.start(Effect.andThen(Effect.sync(() => void (ran = true)), Effect.never))
    )
  )
  assert.isTrue(ran)
  yield* TestClock.adjust("1 hour")
  assert.isUndefined(fiber.pollUnsafe())
  assert.isTrue(Option.isSome(yield* Abandonable.interrupt(fiber, "1 second")))
})

it.live("reads an answer that arrived while the event loop was blocked past the limit", () =>
  Effect.gen(function*() {
    // Stands for a socket: what has arrived takes a few turns of the event loop until it is decoded.
    const answer = Effect.callback<string>((resume) => {
      const turn = (left: number) => setImmediate(() => left > 0 ? turn(left - 1) : resume(Effect.succeed("answer")))
      turn(10)
    })
    const late = Abandonable.run(answer, { limit: Abandonable.after("20 millis", () => new TooLate()) })
    const caller = yield* Effect.forkChild(late, { startImmediately: true })
    const until = performance.now() + 100
    while (performance.now() < until);
    assert.strictEqual(yield* Fiber.join(caller), "answer")
  }))
