/**
 * Delivery at least once: a worker dies, or is frozen and resumed, between the handler and the progress.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Harness from "./Harness.ts"
import * as HeldStatements from "./HeldStatements.ts"
import { test } from "./Live.ts"

test("the fenced upsert refuses the late write of a worker that was frozen", function*({ harness }) {
  const projections = ["search", "search/unfenced"]
  const b = yield* harness.start("b", { projections })
  yield* harness.append(40, { prefix: "frozen", aggregates: 1, writers: 1, hold: { workerId: "b", gate: "of b" } })
  yield* harness.waitForOutput(b, "holding", 2)
  yield* b.freeze

  yield* harness.start("a", { projections })
  yield* harness.waitUntil("a holds every range", Harness.sharedBy(["a"]))
  yield* harness.quiesce(projections)

  yield* harness.openGate("of b")
  yield* b.wake
  yield* harness.waitForOutput(b, "wrote search at", 1)
  yield* harness.waitForOutput(b, "wrote search/unfenced at", 1)
  assert.deepStrictEqual(yield* harness.differences(["search"]), [])
  // Without its condition, the same write moves the row back to the first event and counts it twice.
  assert.deepStrictEqual(yield* harness.differences(["search/unfenced"]), [
    "search/unfenced frozen-0: 41 1 instead of 40 40"
  ])
})

const projections = ["at_least_once"]

/** How often the events of an aggregate were handled, in version order. */
const timesOf = Effect.fnUntraced(function*(aggregateId: string) {
  const sql = yield* SqlClient.SqlClient
  const rows = yield* sql<{ readonly times: number }>`
    SELECT count(*)::int AS times FROM journal WHERE aggregate_id = ${aggregateId} GROUP BY version ORDER BY version`
  return rows.map(({ times }) => times)
})

test(
  "handleBatch at least once: a worker dies before its progress is written, and the events are handled again in order",
  function*({ harness }) {
    const options = { at_least_once: { isBatch: true } }
    // One of the batch's lines is written before the call ends.
    yield* harness.append(20, { prefix: "held", aggregates: 1, writers: 1, hold: { workerId: "b", gate: "of b" } })
    const b = yield* harness.start("b", { projections, options })
    yield* harness.waitForOutput(b, "holding at_least_once", 1)
    yield* b.kill
    yield* harness.start("a", { projections, options })
    yield* harness.append(100)
    yield* harness.quiesce(projections)
    assert.deepStrictEqual(yield* timesOf("held-0"), [2, ...Array.from({ length: 19 }, () => 1)])
  }
)

for (const isBatch of [false, true]) {
  const handler = isBatch ? "handleBatch" : "handle"
  test(`park at least once (${handler}): a worker dies before a retried event is removed`, function*({ harness }) {
    const options = { at_least_once: { onFailure: "park", isBatch } } as const
    const held = { workerId: "b", gate: "of the server", change: "DELETE", at: "statement" } as const
    const isReached = yield* HeldStatements.hold(held)
    const b = yield* harness.start("b", { projections, options })
    let first: number | undefined
    yield* harness.append(5, {
      prefix: "failing",
      aggregates: 1,
      writers: 1,
      failsUntil: (n) => n === (first ??= n) ? "of the handler" : undefined
    })
    yield* harness.append(100)
    yield* harness.waitUntil("the events are parked", ({ parked }) => parked.length === 5)
    yield* harness.openGate("of the handler")
    yield* harness.retryParked("at_least_once")
    yield* TimeLimits.waitUntil("b has handled the event and removed its row", isReached, (reached) => reached)
    yield* b.kill
    yield* harness.append(2, { prefix: "failing", aggregates: 1, writers: 1 })
    yield* harness.start("a", { projections, options })
    yield* harness.waitUntil("a holds every range", Harness.sharedBy(["a"]))
    yield* harness.openGate(held.gate)
    yield* harness.quiesce(projections)
    // No other event was in the hands of b.
    assert.deepStrictEqual(yield* timesOf("failing-0"), [2, 1, 1, 1, 1, 1, 1])
  })
}
