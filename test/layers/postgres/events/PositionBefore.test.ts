/** The search for the first event of a time: only settled events decide, and it reads the events in parts. */
import { assert } from "@effect/vitest"
import type { EventStore } from "../../../../src/services/EventStore.ts"
import { waitUntil } from "../../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as PlainWriters from "../../../support/PlainWriters.ts"

const { event, storeTest: test } = EventStores

const past = new Date("2020-01-01T00:00:00Z")
const date = new Date("2100-01-01T00:00:00Z")

const positionBefore = (store: EventStore["Service"]) => store.positionBefore(BigInt(date.getTime()) * 1000n)

const isSettled = (store: EventStore["Service"], position: bigint) =>
  waitUntil("the position is settled", store.settledPosition, (settled) => settled >= position, {
    progress: (settled) => settled
  })

test("an event of an open transaction is not skipped for a later one that is committed", function*({ store, url }) {
  const early = yield* store.append([event("a", { createdAt: past })])
  yield* positionBefore(store)
  const writer = yield* PlainWriters.make(url)
  yield* writer.sql`BEGIN`
  yield* writer.insert(1)
  yield* writer
    .sql`UPDATE events SET created_at = ${date.toISOString()}::timestamptz WHERE created_at > ${past.toISOString()}::timestamptz`
  const late = yield* store.append([event("a", { createdAt: date })])
  assert.strictEqual(yield* positionBefore(store), early.positions[0])
  yield* writer.sql`COMMIT`
  yield* isSettled(store, late.positions[0]!)
  assert.strictEqual(yield* positionBefore(store), early.positions[0])
  assert.strictEqual(late.positions[0], early.positions[0]! + 2n)
})

test("finds an event beyond the first part, across a gap of the positions", function*({ sql, store }) {
  yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    SELECT 'test', 'Test', n::text, 1, gen_random_uuid(), 'Happened', '' FROM generate_series(1, 45000) AS n`
  yield* sql`DELETE FROM events WHERE global_position BETWEEN 15000 AND 19000`
  const settled = yield* store.settledPosition
  assert.strictEqual(yield* positionBefore(store), settled)
  const { positions } = yield* store.append([event("late", { createdAt: date })])
  yield* isSettled(store, positions[0]!)
  assert.strictEqual(yield* positionBefore(store), positions[0]! - 1n)
})
