/**
 * Tests `examples/with-opentelemetry` as users run it.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import * as Path from "node:path"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"
import { postgres as test } from "../support/Tests.ts"

test("prints the traces and metrics that the collector has received, and ends", function*({ url }) {
  const program = yield* WorkerProcess.spawn({
    id: "with-opentelemetry",
    script: Path.resolve(import.meta.dirname, "../../examples/with-opentelemetry/main.ts"),
    env: { DATABASE_URL: url },
    mayEnd: true
  })
  assert.deepStrictEqual(yield* program.ended, { code: 0, signal: null }, program.output())
  const requests = [...program.output().matchAll(/^trace (\w{8})\n {2}POST \/orders \(.*\n {4}append /gm)]
  const traces = requests.map(([, trace]) => trace!)
  assert.strictEqual(traces.length, 2, program.output())
  const batches = [...program.output().matchAll(/process shipments \(.* ms, linked to trace (.*)\)/g)]
  assert.sameMembers(batches.flatMap(([, linked]) => linked!.split(", ")), traces)
  assert.match(program.output(), /^ {4}store shipment /m)
  assert.match(program.output(), /^\d+ metrics, such as pupsourcing_orchestrator_/m)
})
