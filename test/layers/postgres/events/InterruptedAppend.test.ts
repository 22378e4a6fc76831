/**
 * Appends that are interrupted: alone, as a transaction of the application, and inside a transaction that continues.
 * The events are stored completely or not at all, the only connection of the pool stays usable, and no transaction stays
 * open.
 */
import type * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import type * as Scope from "effect/Scope"
import type * as SqlError from "effect/sql/SqlError"
import { describe } from "vitest"
import type { NewEvent } from "../../../../src/schema/Event.ts"
import type { EventStore } from "../../../../src/services/EventStore.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as PlainWriters from "../../../support/PlainWriters.ts"
import type * as Tests from "../../../support/Tests.ts"

const application = "interrupted appends"
const lock = 20_000

interface Given {
  readonly sql: PgClient.PgClient
  readonly store: EventStore["Service"]
  readonly url: string
}

/** Another session that blocks appends, and reports what the pool does on the server. */
interface Blocker {
  readonly other: PgClient.PgClient
  /** Returns when a session of the pool waits for a lock. */
  readonly reached: Effect.Effect<void, SqlError.SqlError>
  readonly release: Effect.Effect<void, SqlError.SqlError>
}

/** Where an append to the aggregate `blocked` is blocked, and the statement that blocks it there. */
const places: Readonly<Record<string, (other: PgClient.PgClient) => Effect.Effect<unknown, SqlError.SqlError>>> = {
  "while it waits for the aggregate's head": (other) =>
    other`SELECT FROM aggregate_heads WHERE aggregate_id = 'blocked' FOR UPDATE`,
  "while it waits for another writer's event": (other) =>
    other`
      INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
      VALUES ('test', 'Test', 'blocked', 2, gen_random_uuid(), 'FromGo', '')`,
  // See `blockCommits`.
  "during its commit": (other) => other`SELECT pg_advisory_xact_lock(${lock})`
}

/** Every commit of an event waits for the advisory lock. */
const blockCommits = (sql: PgClient.PgClient) =>
  Effect.forEach([
    `CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      PERFORM pg_advisory_xact_lock_shared(${lock}); RETURN NULL; END $$`,
    `CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON events DEFERRABLE INITIALLY DEFERRED
      FOR EACH ROW EXECUTE FUNCTION wait()`
  ], (text) => sql.unsafe(text).unprepared)

const eventsOf = (aggregateId: string): ReadonlyArray<NewEvent> =>
  Array.from({ length: 3 }, () => EventStores.event(aggregateId))

const versionsOf = (store: EventStore["Service"], aggregateId: string) =>
  Effect.map(
    store.readStream({ boundedContext: "test", aggregateType: "Test", aggregateId }),
    (events) => events.map((event) => Number(event.aggregateVersion))
  )

const block = Effect.fnUntraced(function*(
  { url }: Given,
  place: string
): Effect.fn.Return<Blocker, SqlError.SqlError, Scope.Scope> {
  const { sql: other } = yield* PlainWriters.make(url)
  yield* other`BEGIN`
  yield* places[place]!(other)
  const waiting = other`
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = ${application} AND wait_event_type = 'Lock'`
  return {
    other,
    reached: Effect.asVoid(TimeLimits.waitUntil("the append waits for a lock", waiting, (rows) => rows.length > 0)),
    release: Effect.asVoid(other`ROLLBACK`)
  }
})

/** Interrupts an append, and fails if the interruption waits for what blocks the append. */
const interrupt = (fiber: Fiber.Fiber<unknown, unknown>) => TimeLimits.within("20 seconds")(Fiber.interrupt(fiber))

/** Asserts that the pool has no transaction open, and that its connection and the aggregate can be used. */
const assertUsable = Effect.fnUntraced(function*({ sql, store }: Given, { other }: Pick<Blocker, "other">) {
  const busy = other<{ readonly state: string; readonly query: string }>`
    SELECT state, query FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = ${application} AND (state <> 'idle' OR xact_start IS NOT NULL)`
  yield* TimeLimits.waitUntil("the pool has no transaction open", busy, (rows) => rows.length === 0, {
    describe: (rows) => JSON.stringify(rows)
  })
  const before = yield* versionsOf(store, "blocked")
  const { lastVersion } = yield* store.append(eventsOf("blocked"))
  assert.strictEqual(lastVersion, BigInt(before.length + 3))
  assert.deepStrictEqual(yield* sql`SHOW lock_timeout`, [{ lock_timeout: "0" }])
  const sessions = other`
    SELECT FROM pg_stat_activity WHERE datname = current_database() AND application_name = ${application}`
  yield* TimeLimits.waitUntil("a replaced session has ended", sessions, (rows) => rows.length <= 1)
})

type Steps = Tests.Steps<Given, EventStores.Provided | Scope.Scope>

const clients: Readonly<Record<string, PgClient.PgPoolConfig>> = {
  "an append that is interrupted": {},
  "an append of a client without prepared statements that is interrupted": { prepare: false },
  "an append of a multiplexed client that is interrupted": { multiplex: true }
}

EventStores.storeTest(
  "an interrupted append is stored once or not at all, and a repeat with its event ids shows which",
  function*({ store }) {
    for (let tenths = 0; tenths < 30; tenths++) {
      const events = [EventStores.event("a", { eventId: globalThis.crypto.randomUUID() })]
      const appending = yield* Effect.forkScoped(store.append(events), { startImmediately: true })
      yield* Effect.sleep(tenths / 10)
      yield* Fiber.interrupt(appending)
      const repeated = yield* Effect.result(store.append(events))
      if (repeated._tag === "Failure") assert.strictEqual(repeated.failure._tag, "DuplicateEvent")
    }
    assert.deepStrictEqual(yield* versionsOf(store, "a"), Array.from({ length: 30 }, (_, index) => index + 1))
  }
)

for (const [subject, client] of Object.entries(clients)) {
  const isUsual = Object.keys(client).length === 0
  describe(subject, { concurrent: true, ...(isUsual ? {} : { tags: ["long"] }) }, () => {
    const test = (name: string, steps: Steps) =>
      EventStores.storeTest(name, {
        client: { ...client, maxConnections: 1, applicationName: application }
      }, steps)

    test("before it has a connection stores nothing", function*(given) {
      const { sql, store } = given
      const { sql: other } = yield* PlainWriters.make(given.url)
      const done = yield* Deferred.make<void>()
      const begun = yield* Deferred.make<void>()
      const holding = yield* Effect.forkScoped(
        sql.withTransaction(Effect.andThen(
          sql`SELECT 1`,
          Effect.andThen(Deferred.succeed(begun, undefined), Deferred.await(done))
        ))
      )
      yield* Deferred.await(begun)
      for (
        const append of [store.append(eventsOf("blocked")), sql.withTransaction(store.append(eventsOf("blocked")))]
      ) {
        const appending = yield* Effect.forkScoped(append, { startImmediately: true })
        yield* Effect.yieldNow
        yield* interrupt(appending)
      }
      yield* Deferred.succeed(done, undefined)
      yield* Fiber.join(holding)
      assert.deepStrictEqual(yield* versionsOf(store, "blocked"), [])
      yield* assertUsable(given, { other })
    })

    for (const place of Object.keys(places)) {
      test(`${place} ends at once, and stores all of its events or none`, function*(given) {
        const { sql, store } = given
        yield* store.append([EventStores.event("blocked")])
        if (place.includes("commit")) yield* blockCommits(sql)
        const blocker = yield* block(given, place)
        const appending = yield* Effect.forkScoped(store.append(eventsOf("blocked")), { startImmediately: true })
        yield* blocker.reached
        yield* interrupt(appending)
        yield* blocker.release
        const stored = (yield* versionsOf(store, "blocked")).length
        // A statement on a connection that other fibers share cannot be cancelled; it ends as if it had not been interrupted.
        if (client.multiplex === true) assert.oneOf(stored, [1, 4])
        else assert.strictEqual(stored, 1)
        yield* assertUsable(given, blocker)
      })

      test(`${place} in a transaction stores all events of the transaction or none`, function*(given) {
        const { sql, store } = given
        yield* store.append([EventStores.event("blocked")])
        if (place.includes("commit")) yield* blockCommits(sql)
        const blocker = yield* block(given, place)
        const transaction = sql.withTransaction(Effect.andThen(
          store.append(eventsOf("beside")),
          store.append(eventsOf("blocked"))
        ))
        const appending = yield* Effect.forkScoped(transaction, { startImmediately: true })
        yield* blocker.reached
        const interrupting = yield* Effect.forkScoped(interrupt(appending), { startImmediately: true })
        // Only the interruption of a COMMIT waits, because Effect SQL waits for its answer.
        if (!place.includes("commit")) yield* Fiber.join(interrupting)
        yield* blocker.release
        yield* Fiber.join(interrupting)
        const expected = place.includes("commit") ? [4, 3] : [1, 0]
        const found = yield* Effect.forEach(["blocked", "beside"], (id) => versionsOf(store, id))
        assert.deepStrictEqual(found.map((versions) => versions.length), expected)
        yield* assertUsable(given, blocker)
      })
    }

    const waiting = Object.keys(places).filter((place) => !place.includes("commit"))

    for (const place of waiting) {
      test(`${place} makes the transaction that continues fail`, function*(given) {
        const { sql, store } = given
        yield* store.append([EventStores.event("blocked")])
        const blocker = yield* block(given, place)
        const exit = yield* Effect.exit(sql.withTransaction(Effect.andThen(
          store.append(eventsOf("beside")),
          Effect.raceFirst(store.append(eventsOf("blocked")), blocker.reached)
        )))
        yield* blocker.release
        assert.isTrue(Exit.isFailure(exit))
        const found = yield* Effect.forEach(["blocked", "beside"], (id) => versionsOf(store, id))
        assert.deepStrictEqual(found.map((versions) => versions.length), [1, 0])
        yield* assertUsable(given, blocker)
      })

      test(`${place} in a savepoint does not affect the transaction around it`, function*(given) {
        const { sql, store } = given
        yield* store.append([EventStores.event("blocked")])
        const blocker = yield* block(given, place)
        yield* sql.withTransaction(Effect.gen(function*() {
          yield* store.append(eventsOf("beside"))
          const attempt = sql.withTransaction(store.append(eventsOf("blocked")))
          yield* Effect.raceFirst(attempt, blocker.reached)
          yield* store.append(eventsOf("beside"))
        }))
        yield* blocker.release
        const found = yield* Effect.forEach(["blocked", "beside"], (id) => versionsOf(store, id))
        assert.deepStrictEqual(found.map((versions) => versions.length), [1, 6])
        yield* assertUsable(given, blocker)
      })
    }
  })
}
