import { assert, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import type { Event } from "../../src/schema/Event.ts"
import * as Projection from "../../src/services/Projection.ts"
import * as Workers from "./Workers.ts"
import { event, pass } from "./World.ts"

const { assertFailed, fail, makeGate, test, times } = Workers

test("a startFrom beyond the last event fails, naming projection and positions", function*({ counting, start }) {
  const worker = yield* start({ projections: [counting({ startFrom: 12n })] })
  yield* pass(500)
  const error = assertFailed(worker, "InvalidSettings")
  assert.match(error.message, /startFrom of "\w+" is 12, .* up to 0\. Give "beginning", "now" or/)
  assert.deepStrictEqual(worker.said("Error"), [error.message])
  // It fails before it registers.
  assert.deepStrictEqual(worker.tags(), ["WorkerStarting", "WorkerStopped"])
})

test(
  "catchUp handles the events visible at its start and waits for no later event",
  function*({ appendAll, checkpoints, counting, counts, start }) {
    const gate = yield* makeGate
    yield* appendAll
    // The handler never completes for later events.
    const before = ({ globalPosition: position }: Event) =>
      position === 16n ? gate.wait : position > 16n ? Effect.never : Effect.void
    const worker = yield* start({
      projections: [counting({ before })],
      how: "catchUp",
      batchSize: 4
    })
    yield* gate.reached
    yield* pass(2_000)
    assert.isFalse(worker.hasEnded(), "the last event is not handled yet")
    yield* appendAll
    yield* gate.open
    yield* pass(20_000, 500)
    assert.isTrue(worker.hasSucceeded())
    assert.deepStrictEqual(yield* counts(), times(1))
    const rows = yield* checkpoints.rows("counts")
    assert.deepStrictEqual(rows.map(({ fence, position }) => ({ fence, position })), [
      { fence: undefined, position: 16n }
    ])
    assert.deepStrictEqual(worker.tags().slice(-3), ["WorkerLeaving", "WorkerLeft", "WorkerStopped"])
  }
)

test(
  "catchUp waits for every projection and advances past events that their filters exclude",
  function*({ appendAll, checkpoints, counting, counts, events, start }) {
    yield* appendAll
    yield* events.append([event("group", { aggregateType: "Group" })])
    yield* events.append([event("nobody", { aggregateType: "Nobody" })])
    const groups = counting({ name: "groups", aggregateTypes: ["Group"], before: () => Effect.sleep("3 seconds") })
    const worker = yield* start({ projections: [counting({ aggregateTypes: ["User"] }), groups], how: "catchUp" })
    yield* pass(2_000)
    assert.isFalse(worker.hasEnded())
    yield* pass(2_000)
    assert.isTrue(worker.hasEnded())
    assert.deepStrictEqual(yield* counts(), times(1))
    assert.deepStrictEqual(yield* counts("groups"), { group: 1 })
    for (const name of ["counts", "groups"]) {
      assert.deepStrictEqual((yield* checkpoints.rows(name)).map(({ position }) => position), [18n])
    }
  }
)

it.effect.each([["no event", 0], ["events that no projection handles", 16]] as const)(
  "catchUp returns without waiting for a poll when there are %s",
  ([, end]) =>
    Effect.gen(function*() {
      const { appendAll, checkpoints, counting, start } = yield* Workers.make
      if (end > 0) yield* appendAll
      const projections = [counting({ aggregateTypes: ["Group"] })]
      const worker = yield* start({ projections, how: "catchUp", pollInterval: "25 seconds" })
      yield* pass(500)
      assert.isTrue(worker.hasSucceeded())
      assert.deepStrictEqual((yield* checkpoints.rows("counts")).map(({ position }) => position), [BigInt(end)])
    })
)

test(
  "catchUp needs no poll to notice empty progress written after the range was caught up",
  function*({ appendAll, counting, start }) {
    yield* appendAll
    let waits = 0
    const worker = yield* start({
      projections: [counting({ aggregateTypes: ["Group"] })],
      how: "catchUp",
      pollInterval: "25 seconds",
      // As if a writer held the settled position at 8 for a moment.
      events: (real) => ({
        settledBeyond: (...args) => waits++ === 0 ? Effect.succeed(8n) : real.settledBeyond(...args)
      })
    })
    yield* pass(2_000)
    assert.isTrue(worker.hasEnded())
  }
)

test("catchUp fails when a range is halted", function*({ appendAll, counting, start }) {
  yield* appendAll
  const before = ({ aggregateId }: Event) => aggregateId === "user-9" ? fail("no such user") : Effect.void
  const worker = yield* start({ projections: [counting({ before })], how: "catchUp" })
  yield* pass(5_000)
  assertFailed(worker, "ProjectionHalted", ["counts", "10", "no such user"])
  assert.deepStrictEqual(worker.said("Info").slice(-1), ["Unregistering worker..."])
})

test(
  "catchUp checks the progress about 20 times a second, however many events arrive",
  function*({ appendAll, counting, events, start }) {
    yield* appendAll
    let checks = 0
    const worker = yield* start({
      projections: [counting(), counting({ name: "slow", before: () => Effect.sleep("3 seconds") })],
      how: "catchUp",
      events: ({ headPosition }) => ({ headPosition: Effect.tap(headPosition, () => Effect.sync(() => checks++)) })
    })
    yield* pass(500)
    checks = 0
    for (let n = 0; n < 100; n++) {
      yield* events.append([event("later")])
      yield* pass(10)
    }
    const checked = checks
    yield* worker.stopCut
    assert.isAtLeast(worker.of("BatchCommitted").length, 100)
    assert.isBelow(checked, 25)
  }
)

test("catchUp returns although a later event has halted a range", function*({ appendAll, counting, events, start }) {
  const gate = yield* makeGate
  yield* appendAll
  const before = ({ globalPosition: position }: Event) =>
    position === 1n ? gate.wait : position === 17n ? fail() : Effect.void
  const worker = yield* start({ projections: [counting({ before })], how: "catchUp", batchSize: 8 })
  yield* gate.reached
  // In the store before the last page is read, so that the range is not caught up between 16 and 17.
  yield* events.append([event("later")])
  yield* gate.open
  yield* pass(5_000)
  assert.deepStrictEqual(worker.of("RangeHalted").map(({ halt }) => halt.position), [17n])
  assert.isTrue(worker.hasSucceeded())
})

test("catchUp waits for the worker that owns the range", function*({ appendAll, counting, counts, start }) {
  const projections = [counting({ before: () => Effect.sleep("20 millis") })]
  const steady = yield* start({ projections })
  yield* pass(500)
  yield* appendAll
  const brief = yield* start({ projections, how: "catchUp" })
  yield* pass(10_000, 20)
  assert.isTrue(brief.hasSucceeded())
  assert.deepStrictEqual(yield* counts(), times(1))
  assert.isFalse(steady.hasEnded())
})

it.effect.each(
  [
    ["now", 16n],
    [10n, 10n],
    ["beginning", 0n],
    [new Date(0), 0n],
    [new Date("2200-01-01"), 16n],
    [DateTime.makeUnsafe("2200-01-01"), 16n],
    [DateTime.makeUnsafe(0), 0n]
  ] as const
)(
  "startFrom %s applies only to the projection's first start",
  ([startFrom, position]) =>
    Effect.gen(function*() {
      const { appendAll, start } = yield* Workers.make
      const handled: Array<bigint> = []
      const projection = Projection.make("counts", {
        startFrom,
        handle: (event) => Effect.sync(() => handled.push(event.globalPosition))
      })
      yield* appendAll
      const first = yield* start({ projections: [projection], how: "catchUp" })
      yield* pass(1_000)
      assert.isTrue(first.hasSucceeded())
      assert.deepStrictEqual(
        handled,
        Array.from({ length: 16 - Number(position) }, (_, n) => position + BigInt(n) + 1n)
      )
      assert.strictEqual(first.of("RangeClaimed")[0]?.position, position)
      yield* appendAll
      const second = yield* start({ projections: [projection], how: "catchUp" })
      yield* pass(1_000)
      assert.isTrue(second.hasSucceeded())
      assert.strictEqual(second.of("RangeClaimed")[0]?.position, 16n, "recorded progress, not startFrom")
      assert.strictEqual(handled.length, 32 - Number(position))
    })
)
