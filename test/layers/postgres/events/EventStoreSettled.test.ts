/** The settled position under load: no event is lost, duplicated or out of order, whatever the writers do. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import { describe } from "vitest"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as PlainWriters from "../../../support/PlainWriters.ts"
import * as Servers from "../../../support/Servers.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"

const { event } = EventStores

/** Follows the events up to one of type `End` and returns the positions that it read. */
const follow = Effect.fnUntraced(function*(options: { readonly retry?: boolean; readonly limit?: number } = {}) {
  const store = yield* EventStore
  const delivered: Array<bigint> = []
  let position = 0n
  const step = Effect.gen(function*() {
    const upTo = yield* store.settledBeyond(position, Duration.millis(500))
    const page = yield* store.read({ after: position, upTo, limit: options.limit ?? 500 })
    assert.isTrue(page.position >= position)
    for (const event of page.events) {
      assert.isTrue(event.globalPosition > (delivered[delivered.length - 1] ?? 0n), "positions grow")
      delivered.push(event.globalPosition)
    }
    position = page.position
    return page.events.some(({ eventType }) => eventType === "End")
  })
  const follow = options.retry === true
    ? Effect.retry(step, { while: (error) => reasonOf(error)._tag === "DatabaseUnavailable" })
    : step
  while (!(yield* follow));
  return delivered
})

const end = Effect.flatMap(EventStore, (store) => store.append([event("end", { eventType: "End" })]))

const stored = Effect.gen(function*() {
  const sql = yield* PgClient.PgClient
  const rows = yield* sql<{ readonly position: bigint }>`SELECT global_position AS position FROM events ORDER BY 1`
  return rows.map(({ position }) => position)
})

const assertSame = (delivered: ReadonlyArray<bigint>, positions: ReadonlyArray<bigint>) => {
  const known = new Set(delivered)
  const lost = positions.filter((position) => !known.has(position))
  assert.strictEqual(lost.length, 0, `lost ${lost.length} of ${positions.length}, the first at ${lost[0]}`)
  assert.deepStrictEqual(delivered, positions)
}

const onEach = (
  name: string,
  serverUrl: Effect.Effect<string | undefined>,
  tags: Array<string> = []
) => {
  const test = EventStores.storeTestOn(serverUrl)

  describe(`settled position on ${name}`, { tags }, () => {
    test("with 16 writers of all kinds, no event is lost, duplicated or out of order", function*({ store, url }) {
      yield* PlainWriters.createFunction(yield* PgClient.PgClient)
      const follower = yield* Effect.forkChild(follow())
      // A reader that is always present but never waits must not affect the result.
      const observer = yield* Effect.forkChild(
        Effect.forever(Effect.andThen(store.settledPosition, Effect.sleep(20)))
      )
      yield* Effect.all([
        PlainWriters.load(url, { writers: 13, transactions: 200 }),
        Effect.forEach(
          Array.from({ length: 1500 }, (_, index) => index),
          (index) => store.append([event(`hot-${index % 8}`), event(`hot-${index % 8}`)]),
          { concurrency: 3, discard: true }
        )
      ], { concurrency: "unbounded" })
      yield* end
      const delivered = yield* Fiber.join(follower)
      yield* Fiber.interrupt(observer)
      const positions = yield* stored
      assert.isAbove(positions.length, 10_000)
      assertSame(delivered, positions)
    })

    test("a transaction that has not appended does not hold readers back", function*({ store, url }) {
      const other = yield* PlainWriters.make(url)
      yield* other.sql`BEGIN ISOLATION LEVEL REPEATABLE READ`
      yield* other.sql`CREATE TABLE unrelated AS SELECT max(global_position) FROM events`
      // Leaves a gap, so that a proof is needed.
      const gap = yield* PlainWriters.make(url)
      yield* gap.sql`BEGIN`
      yield* gap.insert(3)
      yield* gap.sql`ROLLBACK`
      const appended = yield* store.append([event("a")])
      assert.strictEqual(yield* store.settledBeyond(0n, Duration.seconds(10)), appended.positions[0])
      assert.deepStrictEqual(yield* store.openWriters, [])
      yield* other.sql`ROLLBACK`
    })

    test(
      "an open writer holds back later events and is reported until its transaction ends",
      function*({ store, url }) {
        const first = yield* store.append([event("a")])
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        const writer = yield* PlainWriters.make(url, "slow importer")
        yield* writer.sql`BEGIN`
        yield* writer.insert(1)
        const pid = (yield* writer.sql<{ readonly pid: number }>`SELECT pg_backend_pid() AS pid`)[0]?.pid
        const later = yield* store.append([event("b")])
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        assert.strictEqual(yield* store.headPosition, later.positions[0])
        const waiting = yield* Effect.forkChild(store.settledBeyond(first.positions[0]!, Duration.seconds(20)))
        assert.isUndefined(
          yield* Effect.timeoutOrElse(Fiber.join(waiting), {
            duration: "300 millis",
            orElse: () => Effect.void
          })
        )
        const writers = yield* store.openWriters
        assert.deepStrictEqual(writers.map(({ application, pid }) => ({ application, pid })), [
          { application: "slow importer", pid }
        ])
        assert.isAbove(Duration.toMillis(writers[0]!.openFor), 200)
        const unread = yield* store.read({ after: 0n })
        assert.deepStrictEqual(unread.events.map((event) => event.aggregateId), ["a"])
        // Long enough that only the next poll, at most 250 ms away, can end the wait.
        yield* writer.sql`COMMIT`
        assert.isTrue((yield* Fiber.join(waiting)) >= later.positions[0]!)
        const rest = yield* store.read({ after: first.positions[0]! })
        assert.strictEqual(rest.events.length, 2)
        assert.deepStrictEqual(yield* store.openWriters, [])
      }
    )

    test(
      "an open writer holds readers back although the event after its own is deleted",
      function*({ sql, store, url }) {
        const first = yield* store.append([event("a")])
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        const writer = yield* PlainWriters.make(url)
        yield* writer.sql`BEGIN`
        yield* writer.insert(1)
        const later = yield* store.append([event("b")])
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        yield* sql`DELETE FROM events WHERE global_position = ${later.positions[0]!}`
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        yield* writer.sql`COMMIT`
        assert.strictEqual((yield* store.read({ after: first.positions[0]! })).events.length, 1)
      }
    )

    test(
      "a prepared transaction holds readers back across its preparation, and is reported",
      function*({ store, url }) {
        const first = yield* store.append([event("a")])
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        const gid = `orphan-${process.pid}-${url.slice(-8)}`
        const writer = yield* PlainWriters.make(url)
        yield* writer.sql`BEGIN`
        yield* writer.insert(1)
        const later = yield* store.append([event("b")])
        // The transaction is prepared after the proof has begun with the session's own id among the holders.
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        yield* Effect.acquireRelease(
          writer.sql.unsafe(`PREPARE TRANSACTION '${gid}'`).unprepared,
          // Already committed unless the test failed.
          () => Effect.ignore(writer.sql.unsafe(`ROLLBACK PREPARED '${gid}'`).unprepared)
        )
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        assert.strictEqual(yield* store.settledPosition, first.positions[0])
        const [open] = yield* store.openWriters
        assert.strictEqual(open?.pid, undefined)
        assert.include(open?.application, gid)
        yield* writer.sql.unsafe(`COMMIT PREPARED '${gid}'`).unprepared
        assert.isTrue((yield* store.settledBeyond(first.positions[0]!, Duration.seconds(10))) >= later.positions[0]!)
        assert.strictEqual((yield* store.read({ after: 0n })).events.length, 3)
      }
    )

    test(
      "while the reader's session is killed repeatedly, no event is lost, duplicated or out of order",
      function*({ sql, url }) {
        yield* PlainWriters.createFunction(sql)
        const follower = yield* Effect.forkChild(follow({ retry: true, limit: 50 }))
        let kills = 0
        const killer = yield* Effect.forkChild(Effect.forever(Effect.gen(function*() {
          const killed = yield* sql`
          SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name = 'pupsourcing-orchestrator reader'`
          kills += killed.length
          yield* Effect.sleep(37)
        })))
        yield* PlainWriters.load(url, { writers: 6, transactions: 60 })
        yield* end
        const delivered = yield* Fiber.join(follower)
        yield* Fiber.interrupt(killer)
        assert.isAbove(kills, 5)
        assertSame(delivered, yield* stored)
      }
    )

    test("a proof from a lost connection is repeated before anything is read", function*({ sql, store, url }) {
      const writer = yield* PlainWriters.make(url)
      yield* store.append([event("a")])
      yield* writer.sql`BEGIN`
      yield* writer.insert(1)
      yield* writer.sql`ROLLBACK`
      const { positions } = yield* store.append([event("b")])
      const upTo = yield* store.settledPosition
      assert.strictEqual(upTo, positions[0])
      yield* writer.sql`BEGIN`
      yield* writer.insert(1)
      yield* sql`
          SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name = 'pupsourcing-orchestrator reader'`
      const doubtful = yield* store.read({ after: 0n, upTo })
      assert.deepStrictEqual(doubtful.events.map(({ aggregateId }) => aggregateId), ["a"])
      assert.strictEqual(doubtful.position, upTo - 2n)
      yield* writer.sql`ROLLBACK`
      assert.strictEqual((yield* store.read({ after: 0n, upTo })).events.length, 2)
    })

    test(
      "a checkpoint proves nothing to other readers, because it may have been written by hand",
      function*({ sql, store, url }) {
        const writer = yield* PlainWriters.make(url)
        const read = (after: bigint, upTo?: bigint) =>
          Effect.map(store.read({ after, upTo }), ({ events }) => events.map(({ globalPosition }) => globalPosition))
        yield* store.append([event("a")])
        yield* writer.sql`BEGIN`
        yield* writer.insert(1)
        yield* store.append([event("b")])
        // First one projection alone, then beside a retired one and one beyond the last event.
        for (const rows of [[["raised", 3n]], [["retired", 0n], ["ahead", 900n]]] as const) {
          for (const [projection, position] of rows) {
            yield* sql`INSERT INTO orchestrator_checkpoints
              (projection_name, range_start, range_end, position, replica_set, filter)
              VALUES (${projection}, 0, 4294967296, ${position}::bigint, 'set', '{}')`
          }
          yield* sql`SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'pupsourcing-orchestrator reader'`
          assert.deepStrictEqual(yield* read(0n, 3n), [1n])
        }
        // The range whose position was raised skips those events and reads the following ones.
        yield* store.append([event("c")])
        assert.strictEqual(yield* store.settledBeyond(3n, Duration.seconds(10)), 4n)
        assert.deepStrictEqual(yield* read(3n, 4n), [4n])
        // A gap above its position holds it back like every other reader.
        const other = yield* PlainWriters.make(url)
        yield* other.sql`BEGIN`
        yield* other.insert(1)
        yield* store.append([event("d")])
        assert.deepStrictEqual(yield* read(4n), [])
        const waiting = yield* Effect.forkChild(store.settledBeyond(4n, Duration.seconds(10)))
        yield* writer.sql`COMMIT`
        assert.deepStrictEqual(yield* read(0n, 4n), [1n, 2n, 3n, 4n])
        assert.isUndefined(waiting.pollUnsafe())
        yield* other.sql`COMMIT`
        assert.strictEqual(yield* Fiber.join(waiting), 6n)
        assert.deepStrictEqual(yield* read(0n), [1n, 2n, 3n, 4n, 5n, 6n])
      }
    )

    test("a long history is settled at once, including its gaps", function*({ sql, store }) {
      yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        SELECT 'past', 'Past', i::text, 1, gen_random_uuid(), 'Happened', '' FROM generate_series(1, 60000) AS i`
      yield* sql`DELETE FROM events WHERE global_position % 7 = 0`
      assert.strictEqual(yield* store.settledBeyond(0n, Duration.seconds(1)), yield* store.headPosition)
    })

    test("follows positions that an identity column generates", {
      alter: (sql) =>
        Effect.andThen(
          sql`ALTER TABLE events ALTER COLUMN global_position DROP DEFAULT`,
          sql`ALTER TABLE events ALTER COLUMN global_position ADD GENERATED BY DEFAULT AS IDENTITY`
        )
    }, function*({ store, url }) {
      const first = yield* store.append([event("a")])
      assert.strictEqual(yield* store.settledPosition, first.positions[0])
      const writer = yield* PlainWriters.make(url)
      yield* writer.sql`BEGIN`
      yield* writer.insert(1)
      yield* store.append([event("b")])
      assert.strictEqual(yield* store.settledPosition, first.positions[0])
      yield* writer.sql`ROLLBACK`
      assert.strictEqual(yield* store.settledPosition, (first.positions[0] ?? 0n) + 2n)
    })

    test("refuses a sequence with a cache, with the remedy", {
      alter: (sql) => sql`ALTER SEQUENCE events_global_position_seq CACHE 20`
    }, function*({ store }) {
      yield* store.append([event("a")])
      const error = yield* Effect.flip(store.settledBeyond(0n, Duration.seconds(1)))
      assert.strictEqual(reasonOf(error)._tag, "UnsupportedDatabase")
      assert.include(error.message, "CACHE 20")
      assert.include(error.message, "ALTER SEQUENCE")
    })

    test("detects a cache that is set later with the next proof", function*({ sql, store, url }) {
      yield* store.append([event("a")])
      yield* store.settledPosition
      yield* sql`ALTER SEQUENCE events_global_position_seq CACHE 5`
      const gap = yield* PlainWriters.make(url)
      yield* gap.sql`BEGIN`
      yield* gap.insert(1)
      yield* gap.sql`ROLLBACK`
      yield* store.append([event("b")])
      assert.strictEqual(reasonOf(yield* Effect.flip(store.settledPosition))._tag, "UnsupportedDatabase")
    })

    test("refuses explicit positions beyond the sequence, with the remedy", function*({ sql, store }) {
      yield* sql`
        INSERT INTO events (global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES (1000, 'x', 'X', 'x', 1, gen_random_uuid(), 'Happened', '')`
      const error = yield* Effect.flip(store.settledPosition)
      assert.strictEqual(reasonOf(error)._tag, "UnsupportedDatabase")
      assert.include(error.message, "setval")
    })

    test(
      "treats a sequence set to its next value like one that has returned its last value",
      function*({ sql, store }) {
        yield* store.append([event("a"), event("a")])
        yield* sql`SELECT setval('events_global_position_seq', 3, false)`
        assert.strictEqual(yield* store.settledPosition, 2n)
        assert.strictEqual((yield* store.read({ after: 0n })).events.length, 2)
        const rows = yield* sql<{ readonly row: string }>`DELETE FROM events RETURNING events::text AS row`
        // A checkpoint at the last position is not ahead of a table whose events were deleted.
        assert.strictEqual((yield* store.read({ after: 2n })).position, 2n)
        assert.strictEqual((yield* Effect.flip(store.read({ after: 3n })))._tag, "CheckpointAheadOfEvents")
        yield* Effect.forEach(rows, ({ row }) => sql`INSERT INTO events SELECT (${row}::text::events).*`)
        yield* sql`SELECT setval('events_global_position_seq', 2, false)`
        assert.strictEqual(reasonOf(yield* Effect.flip(store.settledPosition))._tag, "UnsupportedDatabase")
      }
    )

    test("reports a sequence behind the checkpoint instead of waiting", function*({ sql, store }) {
      const database = yield* Database
      const { positions } = yield* store.append([event("a"), event("a"), event("a")])
      const waiting = yield* Effect.forkChild(Effect.flip(store.settledBeyond(positions[2]!, Duration.millis(20))))
      yield* sql`TRUNCATE ${database.table("events")} RESTART IDENTITY`
      const error = yield* Fiber.join(waiting)
      assert(error._tag === "CheckpointAheadOfEvents")
      assert.deepStrictEqual([error.position, error.lastPosition], [positions[2], 0n])
    })
  })
}

onEach("the test server", Effect.undefined)
onEach("PostgreSQL 14", Servers.postgres14(), ["long"])

const test = EventStores.storeTest

const append = Effect.fnUntraced(function*(aggregateId: string) {
  const appended = yield* (yield* EventStore).append([event(aggregateId)])
  return appended.positions[0]!
})

const poll = Duration.millis(50)

describe("a reader", () => {
  test("a checkpoint ahead of the events does not advance other readers", function*({ store }) {
    const first = yield* append("a")
    assert.strictEqual((yield* Effect.flip(store.settledBeyond(1000n, poll)))._tag, "CheckpointAheadOfEvents")
    const second = yield* append("a")
    const upTo = yield* store.settledBeyond(first, poll)
    assert.strictEqual(upTo, second)
    const page = yield* store.read({ after: first, upTo })
    assert.strictEqual(page.position, second)
  })

  test("a new reader starts at the settled position, not at the first gap of the history", function*({ sql }) {
    yield* append("a")
    yield* Effect.exit(sql.withTransaction(Effect.andThen(append("b"), Effect.fail("no"))))
    const before = yield* append("a")
    const open = yield* Deferred.make<void>()
    const done = yield* Deferred.make<void>()
    yield* Effect.forkChild(sql.withTransaction(
      Effect.andThen(append("c"), Effect.andThen(Deferred.succeed(open, undefined), Deferred.await(done)))
    ))
    yield* Deferred.await(open)
    yield* append("a")
    const found = yield* Effect.gen(function*() {
      const store = yield* EventStore
      yield* Effect.forkChild(Effect.andThen(Effect.sleep("1 second"), Deferred.succeed(done, undefined)))
      return yield* store.settledPosition
    }).pipe(Effect.provide(EventStores.stores()))
    assert.isAtLeast(Number(found), Number(before))
  })
})
