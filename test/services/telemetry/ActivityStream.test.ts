import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Stream from "effect/Stream"
import { Activity } from "../../../src/schema/Activity.ts"
import * as HashRange from "../../../src/schema/HashRange.ts"
import * as ActivityStream from "../../../src/services/telemetry/ActivityStream.ts"

const at = (position: number) =>
  Activity.CaughtUp({ projection: "counts", range: HashRange.whole, position: BigInt(position) })

/** The positions a subscriber received, and the numbers of activities it missed in between. */
const told = (entries: ReadonlyArray<Activity>) =>
  entries.map((entry) =>
    entry._tag === "CaughtUp" ? Number(entry.position) : entry._tag === "Missed" ? `missed ${entry.count}` : entry._tag
  )

it.effect("a lagging subscriber receives Missed in place of what it missed; other subscribers miss nothing", () =>
  Effect.gen(function*() {
    const log = ActivityStream.make("main", () => [Activity.Resumed()])
    const mayContinue = yield* Deferred.make<void>()
    const slow: Array<Activity> = []
    const quick: Array<Activity> = []
    const subscribed = yield* Deferred.make<void>()
    const fiber = yield* log.stream.pipe(
      Stream.runForEach((entry) =>
        Effect.sync(() => slow.push(entry)).pipe(
          Effect.andThen(Deferred.succeed(subscribed, undefined)),
          Effect.andThen(Deferred.await(mayContinue))
        )
      ),
      Effect.forkChild
    )
    yield* log.stream.pipe(
      Stream.runForEach((entry) => Effect.sync(() => quick.push(entry))),
      Effect.forkChild({ startImmediately: true })
    )
    yield* Deferred.await(subscribed)
    for (let position = 1; position <= 1034; position++) {
      yield* log.record(at(position))
      yield* Effect.yieldNow
    }
    yield* Deferred.succeed(mayContinue, undefined)
    yield* Effect.yieldNow.pipe(Effect.repeat({ times: 3_000 }))
    yield* log.record(at(1035))
    yield* log.record(at(1036))
    yield* Effect.yieldNow.pipe(Effect.repeat({ times: 100 }))
    const numbers = (from: number, to: number) => Array.from({ length: to - from + 1 }, (_, index) => from + index)
    assert.deepStrictEqual(told(slow), ["Resumed", ...numbers(1, 1024), "missed 10", 1035, 1036])
    assert.deepStrictEqual(told(quick), ["Resumed", ...numbers(1, 1036)])
    yield* Fiber.interrupt(fiber)
  }))

it.effect("a new subscriber receives the current state first, and nothing of the past", () =>
  Effect.gen(function*() {
    let position = 1
    const log = ActivityStream.make("main", () => [at(position)])
    yield* log.record(at(0))
    position = 7
    const fiber = yield* log.stream.pipe(
      Stream.take(2),
      Stream.runCollect,
      Effect.forkChild({ startImmediately: true })
    )
    yield* Effect.yieldNow.pipe(Effect.repeat({ times: 10 }))
    yield* log.record(at(8))
    assert.deepStrictEqual(told(yield* Fiber.join(fiber)), [7, 8])
  }))
