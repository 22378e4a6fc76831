import { assert, describe, it } from "@effect/vitest"
import type * as Array from "effect/Array"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { TestClock } from "effect/testing"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import type { Event } from "../../../src/schema/Event.ts"
import type { CheckpointStore } from "../../../src/services/CheckpointStore.ts"
import * as Projection from "../../../src/services/Projection.ts"
import { Broken, enter, event, pass, runner, type RunnerOptions } from "../World.ts"
import { conflict, connectionLost, ids, lostByTime } from "./Failures.ts"

type Events = Array.NonEmptyReadonlyArray<Event>

const idsOf = (events: ReadonlyArray<Event>) => events.map(({ aggregateId }) => aggregateId)

/** A worker with a batch handler that records the batches it was called with, and the events that were committed. */
const batches = Effect.fnUntraced(function*(
  before: (events: Events) => Effect.Effect<unknown, unknown>,
  options: RunnerOptions = {}
) {
  const tried: globalThis.Array<ReadonlyArray<string>> = []
  const handled = yield* TxRef.make<ReadonlyArray<string>>([])
  const projection = Projection.make("users", {
    handleBatch: (events) => {
      tried.push(idsOf(events))
      return Effect.andThen(before(events), TxRef.update(handled, (ids) => [...ids, ...idsOf(events)]))
    }
  })
  const worker = yield* runner(yield* MemoryStores.makeWorld, projection, options)
  const append = (ids: ReadonlyArray<string>) => Effect.forEach(ids, (id) => worker.events.append([event(id)]))
  return { ...worker, tried, handled: TxRef.get(handled), append }
})

const nothing = () => Effect.void
const sizes = (tried: ReadonlyArray<ReadonlyArray<string>>) => tried.map((events) => events.length)

it.effect("calls the handler once for the events of a batch, in position order", () =>
  Effect.gen(function*() {
    const worker = yield* batches(nothing)
    yield* worker.append(["a", "b", "a", "c"])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(200)
    yield* worker.append(["d"])
    yield* pass(2_000)
    assert.deepStrictEqual(worker.tried, [["a", "b", "a", "c"], ["d"]])
    assert.deepStrictEqual(yield* worker.handled, ["a", "b", "a", "c", "d"])
    assert.strictEqual((yield* worker.row).position, 5n)
    assert.deepStrictEqual(worker.of("BatchCommitted").map(({ events }) => events), [4, 1])
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

class NoName extends Data.TaggedError("NoName")<{}> {}

const failing: ReadonlyArray<readonly [string, (event: Event) => Effect.Effect<unknown, unknown>, number]> = [
  ["fails without naming the event", () => Effect.fail(new Broken({ message: "no country" })), 8],
  ["fails and names the event", (event) => Projection.failAt(event, new Broken({ message: "no country" })), 2],
  ["dies", () => Effect.die(new Broken({ message: "no country" })), 8],
  [
    "names an event of another batch",
    ({ globalPosition }) =>
      Projection.failAt({ globalPosition: globalPosition + 100n }, new Broken({ message: "no country" })),
    8
  ]
]

it.effect.each(failing)(
  "a handler that %s: the events before it commit, the range is halted at it",
  ([, fail, most]) =>
    Effect.gen(function*() {
      const worker = yield* batches((events) => {
        const bad = events.find(({ aggregateId }) => aggregateId === "user-30")
        return bad === undefined ? Effect.void : fail(bad)
      })
      yield* worker.append(ids(80))
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(500)
      const { halt, position } = yield* worker.row
      assert.deepStrictEqual([position, halt?.position], [29n, 30n])
      assert.include(halt?.error ?? "", "User \"user-30\"")
      assert.include(halt?.error ?? "", "no country")
      assert.deepStrictEqual(yield* worker.handled, ids(29))
      assert.deepStrictEqual(worker.tried.at(-1), ["user-30"], "the event that is given up was handled alone")
      assert.isAtMost(worker.tried.length, most + 1)
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    })
)

it.effect("a named failure has the error's type, and is caught by its tag", () =>
  Effect.gen(function*() {
    const caught = yield* Projection.failAt({ globalPosition: 1n }, new NoName()).pipe(
      Effect.catchTag("NoName", ({ _tag }) => Effect.succeed(_tag))
    )
    assert.strictEqual(caught, "NoName")
  }))

it.effect("a handler that fails for several events together, but for none alone, is not halted", () =>
  Effect.gen(function*() {
    const worker = yield* batches((events) =>
      new Set(idsOf(events)).size < events.length ? Effect.fail("the same row twice") : Effect.void
    )
    yield* worker.append([...ids(20), ...ids(20)])
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(500)
    assert.deepStrictEqual(yield* worker.handled, [...ids(20), ...ids(20)])
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

it.effect("a handler that returns Effects without running them halts the range at the first event", () =>
  Effect.gen(function*() {
    const projection = Projection.make("users", {
      handleBatch: (events) => Effect.succeed(events.map(() => Effect.sync(() => {})))
    })
    const other = yield* runner(yield* MemoryStores.makeWorld, projection)
    yield* Effect.forEach(ids(10), (id) => other.events.append([event(id)]))
    const fiber = yield* Effect.forkChild(other.run)
    yield* pass(500)
    const { halt } = yield* other.row
    assert.strictEqual(halt?.position, 1n)
    assert.include(halt?.error ?? "", "HandlerResultUnused")
    assert.strictEqual(yield* other.drain(fiber), "drained")
  }))

it.effect("conflicts halve the batch; commits double it again", () =>
  Effect.gen(function*() {
    let conflicts = 2
    const worker = yield* batches(nothing, {
      checkpoints: (real) => ({
        commit: (held, options, work) =>
          real.commit(held, options, conflicts-- > 0 ? Effect.andThen(work, Effect.fail("deadlock")) : work).pipe(
            Effect.catchTag("HandlerFailure", () => Effect.fail(conflict))
          )
      })
    })
    yield* worker.append(ids(80))
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(1_000)
    assert.deepStrictEqual(sizes(worker.tried), [80, 40, 20, 40, 20])
    assert.deepStrictEqual(yield* worker.handled, ids(80))
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

/** Loses the connection in the handler while `isLost` holds. */
const losing = (isLost: () => boolean) => (real: CheckpointStore): Partial<CheckpointStore> => ({
  commit: (held, options, work) =>
    Effect.catchTag(
      real.commit(held, options, work),
      "HandlerFailure",
      (failure) => Effect.fail(isLost() ? connectionLost : failure)
    )
})

it.effect("halts at an event that loses the connection ten times in a row, found by smaller batches", () =>
  Effect.gen(function*() {
    const worker = yield* batches(
      (events) => idsOf(events).includes("user-20") ? Effect.fail("terminating connection") : Effect.void,
      { checkpoints: losing(() => true) }
    )
    yield* worker.append(ids(40))
    const fiber = yield* Effect.forkChild(worker.run)
    yield* pass(120_000, 500)
    const { halt, position } = yield* worker.row
    assert.deepStrictEqual([position, halt?.position], [19n, 20n])
    assert.include(halt?.error ?? "", "10 times in a row in the handler")
    assert.strictEqual(yield* worker.drain(fiber), "drained")
  }))

describe("the time of a batch", () => {
  it.effect("limits the number of events: 100 at first, then as many as take 100 ms", () =>
    Effect.gen(function*() {
      const worker = yield* batches((events) => Effect.sleep(events.length * 2))
      yield* worker.append(ids(400))
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(2_000, 10)
      const [first, ...rest] = sizes(worker.tried)
      assert.strictEqual(first, 100)
      assert.isAtLeast(Math.min(...rest.slice(0, -1)), 40)
      assert.isAtMost(Math.max(...rest), 100)
      assert.lengthOf(yield* worker.handled, 400)
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))

  it.effect("draining waits for the batch in flight, and no other begins", () =>
    Effect.gen(function*() {
      const worker = yield* batches(() => Effect.sleep("500 millis"))
      yield* worker.append(ids(150))
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(100)
      yield* worker.draining.open
      yield* pass(1_000)
      assert.strictEqual(yield* Fiber.join(fiber), "drained")
      assert.deepStrictEqual(sizes(worker.tried), [100])
      assert.strictEqual((yield* worker.row).position, 100n)
    }))
})

describe("a handler that overruns", () => {
  it.effect("at one event is halted there after few overruns, and the events before it commit", () =>
    Effect.gen(function*() {
      const worker = yield* batches(
        (events) => idsOf(events).includes("user-70") ? TestClock.adjust("16 seconds") : Effect.void,
        { checkpoints: lostByTime() }
      )
      yield* worker.append(ids(90))
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(5_000)
      const { halt, position } = yield* worker.row
      assert.deepStrictEqual([position, halt?.position], [69n, 70n])
      assert.include(halt?.error ?? "", "3 times")
      assert.deepStrictEqual(yield* worker.handled, ids(69))
      const overruns = sizes(worker.tried.filter((ids) => ids.includes("user-70")))
      assert.deepStrictEqual([overruns[0], overruns.slice(-3)], [90, [1, 1, 1]])
      assert.isAtMost(overruns.length, 6, "each overrun may cost the worker its registration")
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))

  it.effect("because the batch is too large gets smaller batches, also in a later run of the range", () =>
    Effect.gen(function*() {
      const worker = yield* batches(
        (events) => events.length > 20 ? TestClock.adjust("16 seconds") : Effect.void,
        { checkpoints: lostByTime() }
      )
      yield* worker.append(ids(90))
      const first = yield* Effect.forkChild(worker.run)
      yield* pass(1)
      yield* Fiber.interrupt(first)
      assert.strictEqual(worker.tried[0]?.length, 90)
      worker.tried.length = 0
      const fiber = yield* Effect.forkChild(worker.runOn(worker.held))
      yield* pass(5_000)
      assert.isAtMost(Math.max(...sizes(worker.tried)), 12)
      assert.deepStrictEqual((yield* worker.handled).slice(-1), ["user-90"])
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))
})

it.effect("events appended by a batch handler get no default correlation and causation", () =>
  Effect.gen(function*() {
    const world = yield* MemoryStores.makeWorld
    const { events } = yield* enter(world)
    const projection = Projection.make("users", {
      aggregateTypes: ["User"],
      handleBatch: () => events.append([event("derived", { aggregateType: "Mail" })])
    })
    const source = yield* runner(world, projection)
    yield* source.events.append([event("a")])
    const fiber = yield* Effect.forkChild(source.run)
    yield* pass(500)
    const [derived] = yield* source.events.readStream({
      boundedContext: "app",
      aggregateType: "Mail",
      aggregateId: "derived"
    })
    assert.deepStrictEqual([derived?.correlationId, derived?.causationId], [null, null])
    assert.strictEqual(yield* source.drain(fiber), "drained")
  }))
