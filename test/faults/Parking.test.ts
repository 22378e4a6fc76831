/**
 * Events are parked, queued and retried while workers join, leave and die. At the end, the journal has one line for each
 * event, in version order.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import { Effect, Schedule } from "effect"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Harness from "./Harness.ts"
import * as HeldStatements from "./HeldStatements.ts"
import { test } from "./Live.ts"

const projections = ["journal"]
const parking: Harness.WorkerOptions = { projections, options: { journal: { onFailure: "park" } } }

/** With another projection, whose transactions are not held. */
const parkingBeside: Harness.WorkerOptions = {
  projections: ["journal", "shared_totals"],
  options: { ...parking.options, shared_totals: { onFailure: "skip" } }
}

test("events are parked, queued and retried in order while ranges move", function*({ harness }) {
  const gates = ["1", "2", "3"]
  const start = (id: string) => harness.start(id, parking)
  /** Waits until the workers share the work, while some events are parked. */
  const untilShared = (workers: ReadonlyArray<string>) =>
    harness.waitUntil(
      `${workers.join(" and ")} share the work`,
      (state) => Harness.sharedBy(workers)(state) && state.parked.length > 0
    )

  const a = yield* start("a")
  const stopLoad = yield* harness.load({
    perSecond: 300,
    aggregates: 200,
    each: 2,
    failsUntil: (n) => n % 60 === 0 ? gates[n / 60 % gates.length] : undefined
  })
  yield* untilShared(["a"])
  // Most requests are withdrawn again, because the gates of their events are closed.
  yield* Effect.forkChild(
    Effect.repeat(harness.retryParked("journal"), Schedule.spaced(TimeLimits.scaled("50 millis")))
  )
  const b = yield* start("b")
  yield* untilShared(["a", "b"])
  yield* harness.openGate("1")
  yield* start("c")
  yield* untilShared(["a", "b", "c"])
  assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null })
  yield* harness.openGate("2")
  yield* untilShared(["b", "c"])
  yield* b.kill
  const { state } = yield* untilShared(["c"])
  assert.isTrue(state.parked.some(({ attempts }) => attempts > 1), "no retry has failed")
  assert.isTrue(state.parked.some(({ attempts }) => attempts === 0), "no event has queued")
  yield* stopLoad
  yield* harness.openGate("3")
  yield* harness.quiesce(projections)
})

/** Appends the five events of an aggregate, whose handler fails at the first one, and those of others. */
const appendFailing = Effect.fnUntraced(function*() {
  const harness = yield* Harness.Harness
  let first: number | undefined
  yield* harness.append(5, {
    prefix: "failing",
    writers: 1,
    failsUntil: (n) => n === (first ??= n) ? "of the handler" : undefined
  })
  yield* harness.append(200)
})

const failing = (...versions: ReadonlyArray<number>) => versions.map((version) => `failing-0 ${version}`)

const eventsOf = ({ parked }: Harness.Rows) => parked.map(({ event }) => event)

/** After a crash: the next owner has parked the events, later ones queue behind them, and a retry handles them in order. */
const recover = Effect.fnUntraced(function*() {
  const harness = yield* Harness.Harness
  yield* harness.append(2, { prefix: "failing", writers: 1 })
  yield* harness.append(100)
  const { state } = yield* harness.waitUntil(
    "everything is handled or parked",
    ({ checkpoints, head }) => checkpoints.length > 0 && checkpoints.every(({ position }) => position >= head)
  )
  assert.deepStrictEqual(eventsOf(state), failing(1, 2, 3, 4, 5, 6, 7))
  assert.isAbove(state.parked[0]!.attempts, 0)
  assert.isTrue(state.parked.slice(1).every(({ attempts }) => attempts === 0))
  yield* harness.openGate("of the handler")
  yield* harness.retryParked("journal")
  yield* harness.quiesce(projections)
})

/** Until the transaction of the dead worker b has ended, worker a claims only the range of the other projection. */
const untilOtherClaimed = Effect.fnUntraced(function*() {
  const harness = yield* Harness.Harness
  const ownerOf = ({ checkpoints }: Harness.Rows, name: string) =>
    checkpoints.filter(({ projection }) => projection === name).map(({ workerId }) => workerId).join()
  const { state } = yield* harness.waitUntil("a owns a range", (state) => ownerOf(state, "shared_totals") === "a")
  assert.strictEqual(ownerOf(state, "journal"), "b")
  return state
})

const held = { workerId: "b", gate: "of the server" }

const untilReached = (what: string, isReached: Effect.Effect<boolean, unknown, never>) =>
  TimeLimits.waitUntil(what, isReached, (reached) => reached)

test("a worker dies between parking an event and COMMIT: the next owner handles it", function*({ harness }) {
  const isReached = yield* HeldStatements.hold({ ...held, change: "INSERT", at: "statement" })
  const b = yield* harness.start("b", parking)
  yield* appendFailing()
  yield* untilReached("b has inserted the event", isReached)
  yield* b.kill
  // As if the next owner had a better handler: it would handle an event that remains parked.
  yield* harness.openGate("of the handler")
  yield* harness.start("a", parking)
  const { state } = yield* harness.waitUntil("a holds every range", Harness.sharedBy(["a"]))
  assert.deepStrictEqual(eventsOf(state), [])
  assert.isTrue(yield* isReached, "the transaction of b has ended before a owned its range")
  yield* harness.openGate(held.gate)
  yield* untilReached("the transaction of b has ended", Effect.map(isReached, (reached) => !reached))
  yield* harness.append(50, { prefix: "failing", aggregates: 1 })
  yield* harness.quiesce(projections)
})

test(
  "a worker dies while COMMIT parks an event: the next owner queues later events behind it",
  function*({ harness }) {
    const isReached = yield* HeldStatements.hold({ ...held, change: "INSERT", at: "commit" })
    const b = yield* harness.start("b", parkingBeside)
    yield* appendFailing()
    yield* untilReached("b commits", isReached)
    yield* b.kill
    yield* harness.start("a", parkingBeside)
    assert.deepStrictEqual(eventsOf(yield* untilOtherClaimed()), [])
    yield* harness.openGate(held.gate)
    yield* harness.waitUntil("a holds every range", Harness.sharedBy(["a"]))
    yield* recover()
  }
)

test(
  "a worker dies between removing a parked event and COMMIT: the next owner handles the event",
  function*({ harness }) {
    const isReached = yield* HeldStatements.hold({ ...held, change: "DELETE", at: "statement" })
    const b = yield* harness.start("b", parking)
    yield* appendFailing()
    yield* harness.waitUntil("the events are parked", ({ parked }) => parked.length === 5)
    yield* harness.openGate("of the handler")
    yield* harness.retryParked("journal")
    yield* untilReached("b has handled the event and removed its row", isReached)
    // Appended during the retry: they are handled after it.
    yield* harness.append(2, { prefix: "failing", writers: 1 })
    yield* b.kill
    yield* harness.start("a", parking)
    const { state } = yield* harness.waitUntil("a holds every range", Harness.sharedBy(["a"]))
    assert.includeMembers([...eventsOf(state)], failing(1, 2, 3, 4, 5))
    yield* harness.openGate(held.gate)
    yield* harness.quiesce(projections)
  }
)

test("a worker dies while COMMIT removes a parked event: the next owner does not handle it", function*({ harness }) {
  const isReached = yield* HeldStatements.hold({ ...held, change: "DELETE", at: "commit" })
  const b = yield* harness.start("b", parkingBeside)
  yield* appendFailing()
  yield* harness.waitUntil("the events are parked", ({ parked }) => parked.length === 5)
  yield* harness.openGate("of the handler")
  yield* harness.retryParked("journal")
  yield* untilReached("b commits", isReached)
  yield* b.kill
  yield* harness.start("a", parkingBeside)
  yield* harness.append(2, { prefix: "failing", writers: 1 })
  yield* untilOtherClaimed()
  yield* harness.openGate(held.gate)
  yield* harness.quiesce(projections)
})
