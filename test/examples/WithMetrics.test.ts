/**
 * Tests `examples/with-metrics` as users run it.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import * as Path from "node:path"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import { postgres as test } from "../support/Tests.ts"

const script = (file: string) => Path.resolve(import.meta.dirname, "../../examples/with-metrics", file)

test("with --once, a worker handles the orders, prints its metrics and ends", function*({ url }) {
  const worker = yield* WorkerProcess.spawn({
    id: "with-metrics",
    script: script("main.ts"),
    args: ["--once"],
    env: { DATABASE_URL: url },
    mayEnd: true
  })
  assert.deepStrictEqual(yield* worker.ended, { code: 0, signal: null }, worker.output())
  for (const projection of ["invoices", "sales"]) {
    assert.include(
      worker.output(),
      `pupsourcing_orchestrator_events_processed_total{replica_set="orders",projection="${projection}"} 3\n`
    )
  }
})
