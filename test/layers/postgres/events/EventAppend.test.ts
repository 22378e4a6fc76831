/**
 * What an append reports when its answer is lost, when tables, triggers and sequences differ from what the library
 * created, and when other writers append to the same aggregate.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import { DeadlockError, SerializationError, SqlError } from "effect/sql/SqlError"
import { describe } from "vitest"
import { StoreError } from "../../../../src/schema/Errors.ts"
import type { NewEvent, StreamId } from "../../../../src/schema/Event.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import { TestDatabase } from "../../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as PlainWriters from "../../../support/PlainWriters.ts"
import * as Proxy from "../../../support/Proxy.ts"
import * as Seam from "../../../support/Seam.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"

const stream: StreamId = { boundedContext: "test", aggregateType: "Test", aggregateId: "a" }

const event = (rest: Partial<NewEvent> = {}): NewEvent => ({
  ...stream,
  eventType: "Happened",
  payload: {},
  ...rest
})

const newId = (): string => globalThis.crypto.randomUUID()

const test = EventStores.storeTest

const versions = Effect.gen(function*() {
  const events = yield* (yield* EventStore).readStream(stream)
  return events.map((event) => Number(event.aggregateVersion))
})

/** A proxy in front of the test's database, and the URL through it. */
const proxied = Effect.gen(function*() {
  const url = new URL((yield* TestDatabase).url)
  const proxy = yield* Proxy.make({ host: url.hostname, port: Number(url.port) })
  url.hostname = "127.0.0.1"
  url.port = String(proxy.port)
  return { proxy, url: url.href }
})

describe("an append whose answer is lost", () => {
  test("reports that it may have been committed, and a repeat with its event ids resolves it", function*() {
    const { proxy, url } = yield* proxied
    yield* Effect.gen(function*() {
      const store = yield* EventStore
      const events = [event({ eventId: newId() }), event({ eventId: newId() })]
      for (const expectedVersion of ["any", "none", 0n] as const) {
        yield* proxy.cutAtEnd
        const lost = yield* Effect.flip(store.append(events.slice(0, 1), { expectedVersion }))
        if (lost._tag === "DuplicateEvent") continue
        assert(lost._tag === "StoreError" && lost.reason._tag === "DatabaseUnavailable")
        assert.isTrue(lost.mayHaveCommitted)
        assert.include(lost.message, "may have been committed")
        const repeated = yield* Effect.flip(store.append(events.slice(0, 1), { expectedVersion }))
        assert.strictEqual(repeated._tag, "DuplicateEvent")
      }
      assert.deepStrictEqual(yield* versions, [1])
    }).pipe(Effect.provide(
      EventStores.stores({ listen: false, presence: false }).pipe(
        Layer.provide(PgClient.layer({ url: Redacted.make(url), maxConnections: 1 }))
      )
    ))
  })

  test(
    "reports an unknown outcome when the server ends the session, but not when the server refuses the statement",
    function*({ store }) {
      const other = yield* PlainWriters.make((yield* TestDatabase).url)
      yield* store.append([event()])
      yield* other.sql`BEGIN`
      yield* other.sql`SELECT FROM aggregate_heads FOR UPDATE`
      const appending = yield* Effect.forkChild(Effect.flip(store.append([event()])), { startImmediately: true })
      const ended = other.sql`
        SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock'`
      yield* TimeLimits.waitUntil("the session is ended", ended, (rows) => rows.length > 0)
      const lost = yield* Fiber.join(appending)
      assert(lost._tag === "StoreError" && lost.reason._tag === "DatabaseUnavailable")
      assert.isTrue(lost.mayHaveCommitted)
      yield* other.sql`ROLLBACK`
      yield* other.sql`ALTER TABLE events ADD CHECK (event_type <> 'Refused')`
      const refused = yield* Effect.flip(store.append([event({ eventType: "Refused" })]))
      assert(refused._tag === "StoreError" && refused.reason._tag === "StatementFailed")
      assert.isFalse(refused.mayHaveCommitted)
      assert.notInclude(refused.message, "may have been committed")
      assert.deepStrictEqual(yield* versions, [1])
    }
  )

  test("reports no unknown outcome if it was never sent", function*() {
    const { proxy, url } = yield* proxied
    yield* Effect.gen(function*() {
      const store = yield* EventStore
      yield* store.append([event()])
      yield* proxy.refuse(true)
      // The first attempt may still use the connection that was just cut.
      yield* Effect.flip(store.append([event()]))
      const refused = yield* Effect.flip(store.append([event()]))
      assert(refused._tag === "StoreError" && refused.reason._tag === "DatabaseUnavailable")
      assert.isFalse(refused.mayHaveCommitted)
    }).pipe(Effect.provide(
      EventStores.stores({ listen: false, presence: false }).pipe(
        Layer.provide(PgClient.layer({ url: Redacted.make(url), maxConnections: 1 }))
      )
    ))
  })

  test("is rolled back inside a transaction", function*({ url }) {
    let lose = false
    const hooks: Seam.Hooks = {
      around: (statement, send) =>
        lose && statement.text.includes("INSERT INTO") ? Effect.andThen(send, statement.lose) : send
    }
    const client = Seam.client({ url: Redacted.make(url) }, hooks)
    yield* Effect.gen(function*() {
      const store = yield* EventStore
      const sql = yield* PgClient.PgClient
      const lost = yield* Deferred.make<unknown>()
      lose = true
      yield* Effect.exit(sql.withTransaction(
        Effect.tapError(store.append([event()]), (error) => Deferred.succeed(lost, error))
      ))
      const error = yield* Deferred.await(lost)
      assert(error instanceof StoreError && error.reason._tag === "DatabaseUnavailable")
      assert.isFalse(error.mayHaveCommitted)
      lose = false
      assert.deepStrictEqual(yield* versions, [])
      // Outside a transaction, the same loss comes after the commit.
      lose = true
      const alone = yield* Effect.flip(store.append([event()]))
      lose = false
      assert(alone._tag === "StoreError" && alone.reason._tag === "DatabaseUnavailable" && alone.mayHaveCommitted)
      assert.deepStrictEqual(yield* versions, [1])
    }).pipe(Effect.provide(Layer.provideMerge(Seam.stores(hooks, { listen: false, presence: false }), client)))
  })
})

describe("an append where heads and events disagree", () => {
  const headsAt = (version: number) =>
    Effect.flatMap(PgClient.PgClient, (sql) => sql`UPDATE aggregate_heads SET aggregate_version = ${version}`)
  const remove = (from: number) =>
    Effect.flatMap(PgClient.PgClient, (sql) => sql`DELETE FROM events WHERE aggregate_version >= ${from}`)
  const head = Effect.gen(function*() {
    const [row] = yield* (yield* PgClient.PgClient)<{ readonly version: bigint }>`
      SELECT aggregate_version AS version FROM aggregate_heads`
    return Number(row?.version)
  })

  test("continues after the last existing event, and corrects the head", function*({ store }) {
    const positions = (yield* store.append([event(), event(), event()])).positions
    yield* remove(2)
    const conflict = yield* Effect.flip(store.append([event()], { expectedVersion: 3n }))
    assert.deepInclude(conflict, { _tag: "ConcurrencyConflict", expected: "3", actual: 1n })
    const second = yield* store.append([event()], { expectedVersion: 1n })
    assert.strictEqual(second.lastVersion, 2n)
    assert.isTrue(second.positions[0]! > positions[2]!, "positions are not reissued")
    assert.strictEqual(yield* head, 2)
    yield* remove(2)
    assert.strictEqual((yield* store.append([event(), event()])).lastVersion, 3n)
    yield* remove(1)
    assert.strictEqual((yield* store.append([event()], { expectedVersion: "none" })).lastVersion, 1n)
    yield* headsAt(7)
    const within = yield* (yield* PgClient.PgClient).withTransaction(Effect.gen(function*() {
      yield* store.append([event()], { expectedVersion: 1n })
      return yield* store.append([event()], { expectedVersion: 2n })
    }))
    assert.strictEqual(within.lastVersion, 3n)
    assert.deepStrictEqual([yield* versions, yield* head], [[1, 2, 3], 3])
  })

  test("assigns versions without a gap to concurrent appends", function*({ store }) {
    yield* store.append([event(), event(), event()])
    for (const wrong of [9, 1]) {
      const before = (yield* versions).length
      yield* headsAt(wrong)
      const results = yield* Effect.forEach(
        Array.from({ length: 8 }),
        () => Effect.result(store.append([event(), event()])),
        { concurrency: "unbounded" }
      )
      const appended = results.filter((result) => result._tag === "Success").length
      assert.isAtLeast(appended, 1)
      for (const result of results) {
        if (result._tag === "Failure") assert.strictEqual(result.failure._tag, "ConcurrencyConflict")
      }
      const after = before + 2 * appended
      assert.deepStrictEqual(yield* versions, Array.from({ length: after }, (_, index) => index + 1))
      assert.strictEqual(yield* head, after)
      const once = yield* Effect.forEach(
        Array.from({ length: 8 }),
        () => Effect.result(store.append([event()], { expectedVersion: BigInt(after) })),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(once.filter((result) => result._tag === "Success").length, 1)
    }
  })
})

describe("an append that the database refuses", () => {
  /** The error of an append, alone and inside a transaction; asserts that nothing was stored. */
  const refused = Effect.fnUntraced(function*(...events: ReadonlyArray<NewEvent>) {
    const store = yield* EventStore
    const sql = yield* PgClient.PgClient
    const before = yield* sql`SELECT * FROM aggregate_heads`
    const stored = yield* versions
    const alone = yield* Effect.flip(store.append(events))
    const within = yield* Effect.flip(sql.withTransaction(store.append(events)))
    assert.strictEqual(within._tag, alone._tag)
    assert.deepStrictEqual(yield* sql`SELECT * FROM aggregate_heads`, before)
    assert.deepStrictEqual(yield* versions, stored)
    return alone
  })

  const run = (...statements: ReadonlyArray<string>) =>
    Effect.flatMap(PgClient.PgClient, (sql) => Effect.forEach(statements, (text) => sql.unsafe(text).unprepared))

  const trigger = (table: string, body: string, when = "BEFORE INSERT OR UPDATE") =>
    run(
      `CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN ${body} END $$`,
      `CREATE TRIGGER act ${when} ON ${table} FOR EACH ROW EXECUTE FUNCTION act()`
    )

  test("reports the sequence, and how to set it, if a position is in use", function*({ store }) {
    yield* store.append([event(), event()])
    const behind = "SELECT setval(pg_get_serial_sequence('events', 'global_position'), 1, false)"
    yield* run(behind)
    const alone = yield* Effect.flip(store.append([event()]))
    assert(alone._tag === "StoreError" && alone.reason._tag === "UnsupportedDatabase")
    assert.include(alone.message, "issues positions that are in use")
    yield* run(behind, "ALTER TABLE events RENAME CONSTRAINT events_pkey TO aggregate_version_event_id")
    const error = yield* Effect.flip((yield* PgClient.PgClient).withTransaction(store.append([event()])))
    assert.strictEqual(reasonOf(error)._tag, "UnsupportedDatabase")
    const remedy = run(alone.message.slice(alone.message.indexOf("SELECT setval")))
    yield* remedy
    assert.strictEqual((yield* store.append([event()])).lastVersion, 3n)
    // An import with explicit positions: those below are free, but readers have passed them.
    yield* run(`
        INSERT INTO events
          (global_position, bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES (1000, 'test', 'Test', 'imported', 1, gen_random_uuid(), 'Imported', '')`)
    for (const expectedVersion of [3n, "any"] as const) {
      const below = yield* Effect.flip(store.append([event()], { expectedVersion }))
      assert.strictEqual(reasonOf(below)._tag, "UnsupportedDatabase")
    }
    yield* remedy
    assert.deepStrictEqual((yield* store.append([event()], { expectedVersion: 3n })).positions, [1001n])
  })

  test("reports a constraint of the application by name, neither as a conflict nor as a duplicate", function*({ sql }) {
    yield* (yield* EventStore).append([event({ correlationId: "c" })])
    for (
      const [code, constraint, statement] of [
        ["23505", "event_id", "CREATE UNIQUE INDEX event_id ON events (correlation_id)"],
        ["23505", "aggregate_version", "CREATE UNIQUE INDEX aggregate_version ON events (lower(correlation_id))"],
        [
          "23505",
          "one_payload",
          "CREATE UNIQUE INDEX one_payload ON events (payload) WHERE event_type = 'Happened'"
        ],
        ["23P01", "apart", "ALTER TABLE events ADD CONSTRAINT apart EXCLUDE USING btree (correlation_id WITH =)"],
        ["23514", "typed", "ALTER TABLE events ADD CONSTRAINT typed CHECK (correlation_id <> 'c') NOT VALID"],
        [
          "23503",
          "known",
          "ALTER TABLE events ADD CONSTRAINT known FOREIGN KEY (correlation_id) REFERENCES known NOT VALID DEFERRABLE INITIALLY DEFERRED"
        ]
      ] as const
    ) {
      if (code === "23503") yield* sql`CREATE TABLE known (id text PRIMARY KEY)`
      yield* run(statement)
      if (code === "23503") {
        // Refused only at the end of the statement's transaction.
        const late = yield* Effect.flip((yield* EventStore).append([event({ correlationId: "c" })]))
        assert.include(reasonOf(late), { _tag: "StatementFailed", code, constraint })
        assert.deepStrictEqual(yield* versions, [1])
        continue
      }
      const error = yield* refused(event({ correlationId: "c" }))
      assert(error._tag === "StoreError" && error.reason._tag === "StatementFailed")
      assert.deepStrictEqual([error.reason.code, error.reason.constraint], [code, constraint])
      assert.include(error.message, constraint)
      assert.include(error.message, "Change the data, the constraint or the trigger")
      const table = constraint === "typed" || constraint === "apart" ? "CONSTRAINT" : "INDEX"
      yield* run(
        table === "INDEX" ? `DROP INDEX ${constraint}` : `ALTER TABLE events DROP CONSTRAINT ${constraint}`
      )
    }
  })

  test("reports renamed keys as a duplicate or a conflict by their columns", function*({ sql, store }) {
    yield* run(
      "ALTER TABLE events RENAME CONSTRAINT events_event_id_key TO one",
      "DO $$ DECLARE name text; BEGIN SELECT conname INTO name FROM pg_constraint WHERE conrelid = 'events'::regclass AND contype = 'u' AND cardinality(conkey) = 4; EXECUTE format('ALTER TABLE events RENAME CONSTRAINT %I TO event_id', name); END $$"
    )
    const eventId = newId()
    yield* store.append([event({ eventId })])
    assert.strictEqual((yield* refused(event({ eventId })))._tag, "DuplicateEvent")
    const other = yield* PlainWriters.make((yield* TestDatabase).url)
    yield* other.sql`BEGIN`
    yield* other.sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES ('test', 'Test', 'a', 2, gen_random_uuid(), 'Inserted', '')`
    // In a transaction, an append waits for the other writer and is not retried.
    const appending = yield* Effect.forkChild(Effect.flip(sql.withTransaction(store.append([event()]))), {
      startImmediately: true
    })
    const waiting = other.sql`
        SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'transactionid'`
    yield* TimeLimits.waitUntil("the append waits", waiting, (rows) => rows.length > 0)
    yield* other.sql`COMMIT`
    assert.strictEqual((yield* Fiber.join(appending))._tag, "ConcurrencyConflict")
  })

  for (
    const [what, body] of [
      ["suppresses events", "RETURN NULL;"],
      ["suppresses one event", "IF NEW.event_type = 'Second' THEN RETURN NULL; END IF; RETURN NEW;"],
      ["moves events to another aggregate", "NEW.aggregate_id := 'b'; RETURN NEW;"],
      ["changes versions", "NEW.aggregate_version := NEW.aggregate_version + 10; RETURN NEW;"],
      ["draws other event ids", "NEW.event_id := gen_random_uuid(); RETURN NEW;"]
    ] as const
  ) {
    test(`rolls back and reports a trigger that ${what}`, function*() {
      yield* trigger("events", body)
      const error = yield* refused(event({ eventId: newId() }), event({ eventType: "Second" }))
      assert(error._tag === "StoreError" && error.reason._tag === "UnsupportedDatabase")
      assert.include(error.message, "suppressed or changed the events of an append")
      assert.strictEqual((yield* (yield* PgClient.PgClient)`SELECT FROM events`).length, 0)
    })
  }

  test("reports a trigger that prevents writes to heads, instead of conflicts", function*() {
    yield* trigger("aggregate_heads", "RETURN NULL;")
    const error = yield* refused(event())
    assert(error._tag === "StoreError" && error.reason._tag === "UnsupportedDatabase")
    assert.include(error.message, "aggregate_heads")
    const none = yield* Effect.flip((yield* EventStore).append([event()], { expectedVersion: "none" }))
    assert.strictEqual(reasonOf(none)._tag, "UnsupportedDatabase")
  })

  test("reports the message of a trigger that raises a unique violation", function*() {
    yield* trigger("events", "RAISE EXCEPTION 'no more' USING ERRCODE = 'unique_violation';")
    const error = yield* refused(event())
    assert(error._tag === "StoreError" && error.reason._tag === "StatementFailed")
    assert.deepStrictEqual([error.reason.code, error.reason.detail], ["23505", "no more"])
  })

  test("accepts what a trigger adds to the event", function*({ store }) {
    yield* trigger(
      "events",
      "NEW.metadata := '{\"by\": \"trigger\"}'; NEW.event_type := lower(NEW.event_type); RETURN NEW;"
    )
    yield* store.append([event({ eventId: newId() }), event()])
    const events = yield* store.readStream(stream)
    assert.deepStrictEqual(events.map(({ eventType }) => eventType), ["happened", "happened"])
  })
})

/** Appends as Go does: the events first, then the head. */
const goAppend = Effect.fnUntraced(function*(version: number) {
  const { sql } = yield* PlainWriters.make((yield* TestDatabase).url, "go")
  const lockWaits = sql`
    SELECT FROM pg_locks JOIN pg_stat_activity USING (pid)
    WHERE datname = current_database() AND NOT granted AND application_name <> 'go'`
  // Disables its own deadlock check, so that a deadlock does not end this transaction.
  yield* sql`SET deadlock_timeout = '10min'`
  yield* sql`BEGIN`
  yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
    VALUES ('test', 'Test', 'a', ${version}, gen_random_uuid(), 'FromGo', '')`
  return {
    /** Returns when another session waits for a lock. */
    waitedFor: TimeLimits.waitUntil("another session waits", lockWaits, (rows) => rows.length > 0),
    upsertHead: sql`
      INSERT INTO aggregate_heads AS h (bounded_context, aggregate_type, aggregate_id, aggregate_version, updated_at)
      VALUES ('test', 'Test', 'a', ${version}, now())
      ON CONFLICT (bounded_context, aggregate_type, aggregate_id)
      DO UPDATE SET aggregate_version = ${version}, updated_at = now()`,
    end: (how: "COMMIT" | "ROLLBACK") => sql.unsafe(how)
  }
})

describe("an append at the same time as Go's", () => {
  const deadlockMillis = 30_000

  for (const end of ["COMMIT", "ROLLBACK"] as const) {
    test(`to the same aggregate waits for its ${end} without a deadlock`, {
      client: { startupParameters: { deadlock_timeout: String(deadlockMillis) } }
    }, function*({ store }) {
      for (const expectedVersion of ["any", 1n, "none"] as const) {
        const before = expectedVersion === "none" ? 0 : 1
        yield* (yield* PgClient.PgClient)`TRUNCATE events, aggregate_heads`
        if (before === 1) yield* store.append([event()])
        const go = yield* goAppend(before + 1)
        const begun = yield* Clock.currentTimeMillis
        const appending = yield* Effect.forkChild(
          Effect.result(store.append([event(), event()], { expectedVersion })),
          { startImmediately: true }
        )
        yield* go.waitedFor
        const waited = yield* Clock.currentTimeMillis
        yield* go.upsertHead
        const stalled = (yield* Clock.currentTimeMillis) - waited
        // A process that was suspended for long before the upsert has used up its short waits.
        if (waited - begun < 500) assert.isBelow(stalled, deadlockMillis / 2)
        yield* go.waitedFor
        yield* go.end(end)
        const result = yield* Fiber.join(appending)
        const there = before + (end === "COMMIT" ? 1 : 0)
        if (expectedVersion !== "any" && end === "COMMIT") {
          assert(result._tag === "Failure")
          assert.deepInclude(result.failure, { _tag: "ConcurrencyConflict", actual: BigInt(there) })
        } else {
          assert(result._tag === "Success")
          assert.deepStrictEqual(result.success.lastVersion, BigInt(there + 2))
        }
      }
    })
  }

  test(
    "waits as long as the session's lock_timeout allows while a writer stays open, and does not change the setting",
    { client: { maxConnections: 1, startupParameters: { lock_timeout: "20ms" } } },
    function*({ sql, store }) {
      const go = yield* goAppend(1)
      const given = yield* Effect.forkChild(Effect.flip(store.append([event()])), { startImmediately: true })
      yield* go.waitedFor
      const error = yield* Fiber.join(given)
      assert.include(reasonOf(error), { _tag: "DatabaseUnavailable", condition: "no answer in time" })
      assert.notProperty(reasonOf(error), "mayHaveCommitted")
      yield* go.end("ROLLBACK")
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* store.append([event()])
        assert.deepStrictEqual(yield* sql`SHOW lock_timeout`, [{ lock_timeout: "20ms" }])
      }))
      yield* store.append([event()])
      assert.deepStrictEqual(yield* sql`SHOW lock_timeout`, [{ lock_timeout: "20ms" }])
    }
  )

  test("is retried after a deadlock or a serialization failure, but not inside a transaction", function*({ url }) {
    let failures = 0
    for (const [code, Reason] of [["40P01", DeadlockError], ["40001", SerializationError]] as const) {
      const hooks: Seam.Hooks = {
        around: (statement, send) =>
          statement.text.includes("INSERT INTO") && failures-- > 0
            ? Effect.fail(
              new SqlError({
                reason: new Reason({
                  cause: Object.assign(new Error("lost"), { code, severityUnlocalized: "ERROR" }),
                  operation: "query"
                })
              })
            )
            : send
      }
      yield* Effect.gen(function*() {
        const store = yield* EventStore
        failures = 3
        yield* store.append([event()])
        failures = 1
        const error = yield* Effect.flip((yield* PgClient.PgClient).withTransaction(store.append([event()])))
        assert(error._tag === "StoreError" && error.reason._tag === "StatementFailed")
        assert.strictEqual(error.reason.code, code)
        assert.include(error.message, "Retry the whole transaction")
      }).pipe(Effect.provide(Layer.provideMerge(
        Seam.stores(hooks, { listen: false, presence: false }),
        Seam.client({ url: Redacted.make(url) }, hooks)
      )))
    }
    assert.deepStrictEqual(yield* versions, [1, 2])
  })
})
