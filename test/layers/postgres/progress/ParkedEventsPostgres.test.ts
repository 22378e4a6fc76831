import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import type { Held } from "../../../../src/schema/Checkpoint.ts"
import * as ParkedEvent from "../../../../src/schema/ParkedEvent.ts"
import * as PartitionKey from "../../../../src/schema/PartitionKey.ts"
import { CheckpointStore } from "../../../../src/services/CheckpointStore.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import { ParkedEvents } from "../../../../src/services/ParkedEvents.ts"
import type { Stores } from "../../../../src/services/Stores.ts"
import * as PostgresTest from "../../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as ParkedEventsSuite from "../../../suites/ParkedEventsSuite.ts"
import { realTime } from "../../../suites/Suite.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as EventStores from "../../../support/EventStores.ts"

const stores = PostgresStores.layer.pipe(Layer.provideMerge(EventStores.database()))

ParkedEventsSuite.suite("postgres", stores, { time: realTime })

/** Makes statements of the transaction that do not sort return rows in the order of their insertion. */
const unsorted = SqlClient.SqlClient.use((sql) => sql`SET LOCAL enable_indexscan = off`)

const request = Effect.fnUntraced(function*({ projection }: Held) {
  const requested = ParkedEvents.use((store) => store.request(projection, { request: "retry", selection: "all" }))
  yield* (yield* SqlClient.SqlClient).withTransaction(Effect.andThen(unsorted, requested))
})

const recordFailure = Effect.fnUntraced(function*(row: Held) {
  const failure = { position: 1n, errorTag: "Again", errorMessage: "again" }
  const recorded = ParkedEvents.use((store) => store.recordFailure(row, failure))
  const options = { from: 0n, idleTimeout: Duration.seconds(20) }
  const work = Effect.as(Effect.andThen(unsorted, recorded), 0n)
  yield* (yield* CheckpointStore).commit(row, options, work)
})

const writes: ReadonlyArray<
  readonly [name: string, write: (row: Held) => Effect.Effect<void, unknown, SqlClient.SqlClient | Stores>]
> = [["request", request], ["failure", recordFailure]]

it.layer(stores, { excludeTestServices: true })("ParkedEventsPostgres", (it) => {
  for (const [name, write] of writes) {
    it.effect(`a ${name} locks parked events in position order, so that it cannot deadlock with other writes`, () =>
      Effect.gen(function*() {
        const row = yield* CoordinationStores.held(`locks ${name}`)
        const { url } = yield* PostgresTest.TestDatabase
        const sql = yield* SqlClient.SqlClient
        for (const position of [2, 1]) {
          yield* sql`
            INSERT INTO orchestrator_parked_events (projection_name, position, key, key_hash, event_id, event_type,
              aggregate_type, aggregate_id, aggregate_version, request)
            VALUES (${row.projection}, ${position}, 'key', 7, ${`event ${position}`}, 'Happened', 'Thing', 'key',
              ${position}, 'retry')`
        }
        const free = PostgresTest.withConnection(
          url,
          Effect.flatMap(SqlClient.SqlClient, (other) =>
            other<{ readonly position: string }>`
              SELECT position::text FROM orchestrator_parked_events WHERE projection_name = ${row.projection}
              FOR UPDATE SKIP LOCKED`)
        )
        const waiting = sql`
          SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'`
        const writing = yield* PostgresTest.withConnection(
          url,
          Effect.flatMap(SqlClient.SqlClient, (locker) =>
            locker.withTransaction(Effect.gen(function*() {
              yield* locker`
                SELECT FROM orchestrator_parked_events
                WHERE projection_name = ${row.projection} AND position = 1 FOR UPDATE`
              const writing = yield* Effect.forkChild(Effect.provideService(write(row), SqlClient.SqlClient, sql))
              yield* TimeLimits.waitUntil("the write waits for the first event", waiting, (rows) => rows.length > 0)
              assert.deepStrictEqual(yield* free, [{ position: "2" }])
              return writing
            })))
        )
        yield* Fiber.join(writing)
      }))
  }
  it.effect("does not park an event that has been deleted", () =>
    Effect.gen(function*() {
      const row = yield* CoordinationStores.held("deleted")
      const store = yield* EventStore
      yield* store.append([EventStores.event("kept")])
      yield* store.append([EventStores.event("deleted")])
      const { events } = yield* store.read({ after: 0n })
      yield* SqlClient.SqlClient.use((sql) => sql`DELETE FROM events WHERE aggregate_id = 'deleted'`)
      const parked: Array<ReadonlyArray<number>> = []
      const options = { events, limits: ParkedEvent.defaultLimits, partitionBy: PartitionKey.byDefault }
      const park = ParkedEvents.use((store) => store.park(row, options))
      const batch = { from: 0n, idleTimeout: Duration.seconds(20) }
      yield* (yield* CheckpointStore).commit(
        row,
        batch,
        Effect.as(Effect.map(park, (hashes) => parked.push(hashes)), 0n)
      )
      const [kept, ...rest] = yield* ParkedEvents.use((store) => store.list(row.projection))
      assert.deepStrictEqual([kept?.aggregateId, rest, parked], ["kept", [], [[kept?.keyHash]]])
    }))
})
