import { assert, describe, it } from "@effect/vitest"
import type * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type { Event } from "../../../src/schema/Event.ts"
import { HandledEvent } from "../../../src/services/AppendDefaults.ts"
import * as HandlerCall from "../../../src/services/worker/HandlerCall.ts"

const events = Array.from({ length: 100 }, (_, index) => ({ globalPosition: BigInt(index + 1) })) as unknown as
  & HandlerCall.Events
  & ReadonlyArray<Event>

const millis = 1_000_000n

/** Calls `handle` for the events, under a clock that only the test moves. */
const call = (
  handle: (index: number) => Effect.Effect<unknown, unknown>,
  mayContinue: (nanos: bigint) => boolean = () => true
) => {
  const time = { now: 0n }
  const progress = HandlerCall.makeProgress()
  const clock = { monotonicTimeNanosUnsafe: () => time.now } as Clock.Clock
  const run = HandlerCall.run(
    { _tag: "One", handle: (event) => handle(Number(event.globalPosition) - 1) },
    events,
    progress,
    { clock, mayContinue }
  ) as Effect.Effect<void, unknown>
  return { progress, run, time }
}

/** The number of handled events at each turn of another fiber while `run` runs. */
const turnsDuring = Effect.fnUntraced(function*({ progress, run }: ReturnType<typeof call>) {
  const turns: Array<number> = []
  // Yields after each turn.
  const other = yield* Effect.sync(() => turns.push(progress.handled)).pipe(
    Effect.forever,
    Effect.forkChild({ startImmediately: true })
  )
  yield* run
  yield* Fiber.interrupt(other)
  return turns
})

describe("handlers that return Effect.void", () => {
  it.effect("give other fibers a turn every 10 ms", () =>
    Effect.gen(function*() {
      const called = call(() => {
        called.time.now += millis
        return Effect.void
      })
      const turns = yield* turnsDuring(called)
      assert.strictEqual(called.progress.handled, events.length)
      const longest = turns.map((handled, index) => handled - (turns[index - 1] ?? 0))
      assert.isAtMost(Math.max(...longest, events.length - turns[turns.length - 1]!), 10)
    }))

  it.effect("are called without a turn in between while they take less", () =>
    Effect.gen(function*() {
      const turns = yield* turnsDuring(call(() => Effect.void))
      assert.deepStrictEqual(turns.filter((handled) => handled > 0 && handled < events.length), [])
    }))

  it.effect("end when the batch has taken too long", () =>
    Effect.gen(function*() {
      const called = call(() => {
        called.time.now += millis
        return Effect.void
      }, (nanos) => nanos <= 3n * millis)
      yield* called.run
      assert.deepInclude(called.progress, { begun: 4, handled: 4, callFrom: 3, callSince: 3n * millis })
      assert.isUndefined(HandlerCall.failedAt(called.progress))
    }))

  it.effect("can be interrupted between two calls", () =>
    Effect.gen(function*() {
      const called = call(() => {
        called.time.now += millis
        return Effect.void
      })
      const fiber = yield* Effect.forkChild(called.run, { startImmediately: true })
      assert.isAtMost(called.progress.handled, 10)
      yield* Fiber.interrupt(fiber)
      assert.isAtMost(called.progress.handled, 20)
      assert.isTrue(Exit.hasInterrupts(yield* Fiber.await(fiber)))
    }))
})

const kinds: ReadonlyArray<() => Effect.Effect<unknown>> = [
  () => Effect.void,
  () => Effect.succeed(1),
  () => Effect.sync(() => 2),
  () => Effect.andThen(Effect.yieldNow, Effect.void)
]

const failures: Readonly<Record<string, () => Effect.Effect<unknown, unknown>>> = {
  "a failed Exit": () => Exit.fail("no"),
  "an effect that fails": () => Effect.andThen(Effect.yieldNow, Effect.fail("no")),
  "a thrown error": () => {
    throw new Error("no")
  },
  "a value that is not an Effect": () => undefined as never,
  "an Exit with an Effect that was not run": () => Exit.succeed(Effect.sync(() => {}))
}

it.effect.each(Object.keys(failures))("locates %s among results of all kinds", (name) =>
  Effect.gen(function*() {
    for (let failing = 0; failing < 2 * kinds.length; failing++) {
      const { progress, run } = call((index) =>
        index === failing ? failures[name]!() : kinds[(index + failing) % kinds.length]!()
      )
      assert.isTrue(Exit.isFailure(yield* Effect.exit(run)))
      assert.strictEqual(HandlerCall.failedAt(progress), failing)
      assert.strictEqual(progress.handled, failing)
    }
  }))

it.effect("provides the event of its own call to each handler, and to the fibers that it starts", () =>
  Effect.gen(function*() {
    const found: Array<readonly [number, bigint | undefined]> = []
    const record = (index: number) =>
      Effect.map(HandledEvent, (event) => {
        found.push([index, event?.globalPosition])
      })
    const { run } = call((index) =>
      index % 2 === 0 ? Effect.void : Effect.andThen(record(index), Effect.forkChild(record(index)))
    )
    yield* Effect.andThen(run, Effect.yieldNow)
    assert.deepStrictEqual(found.map(([index, position]) => position === BigInt(index + 1)), found.map(() => true))
    assert.isAtLeast(found.length, events.length / 2)
  }))
