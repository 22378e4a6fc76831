/**
 * A view whose rows belong to customers, written without row locks by workers that share its projection.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import { Effect } from "effect"
import * as Harness from "./Harness.ts"
import { test } from "./Live.ts"

const projections = ["per_customer"]

/** Every aggregate has events of every customer, so each customer's row is written by events of all aggregates. */
const customers = { customers: 13, aggregates: 20 }

test(
  "two workers that read, compute and write a customer's row lose no update and run into no deadlock",
  function*({ harness }) {
    const workers = yield* Effect.forEach(["a", "b"], (id) => harness.start(id, { projections }))
    yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
    yield* harness.append(2_000, customers)
    yield* harness.append(500, { ...customers, through: "sql" })
    yield* harness.quiesce(projections)
    for (const worker of workers) {
      assert.include(worker.output(), "Assigned partition: ")
      assert.notMatch(worker.output(), /deadlock|lock timeout|conflict|retried/i)
    }
  }
)

test("no update is lost while workers join and are killed", function*({ harness }) {
  yield* harness.start("a", { projections })
  const b = yield* harness.start("b", { projections })
  yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
  const stop = yield* harness.load({ ...customers, perSecond: 200 })
  yield* harness.start("c", { projections })
  yield* harness.waitUntil("three workers share the work", Harness.sharedBy(["a", "b", "c"]))
  yield* b.kill
  yield* harness.waitUntil("a and c share the work", Harness.sharedBy(["a", "c"]))
  yield* stop
  yield* harness.append(500, customers)
  yield* harness.quiesce(projections)
})
