/**
 * Handlers that block their whole process, or that do not use their transaction for a long time.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import { Effect } from "effect"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Harness from "./Harness.ts"
import { test } from "./Live.ts"
import * as Misbehaviour from "./Misbehaviour.ts"

const projections = ["journal"]

/** Every timeout is shorter than the time that these handlers take. */
const settings = { drainTimeout: TimeLimits.scaledMillis(400), coordinationTimeout: TimeLimits.scaledMillis(1000) }
const millis = 5 * Harness.defaultSettings.staleWorkerTimeout

const identity = (state: Harness.Rows) => ({
  generations: state.generations.map(({ generationId }) => generationId),
  workers: state.workers.map(({ incarnation, workerId }) => ({ workerId, incarnation }))
})

const position = (state: Harness.Rows, workerId: string): bigint =>
  state.checkpoints.find((row) => row.workerId === workerId)?.position ?? -1n

/** Each event has exactly one line, in order. */
const complete = Effect.fnUntraced(function*(harness: Harness.Harness["Service"]) {
  const { state } = yield* harness.waitUntil(
    "every event is handled",
    ({ checkpoints, head }) => checkpoints.every((row) => row.position >= head)
  )
  assert.deepStrictEqual(yield* harness.differences(projections), [])
  return state
})

test(
  "one that sleeps longer than every timeout keeps its transaction and registration, and delays no other worker",
  function*({ harness }) {
    yield* harness.start("a", { projections, settings })
    const b = yield* harness.start("b", { projections, settings, misbehaviour: { kind: "sleeps", millis } })
    const before = yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
    yield* harness.append(400)
    yield* harness.waitForOutput(b, "sleeps at")
    yield* harness.waitUntil(
      "a has handled everything while b sleeps",
      (state) => position(state, "a") >= state.head && position(state, "b") < state.head
    )
    yield* harness.waitForOutput(b, "continues at")
    assert.deepStrictEqual(identity(yield* complete(harness)), identity(before.state))
    // The batch that slept is the one that committed.
    assert.notMatch(b.output(), /retr(?:ied|ying)/)
  }
)

test(
  "one that blocks its process is evicted with it; its batch is refused, and the worker registers again",
  function*({ harness }) {
    yield* harness.start("a", { projections, settings })
    const b = yield* harness.start("b", { projections, settings, misbehaviour: { kind: "blocks", millis } })
    const before = yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
    yield* harness.append(400)
    yield* harness.waitUntil("a holds every range", Harness.sharedBy(["a"]))
    yield* complete(harness)
    assert.notInclude(b.output(), "continues at")

    const after = yield* harness.waitUntil("a and b share the work again", Harness.sharedBy(["a", "b"]))
    const incarnation = (state: Harness.Rows) => Harness.registered(state, "b")!.incarnation
    assert.isTrue(incarnation(after.state) > incarnation(before.state))
    yield* harness.append(400)
    yield* complete(harness)
  }
)

test("one that blocks the only process is retried after the process continues", function*({ harness }) {
  const a = yield* harness.start("a", { projections, settings, misbehaviour: { kind: "blocks", millis } })
  yield* harness.waitUntil("a works", Harness.sharedBy(["a"]))
  yield* harness.append(400)
  yield* harness.waitForOutput(a, "continues at")
  yield* complete(harness)
  assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null })
})

test(
  "one that blocks its process at the same event each time halts there, after all earlier events; other ranges continue",
  function*({ harness }) {
    yield* harness.expectHalts
    // Longer than `staleWorkerTimeout`: a worker that reaches the event is evicted and loses its ranges to the next
    // one.
    const misbehaviour = {
      kind: "blocks at poison",
      millis: 2 * Harness.defaultSettings.staleWorkerTimeout
    } as const
    yield* harness.append(40)
    yield* harness.append(1, { prefix: Misbehaviour.poison, writers: 1 })
    yield* harness.append(40)
    const workers = yield* Effect.forEach(["a", "b"], (id) => harness.start(id, { projections, misbehaviour }))
    const { state } = yield* harness.waitUntil(
      "only the range of the event is halted",
      ({ checkpoints, head }) =>
        checkpoints.some(({ halted }) => halted !== null) &&
        checkpoints.every(({ halted, position }) => halted !== null || position >= head)
    )
    const halted = state.checkpoints.filter((row) => row.halted !== null)
    assert.strictEqual(halted.length, 1)
    assert.include(halted[0]!.halted ?? "", "HandlerOverran")
    const missing = yield* harness.differences(projections)
    assert.include(missing.join("\n"), `${Misbehaviour.poison}-0 1 at 41`)
    assert.deepStrictEqual(missing.filter((line) => Number(/at (\d+)$/.exec(line)?.[1]) < 41), [])
    const attempts = workers.map((worker) => worker.output().split("blocks at poison at").length - 1)
    assert.isAtMost(Math.max(...attempts), 3)
    // Afterwards the evicted worker has registered again, and both workers keep their registrations.
    const settled = yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
    yield* harness.append(40, { prefix: "later" })
    yield* harness.waitUntil(
      "later events are handled",
      ({ checkpoints, head }) => checkpoints.every(({ halted, position }) => halted !== null || position >= head)
    )
    assert.deepStrictEqual(identity(yield* harness.observe), identity(settled.state))
  }
)
