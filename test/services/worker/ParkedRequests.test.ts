import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Effect from "effect/Effect"
import { TestClock } from "effect/testing"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import { EventUnreadable } from "../../../src/schema/Errors.ts"
import type { Event } from "../../../src/schema/Event.ts"
import type { CheckpointStore } from "../../../src/services/CheckpointStore.ts"
import type { Page } from "../../../src/services/EventStore.ts"
import * as Projection from "../../../src/services/Projection.ts"
import { Broken, event, pass, runner, type RunnerOptions, unavailable } from "../World.ts"
import { connectionLost } from "./Failures.ts"

/** A worker of a projection that parks, and how often its handler was called for each aggregate. */
const parking = Effect.fnUntraced(function*(
  handle: (event: Event) => Effect.Effect<unknown, unknown>,
  options?: RunnerOptions
) {
  const world = yield* MemoryStores.makeWorld
  const calls = new Map<string, number>()
  const projection = Projection.make("users", {
    boundedContexts: ["app"],
    onFailure: "park",
    handle: (event) =>
      Effect.suspend(() => {
        calls.set(event.aggregateId, (calls.get(event.aggregateId) ?? 0) + 1)
        return handle(event)
      })
  })
  const worker = yield* runner(world, projection, options)
  return { ...worker, projection, world, calls, parked: worker.parkedEvents.list("users") }
})

/** Reports a lost connection that the handler fails with as a failure of the store. */
const losing = (real: CheckpointStore): Partial<CheckpointStore> => ({
  commit: (held, options, work) =>
    real.commit(held, options, work).pipe(
      Effect.catchTag("HandlerFailure", (failure) =>
        Effect.fail(Cause.squash(failure.cause) === connectionLost ? connectionLost : failure))
    )
})

it.effect("the retry of an event that was parked because its handler took too long calls the handler", () =>
  Effect.gen(function*() {
    let isSlow = true
    const worker = yield* parking(
      () => isSlow ? Effect.andThen(TestClock.adjust("16 seconds"), Effect.fail(connectionLost)) : Effect.void,
      { checkpoints: losing }
    )
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(5_000)
    assert.deepStrictEqual((yield* worker.parked).map(({ errorTag }) => errorTag), ["HandlerOverran"])

    // Still too long: recorded again.
    yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
    yield* pass(5_000)
    assert.deepStrictEqual([worker.calls.get("a"), worker.of("ParkedEventFailed").length], [6, 1])

    isSlow = false
    yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
    yield* pass(5_000)
    assert.deepStrictEqual(yield* worker.parked, [])
    assert.strictEqual(worker.calls.get("a"), 7)
    yield* worker.drain(fiber)
  }))

it.effect("a retry whose handler crashes the server fails after a limited number of crashes", () =>
  Effect.gen(function*() {
    let crashes = 0
    let isCrashing = false
    let isDown = false
    const worker = yield* parking(
      () =>
        Effect.suspend((): Effect.Effect<never, unknown> => {
          if (!isCrashing) return Effect.fail(new Broken({ message: "broken" }))
          worker.world.epoch = `${++crashes} crashes`
          isDown = true
          return Effect.fail(connectionLost)
        }),
      {
        checkpoints: (real) => ({
          commit: (held, options, work) =>
            Effect.suspend(() => {
              // The server is still down at the next attempt.
              const commit = isDown ? Effect.fail(unavailable) : losing(real).commit!(held, options, work)
              isDown = false
              return commit
            })
        })
      }
    )
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)
    assert.strictEqual((yield* worker.parked).length, 1)

    isCrashing = true
    yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
    yield* pass(120_000, 200)
    assert.strictEqual(crashes, 10)
    const [after] = yield* worker.parked
    assert.isUndefined(after?.request)
    assert.include(after?.errorMessage, "the connection was lost 10 times in a row in the handler")
    yield* worker.drain(fiber)
  }))

it.effect.each(
  [
    ["its handler fails", () => Effect.fail(new Broken({ message: "broken" })), 1],
    ["its handler takes too long", () => Effect.andThen(TestClock.adjust("16 seconds"), Effect.fail(connectionLost)), 3]
  ] as const
)(
  "a new request calls the handler again, although the answer to the record of the failure was lost: %s",
  ([, fail, calls]) =>
    Effect.gen(function*() {
      let isBroken = true
      let losesAnswer = false
      const worker = yield* parking((): Effect.Effect<unknown, unknown> => isBroken ? fail() : Effect.void, {
        checkpoints: (real) => ({
          commit: (held, options, work) =>
            Effect.tap(
              losing(real).commit!(held, options, work),
              () => losesAnswer ? Effect.fail(unavailable) : Effect.void
            )
        })
      })
      yield* worker.events.append([event("a")])
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(5_000)
      losesAnswer = true
      yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
      yield* pass(5_000)
      const failed = yield* worker.parked
      assert.deepStrictEqual(failed.map(({ request }) => request), [undefined])
      assert.strictEqual(worker.calls.get("a"), 2 * calls)

      losesAnswer = isBroken = false
      yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
      yield* pass(5_000)
      assert.deepStrictEqual(yield* worker.parked, [])
      assert.strictEqual(worker.calls.get("a"), 2 * calls + 1)
      assert.deepStrictEqual(worker.of("ParkedEventRemoved").map(({ request }) => request), ["retry"])
      yield* worker.drain(fiber)
    })
)

it.effect("a retry of an event that the projection no longer selects removes it without a call, and reports that", () =>
  Effect.gen(function*() {
    let isSelected = true
    const worker = yield* parking(() => Effect.fail(new Broken({ message: "broken" })), {
      events: (real) => ({
        read: (options) =>
          Effect.map(real.read(options), (page) => isSelected ? page : { ...page, events: [], hashes: [] })
      })
    })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)
    isSelected = false
    yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
    yield* pass(3_000)
    assert.deepStrictEqual([yield* worker.parked, worker.calls.get("a")], [[], 1])
    assert.deepStrictEqual(worker.of("ParkedEventRemoved").map(({ request }) => request), ["drop"])
    yield* worker.drain(fiber)
  }))

it.effect("a drop is executed after the server epoch has ended, although the range has read nothing since", () =>
  Effect.gen(function*() {
    const worker = yield* parking(({ aggregateVersion }) =>
      aggregateVersion === 1n ? Effect.fail(new Broken({ message: "broken" })) : Effect.void
    )
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)
    assert.strictEqual((yield* worker.parked).length, 1)

    worker.world.epoch = "next"
    yield* worker.parkedEvents.request("users", { request: "drop", selection: "all" })
    yield* pass(3_000)
    assert.deepStrictEqual(yield* worker.parked, [])
    yield* worker.events.append([event("a")])
    yield* pass(3_000)
    assert.strictEqual(worker.calls.get("a"), 2)
    assert.strictEqual((yield* worker.row).position, 2n)
    yield* worker.drain(fiber)
  }))

it.effect("an event that was parked before is counted once, so that its key is handled after it is removed", () =>
  Effect.gen(function*() {
    const worker = yield* parking(() => Effect.void)
    yield* worker.events.append([event("a")])
    const { events } = yield* worker.events.read({ after: 0n })
    const { parkingLimits: limits, partitionBy } = worker.projection
    yield* Effect.tx(worker.parkedEvents.park(worker.held, { events, limits, partitionBy }))
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)
    assert.strictEqual((yield* worker.row).position, 1n)

    yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
    yield* pass(3_000)
    assert.deepStrictEqual(yield* worker.parked, [])
    yield* worker.events.append([event("a")])
    yield* pass(3_000)
    assert.strictEqual(worker.calls.get("a"), 2)
    yield* worker.drain(fiber)
  }))

it.effect("a request is executed again if the server has lost its execution, although no event of the range follows", () =>
  Effect.gen(function*() {
    let isBroken = true
    const worker = yield* parking(() => isBroken ? Effect.fail(new Broken({ message: "broken" })) : Effect.void)
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)
    yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
    const row = [...worker.world.rows.values()][0]!
    const restore = yield* Effect.succeed([row.value, worker.world.parked.get("users")!.value] as const)
    isBroken = false
    yield* pass(3_000)
    assert.deepStrictEqual(yield* worker.parked, [])

    worker.world.epoch = "next"
    yield* Effect.tx(TxRef.set(row, restore[0]))
    yield* Effect.tx(TxRef.set(worker.world.parked.get("users")!, restore[1]))
    assert.strictEqual((yield* worker.parked).length, 1)
    // An event that the projection does not select.
    yield* worker.events.append([event("b", { boundedContext: "other" })])
    yield* pass(3_000)
    assert.deepStrictEqual(yield* worker.parked, [])
    yield* worker.drain(fiber)
  }))

const elsewhere = "a session of another server"

it.effect.each(
  [
    ["the event is not on another server", (page: Page) => Effect.succeed({ ...page, epoch: elsewhere })],
    [
      "the event cannot be read on another server",
      () => Effect.fail(new EventUnreadable({ position: 1n, detail: "no date", epoch: elsewhere }))
    ],
    ["the position is not settled", (page: Page) => Effect.succeed({ ...page, position: 0n })]
  ] as const
)("a parked event is retried later if its read proves nothing about it: %s", ([, read]) =>
  Effect.gen(function*() {
    let isBroken = true
    let isElsewhere = false
    const worker = yield* parking(() => isBroken ? Effect.fail(new Broken({ message: "broken" })) : Effect.void, {
      events: (real) => ({
        read: (options) =>
          Effect.flatMap(
            real.read(options),
            (page) => isElsewhere ? read({ ...page, events: [], hashes: [] }) : Effect.succeed(page)
          )
      })
    })
    yield* worker.events.append([event("a")])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)
    assert.strictEqual((yield* worker.parked).length, 1)

    isBroken = false
    isElsewhere = true
    yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
    yield* pass(10_000)
    assert.deepStrictEqual((yield* worker.parked).map(({ request }) => request), ["retry"])
    assert.strictEqual(worker.calls.get("a"), 1)

    isElsewhere = false
    yield* pass(10_000)
    assert.deepStrictEqual(yield* worker.parked, [])
    assert.strictEqual(worker.calls.get("a"), 2)
    assert.strictEqual(worker.of("ParkedEventRemoved").length, 1)
    yield* worker.drain(fiber)
  }))
