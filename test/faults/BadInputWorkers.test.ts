/**
 * Large events handled by worker processes with little memory.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import { Console, Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Fs from "node:fs"
import { test } from "./Live.ts"

const settings = { batchSize: 5000 }
const projections = ["per_aggregate"]

/** Appends `count` equal events to ten aggregates. They are copied from a row, so they are compressed only once. */
const flood = Effect.fnUntraced(
  function*(count: number, columns: { readonly payload: string; readonly metadata: string }) {
    const sql = yield* SqlClient.SqlClient
    yield* sql.unsafe(
      `CREATE TABLE droplet AS SELECT convert_to(${columns.payload}, 'UTF8') AS payload, ${columns.metadata} AS metadata`
    )
    yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload,
      metadata)
    SELECT 'faults', 'Thing', 'a-' || n % 10, n / 10 + 1, gen_random_uuid(), 'Happened', payload, metadata
    FROM droplet, generate_series(0, ${count}::int - 1) AS n`
  }
)

/** The peak memory of a process, in bytes. */
const peak = (pid: number): number => {
  const [, kilobytes] = /VmHWM:\s+(\d+) kB/.exec(Fs.readFileSync(`/proc/${pid}/status`, "utf8")) ?? []
  return Number(kilobytes) * 1024
}

const floods = {
  "200 payloads of 5 MB": {
    count: 200,
    payload: `'{"weight":1,"filling":"' || repeat('x', 5000000) || '"}'`,
    metadata: "NULL::jsonb"
  },
  "3,000 metadata of 80 kB that take 1 kB where they are stored": {
    count: 3000,
    payload: `'{"weight":1}'`,
    metadata: "to_jsonb(repeat('x', 80000))"
  }
}
for (const [what, { count, ...columns }] of Object.entries(floods)) {
  test(`${what} are handled by a process with a heap of 200 MB`, function*({ harness }) {
    yield* flood(count, columns)
    const worker = yield* harness.start("a", {
      projections,
      settings,
      nodeArguments: ["--max-old-space-size=200"]
    })
    yield* harness.waitUntil("all are handled", ({ applied }) => applied["per_aggregate"] === count)
    yield* harness.quiesce(projections)
    const bytes = peak(worker.pid)
    yield* Console.log(`${what}: at most ${Math.round(bytes / 1e6)} MB`)
    // A process that has just started uses a third of this; everything that it read is twice as much.
    assert.isBelow(bytes, 500e6)
    assert.deepStrictEqual(yield* worker.stop, { code: 0, signal: null })
  })
}
