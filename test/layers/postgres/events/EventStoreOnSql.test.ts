/**
 * The event store beside clients that write and change the same tables with plain SQL, and at the limits of the driver.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Queue from "effect/Queue"
import * as Redacted from "effect/Redacted"
import { describe } from "vitest"
import { Listener } from "../../../../src/layers/postgres/connection/Listener.ts"
import { type Event, label } from "../../../../src/schema/Event.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import { TestDatabase } from "../../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as PlainWriters from "../../../support/PlainWriters.ts"
import * as Roles from "../../../support/Roles.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"

const { event, storeTest: test } = EventStores

const insert = (aggregateId: string, version: number) =>
  Effect.flatMap(PgClient.PgClient, (sql) =>
    sql`
      INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
      VALUES ('test', 'Test', ${aggregateId}, ${version}, gen_random_uuid(), 'Inserted', '')`)

/**
 * Waits for a settled position beyond this one. Returns once the reader has polled and only a notification can wake it.
 */
const waitBeyond = Effect.fnUntraced(function*(position: bigint, listens = true) {
  const store = yield* EventStore
  const sql = yield* PgClient.PgClient
  const [since] = yield* sql<{ now: string }>`SELECT clock_timestamp()::text AS now`
  const waiting = yield* Effect.forkChild(store.settledBeyond(position, Duration.hours(1)), { startImmediately: true })
  const idle = sql`
    SELECT FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle'
      AND (application_name = 'pupsourcing-orchestrator reader' AND state_change > ${since!.now}::timestamptz
          AND query LIKE '%AS ends%'
        OR application_name = 'pupsourcing-orchestrator listener')`
  yield* TimeLimits.waitUntil("the sessions are idle", idle, (rows) => rows.length === (listens ? 2 : 1))
  return waiting
})

describe("EventStore beside plain SQL", () => {
  test("a plain NOTIFY of another client wakes a waiting reader at once, whatever its payload", function*({ sql }) {
    yield* (yield* EventStore).append([event("a")])
    let version = 1
    for (
      const notify of [
        sql`SELECT pg_notify('pupsourcing_events', '')`,
        sql`NOTIFY pupsourcing_events, '{"position":"2"}'`,
        // As the Go event store does with WithNotifyChannel.
        sql.withTransaction(sql`SELECT pg_notify('pupsourcing_events', '9')`)
      ]
    ) {
      const waiting = yield* waitBeyond(BigInt(version))
      yield* insert("a", ++version)
      yield* notify
      assert.strictEqual(yield* Fiber.join(waiting), BigInt(version))
    }
  })

  test("metadata that other clients wrote is read with every digit by every read method", function*({ sql, store }) {
    const long = "x".repeat(200_000)
    yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
          payload, metadata)
        SELECT 'test', 'Test', 'a', place, gen_random_uuid(), 'Inserted', ''::bytea, metadata::jsonb
        FROM unnest(${[
      `{"id": 12345678901234567890, "huge": 1e400}`,
      "1e400",
      "null",
      "0.30000000000000000004",
      `{"id": 12345678901234567890, "long": "${long}"}`,
      `"null"`
    ]}::text[]) WITH ORDINALITY AS m (metadata, place)
        UNION ALL SELECT 'test', 'Test', 'a', 7, gen_random_uuid(), 'Inserted', ''::bytea, NULL`
    const expected = [
      [{ id: 12345678901234567000, huge: Infinity }, `{"id": 12345678901234567890, "huge": 1${"0".repeat(400)}}`],
      [Infinity, `1${"0".repeat(400)}`],
      [null, "null"],
      [0.3, "0.30000000000000000004"],
      [{ id: 12345678901234567000, long }, `{"id": 12345678901234567890, "long": "${long}"}`],
      ["null", `"null"`],
      [null, null]
    ]
    const parts = (events: ReadonlyArray<Event>) => events.map((event) => [event.metadata, event.metadataText])
    const streamId = { boundedContext: "test", aggregateType: "Test", aggregateId: "a" }
    assert.deepStrictEqual(parts(yield* store.readStream(streamId)), expected)
    // The large event makes the reader plan the second page for rows of any size.
    for (const limit of [100, 1, 3]) {
      const read: Array<Event> = []
      let after = 0n
      while (read.length < expected.length) {
        const page = yield* store.read({ after, limit })
        read.push(...page.events)
        after = page.position
      }
      assert.deepStrictEqual(parts(read), expected)
    }
  })

  test(
    "times that other clients wrote are read to the microsecond, including infinite ones",
    function*({ sql, store }) {
      yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type,
          payload, created_at)
        SELECT 'test', 'Test', 'a', place, gen_random_uuid(), 'Inserted', ''::bytea, at::timestamptz
        FROM unnest(${[
        "2026-11-26 15:50:42.123456+01",
        "1969-12-31 23:59:59.999999Z",
        "infinity",
        "-infinity"
      ]}::text[]) WITH ORDINALITY AS m (at, place)`
      const streamId = { boundedContext: "test", aggregateType: "Test", aggregateId: "a" }
      const stored = yield* store.readStream(streamId)
      assert.deepStrictEqual((yield* store.read({ after: 0n })).events, stored)
      const [exact, before, ...infinite] = stored
      assert.deepStrictEqual([exact!.createdAtMicros, before!.createdAtMicros], [1_795_704_642_123_456n, -1n])
      assert.deepStrictEqual(exact!.createdAt, new Date("2026-11-26T14:50:42.123Z"))
      assert.deepStrictEqual(before!.createdAt, new Date(-1))
      for (const event of infinite) assert.isNaN(event.createdAt.getTime())
      // Events that were read can be appended again.
      yield* store.append([event("copy", { createdAt: exact!.createdAtMicros })])
      const same = sql`
        SELECT c.created_at = o.created_at AS same FROM events AS c, events AS o
        WHERE c.aggregate_id = 'copy' AND o.aggregate_id = 'a' AND o.aggregate_version = 1`
      assert.deepStrictEqual(yield* same, [{ same: true }])
    }
  )

  test("a default of created_at applies where no event has a time", function*({ sql, store }) {
    yield* sql`ALTER TABLE events ALTER COLUMN created_at SET DEFAULT '2001-02-03Z'`
    yield* store.append([event("a")])
    const [read] = (yield* store.read({ after: 0n })).events
    assert.deepStrictEqual(read!.createdAt, new Date("2001-02-03T00:00:00Z"))
  })

  test("an append by a process that exits immediately wakes a waiting reader", function*({ url }) {
    yield* (yield* EventStore).append([event("a")])
    for (const expected of [2n, 3n]) {
      const waiting = yield* waitBeyond(expected - 1n)
      yield* Effect.flatMap(EventStore, (store) => store.append([event("a")])).pipe(
        Effect.provide(
          EventStores.stores().pipe(
            Layer.provideMerge(PgClient.layer({ url: Redacted.make(url), maxConnections: 1 }))
          )
        )
      )
      assert.strictEqual(yield* Fiber.join(waiting), expected)
    }
  })

  test("appends continue after events whose head was not updated", function*({ sql, store }) {
    yield* insert("a", 1)
    yield* insert("a", 2)
    const conflict = yield* Effect.flip(store.append([event("a")], { expectedVersion: "none" }))
    assert(conflict._tag === "ConcurrencyConflict")
    assert.strictEqual(conflict.actual, 2n)
    assert.strictEqual((yield* store.append([event("a")], { expectedVersion: 2n })).lastVersion, 3n)
    yield* insert("a", 4)
    assert.strictEqual((yield* store.append([event("a")])).lastVersion, 5n)
    const heads = yield* sql`SELECT aggregate_version AS version FROM aggregate_heads WHERE aggregate_id = 'a'`
    assert.deepStrictEqual(heads, [{ version: 5n }])
  })

  test(
    "a version that another transaction is writing becomes a conflict when that transaction commits",
    function*({ sql, store }) {
      const other = yield* PlainWriters.make((yield* TestDatabase).url)
      yield* other.sql`BEGIN`
      yield* Effect.provideService(insert("a", 1), PgClient.PgClient, other.sql)
      // Inside a transaction an append is not retried, so it cannot succeed after the commit.
      const appending = yield* Effect.forkChild(Effect.flip(sql.withTransaction(store.append([event("a")]))), {
        startImmediately: true
      })
      const waiting = other.sql`
        SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'`
      yield* TimeLimits.waitUntil("the append waits", waiting, (rows) => rows.length > 0)
      yield* other.sql`COMMIT`
      const error = yield* Fiber.join(appending)
      assert(error._tag === "ConcurrencyConflict")
      assert.isUndefined(error.actual)
      assert.strictEqual((yield* store.append([event("a")])).lastVersion, 2n)
    }
  )

  test("rows inserted by plain SQL are found within the poll interval", function*({ store }) {
    const waiting = yield* Effect.forkChild(store.settledBeyond(0n, Duration.millis(50)), { startImmediately: true })
    yield* insert("a", 1)
    assert.strictEqual(yield* Fiber.join(waiting), 1n)
  })

  test("an append in a transaction wakes readers at its commit, not before", function*({ sql, store }) {
    const waiting = yield* Effect.forkChild(store.settledBeyond(0n, Duration.minutes(5)), { startImmediately: true })
    yield* sql.withTransaction(Effect.gen(function*() {
      yield* store.append([event("a")])
      assert.strictEqual(yield* store.headPosition, 0n)
    }))
    assert.strictEqual(yield* Fiber.join(waiting), 1n)
  })

  test("an append announces the hash of its aggregate", function*({ sql, store }) {
    const messages = yield* (yield* Listener).subscribe("pupsourcing_events")
    assert.strictEqual(yield* Queue.take(messages), "")
    const created = new Date("2020-01-01T00:00:00Z")
    for (
      const append of [
        store.append([event("ä"), event("ä")]),
        store.append([event("b", { createdAt: created })]),
        sql.withTransaction(store.append([event("c")]))
      ]
    ) {
      const { positions } = yield* append
      const after = positions[0]! - 1n
      const { hashes } = yield* store.read({
        after,
        upTo: yield* store.settledBeyond(after, Duration.millis(50)),
        hashes: true
      })
      assert.strictEqual(yield* Queue.take(messages), `appended:${hashes![0]}`)
    }
  })

  test("an append wakes the readers of its range in other processes", function*({ store }) {
    const { positions } = yield* store.append([event("a")])
    const upTo = yield* store.settledBeyond(0n, Duration.millis(50))
    const hash = (yield* store.read({ after: 0n, upTo, hashes: true })).hashes![0]!
    yield* Effect.gen(function*() {
      const second = yield* EventStore
      for (let turn = 0n; turn < 3n; turn++) {
        const after = positions[0]! + turn
        const waiting = yield* Effect.forkChild(
          second.settledBeyond(after, Duration.minutes(5), { start: hash, end: hash + 1 }),
          { startImmediately: true }
        )
        yield* store.append([event("a")])
        assert.strictEqual(yield* Fiber.join(waiting), after + 1n)
      }
    }).pipe(Effect.provide(EventStores.stores()))
  })

  test("an append wakes other processes; without LISTEN they poll", function*({ store }) {
    yield* Effect.gen(function*() {
      const second = yield* EventStore
      const waiting = yield* Effect.forkChild(second.settledBeyond(0n, Duration.minutes(5)), {
        startImmediately: true
      })
      yield* store.append([event("a")])
      assert.strictEqual(yield* Fiber.join(waiting), 1n)
    }).pipe(Effect.provide(EventStores.stores()))
    yield* Effect.gen(function*() {
      const third = yield* EventStore
      const waiting = yield* Effect.forkChild(third.settledBeyond(1n, Duration.millis(50)), {
        startImmediately: true
      })
      yield* store.append([event("a")])
      assert.strictEqual(yield* Fiber.join(waiting), 2n)
    }).pipe(Effect.provide(EventStores.stores({ listen: false })))
  })

  test("an append wakes the readers of its own process without LISTEN", function*() {
    yield* Effect.gen(function*() {
      const store = yield* EventStore
      const waiting = yield* waitBeyond(0n, false)
      yield* store.append([event("a")])
      assert.strictEqual(yield* Fiber.join(waiting), 1n)
    }).pipe(Effect.provide(EventStores.stores({ listen: false })))
  })

  test("events that the client cannot receive are reported, and the events around them are read", {
    client: { maxMessageSize: 1024 * 1024 }
  }, function*({ store }) {
    const small = new Uint8Array(10)
    const { positions } = yield* store.append([
      event("a", { payload: small }),
      event("a", { payload: new Uint8Array(900_000) }),
      event("a", { payload: small }),
      event("a", { payload: small, metadata: { long: "x".repeat(2_000_000) } }),
      event("a", { payload: small })
    ])
    const first = yield* store.read({ after: 0n })
    assert.deepStrictEqual(first.events.map(({ globalPosition }) => globalPosition), [positions[0]])
    assert.strictEqual(first.position, positions[0])
    const payload = yield* Effect.flip(store.read({ after: first.position }))
    assert(payload._tag === "EventTooLarge")
    assert.strictEqual(payload.position, positions[1])
    assert.isAtLeast(payload.bytes, 900_000)
    assert.strictEqual(label(payload), "type Happened, Test \"a\", version 2")
    assert.include(payload.message, "maxMessageSize")
    const between = yield* store.read({ after: positions[1]! })
    assert.deepStrictEqual(between.events.map(({ globalPosition }) => globalPosition), [positions[2]])
    const metadata = yield* Effect.flip(store.read({ after: between.position }))
    assert(metadata._tag === "EventTooLarge")
    assert.strictEqual(metadata.position, positions[3])
    const last = yield* store.read({ after: positions[3]!, filter: { aggregateTypes: ["Test"] } })
    assert.deepStrictEqual(last.events.map(({ globalPosition }) => globalPosition), [positions[4]])
  })

  test("rows of mixed sizes fill pages up to the byte limit", function*({ store }) {
    const sizes = Array.from({ length: 300 }, (_, index) => index % 10 === 9 ? 60_000 : 100)
    const { positions } = yield* store.append(sizes.map((size) => event("a", { payload: new Uint8Array(size) })))
    const delivered: Array<bigint> = []
    const pages: Array<number> = []
    let after = 0n
    while (after < positions[299]!) {
      const page = yield* store.read({ after, bytes: 200_000 })
      delivered.push(...page.events.map(({ globalPosition }) => globalPosition))
      pages.push(page.events.reduce((sum, { payload }) => sum + payload.length, 0))
      after = page.position
    }
    assert.deepStrictEqual(delivered, positions)
    assert.isAtMost(Math.max(...pages), 200_000)
    assert.isAtMost(pages.length, 13)
  })

  test("stops reading from a server that became a replica", {
    client: { startupParameters: { search_path: "public, replica, pg_catalog" } },
    alter: (sql) =>
      Effect.andThen(
        sql`CREATE SCHEMA replica`,
        sql`CREATE FUNCTION replica.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT false'`
      )
  }, function*({ sql, store }) {
    yield* store.append([event("a"), event("a")])
    const upTo = yield* store.settledPosition
    assert.strictEqual((yield* store.read({ after: 0n, upTo })).events.length, 2)
    yield* sql`CREATE OR REPLACE FUNCTION replica.pg_is_in_recovery() RETURNS boolean LANGUAGE sql AS 'SELECT true'`
    assert.strictEqual(reasonOf(yield* Effect.flip(store.read({ after: 0n, upTo })))._tag, "ReadOnlyDatabase")
    assert.strictEqual(
      reasonOf(yield* Effect.flip(store.settledBeyond(upTo, Duration.millis(20))))._tag,
      "ReadOnlyDatabase"
    )
    // A replica that has more WAL to replay would return an outdated head.
    assert.strictEqual(reasonOf(yield* Effect.flip(store.headPosition))._tag, "ReadOnlyDatabase")
  })

  test("reads all events after their positions restart from the beginning", function*({ sql, store }) {
    const upTo = () => store.settledBeyond(0n, Duration.seconds(1))
    yield* store.append(Array.from({ length: 10 }, () => event("a")))
    assert.strictEqual((yield* store.read({ after: 0n, upTo: yield* upTo() })).position, 10n)
    yield* sql`TRUNCATE events, aggregate_heads RESTART IDENTITY`
    yield* store.append([event("a"), event("a"), event("a")])
    const page = yield* store.read({ after: 0n, upTo: yield* upTo() })
    assert.strictEqual(page.events.length, 3)
    assert.strictEqual(page.position, 3n, "the position does not reach the previous end")
    assert.strictEqual(yield* store.settledPosition, 3n)
    // Set back to positions whose events were deleted.
    yield* sql`TRUNCATE events, aggregate_heads`
    yield* sql`SELECT setval(pg_get_serial_sequence('events', 'global_position'), 1, false)`
    yield* store.append([event("a")])
    assert.strictEqual(yield* store.settledPosition, 1n)
  })

  test("works with other table names and another schema", {
    schema: "Mine",
    tables: { events: "happenings", aggregateHeads: "heads" },
    alter: () => Effect.void
  }, function*({ sql, store }) {
    yield* store.append([event("a")], { expectedVersion: "none" })
    assert.strictEqual((yield* store.read({ after: 0n })).events.length, 1)
    assert.strictEqual((yield* sql`SELECT FROM "Mine"."happenings"`).length, 1)
    const gap = sql.withTransaction(Effect.andThen(store.append([event("a")]), Effect.fail("no")))
    yield* Effect.flip(gap)
    yield* store.append([event("b")])
    assert.strictEqual(yield* store.settledBeyond(1n, Duration.seconds(1)), 3n)
  })

  test(
    "a role with SELECT only can read and list open writers; its appends are refused with the missing grant",
    function*({ sql, url }) {
      const role = yield* Roles.make
      yield* sql`GRANT SELECT ON orchestrator_meta, events, aggregate_heads TO ${sql(role.name)}`
      const writer = yield* PlainWriters.make(url, "importer")
      const admin = yield* EventStore
      const first = yield* admin.append([event("a")])
      yield* Effect.gen(function*() {
        const store = yield* EventStore
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        yield* writer.sql`BEGIN`
        yield* writer.insert(1)
        const later = yield* admin.append([event("b")])
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        assert.strictEqual((yield* store.openWriters)[0]?.application, "importer")
        yield* writer.sql`ROLLBACK`
        assert.strictEqual(yield* store.settledBeyond(first.positions[0]!, Duration.seconds(9)), later.positions[0])
        assert.strictEqual((yield* store.read({ after: 0n })).events.length, 2)
        const refused = yield* Effect.flip(store.append([event("a")]))
        assert(refused._tag === "StoreError" && refused.reason._tag === "StatementFailed")
        assert.strictEqual(refused.reason.code, "42501")
        assert.include(refused.message, "Grant")
      }).pipe(
        Effect.provide(Layer.provide(EventStores.stores(), PgClient.layer({ url: Redacted.make(role.url.href) })))
      )
    }
  )
})
