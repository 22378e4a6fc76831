/**
 * Faults of other systems, with several ranges per worker and several workers.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Harness from "./Harness.ts"
import { test } from "./Live.ts"

/** The events that a halted range has handled from its failing event on, or other ranges have not handled. */
const misplaced = Effect.fnUntraced(function*(projection: string) {
  const sql = yield* SqlClient.SqlClient
  return yield* sql`
    SELECT e.aggregate_id, e.aggregate_version::text FROM events e
    JOIN orchestrator_checkpoints c ON c.projection_name = ${projection}
      AND (hashtext(e.aggregate_id COLLATE "C")::int8 & 4294967295) >= c.range_start
      AND (hashtext(e.aggregate_id COLLATE "C")::int8 & 4294967295) < c.range_end
    LEFT JOIN journal j ON j.projection = ${projection} AND j.position = e.global_position
    WHERE (j.position IS NULL) <> (c.halted_since IS NOT NULL AND e.global_position >= c.halted_position)
      OR c.position >= c.halted_position`
})

// After https://github.com/commanded/commanded/issues/556: the failed instance's event was never handled, because the
// others had moved the common checkpoint past it.
test("no checkpoint passes a failed event while other ranges continue", function*({ harness }) {
  const projections = ["journal", "at_least_once"]
  const withConcurrency = (concurrency: number) => ({
    projections,
    options: { journal: { concurrency }, at_least_once: { concurrency } }
  })
  yield* harness.expectHalts
  const a = yield* harness.start("a", withConcurrency(3))
  const b = yield* harness.start("b", withConcurrency(3))
  yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
  yield* harness.append(300, { failsUntil: (n) => n === 100 ? "of the handler" : undefined })
  const { state } = yield* harness.waitUntil(
    "one range of each projection is halted and the others have handled everything",
    ({ checkpoints, head }) => checkpoints.every(({ halted, position }) => halted !== null || position >= head)
  )
  for (const projection of projections) {
    const ranges = state.checkpoints.filter((row) => row.projection === projection)
    assert.isAbove(ranges.length, 2)
    assert.strictEqual(ranges.filter(({ halted }) => halted !== null).length, 1)
    assert.deepStrictEqual(yield* misplaced(projection), [])
  }
  // The next owner has other ranges.
  yield* harness.openGate("of the handler")
  yield* b.kill
  yield* harness.start("c", withConcurrency(2))
  assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null })
  yield* harness.append(100)
  yield* harness.quiesce(projections)
})

// After https://github.com/commanded/eventstore/pull/321: when a subscriber crashed, the others received later events of
// its partition key before the event that it had not acknowledged.
test(
  "no worker handles a later event of a key while a crashed one has not handled an earlier one",
  function*({ harness, sql }) {
    const projections = ["per_customer"]
    const options = { per_customer: { concurrency: 3 } }
    const customers = 7
    yield* harness.append(210, { customers, writers: 1, hold: { workerId: "b", gate: "never opened" } })
    // Alone, b is in the middle of the first event of a customer.
    const b = yield* harness.start("b", { projections, options })
    yield* harness.waitForOutput(b, "holding per_customer", 1)
    yield* harness.start("a", { projections, options })
    const customerOfHeld = sql<{ readonly customer: string }>`
    SELECT coalesce(metadata ->> 'customer', aggregate_id) AS customer FROM events WHERE global_position = 1`
    const [{ customer }] = (yield* customerOfHeld) as readonly [{ readonly customer: string }]
    // Events of other keys continue, also through a, while the transaction of b is open.
    yield* harness.waitUntil(
      "a owns ranges and other keys are handled",
      ({ applied, checkpoints }) =>
        checkpoints.some(({ workerId }) => workerId === "a") && (applied["per_customer"] ?? 0) > 0
    )
    yield* harness.append(70, { customers, writers: 1 })
    const handled = sql`SELECT FROM per_customer WHERE customer = ${customer}`
    assert.deepStrictEqual(yield* handled, [])
    yield* b.kill
    const end = yield* harness.quiesce(projections)
    assert.deepStrictEqual(end.refusals, [])
  }
)
