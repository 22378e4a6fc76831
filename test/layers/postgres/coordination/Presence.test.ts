import type * as PgConnection from "@effect/sql-pg/PgConnection"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as SqlError from "effect/sql/SqlError"
import { describe } from "vitest"
import { Listener } from "../../../../src/layers/postgres/connection/Listener.ts"
import * as Presence from "../../../../src/layers/postgres/coordination/Presence.ts"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import * as DatabaseLive from "../../../../src/layers/postgres/DatabaseLive.ts"
import { waitUntil } from "../../../../src/testing/TimeLimits.ts"
import { test } from "../../../support/EventStores.ts"

const lost = new SqlError.SqlError({
  reason: new SqlError.ConnectionError({ cause: new Error("lost"), message: "lost", operation: "query" })
})

/** A connection that loses the answers to the statements that match. */
const losing = (connection: PgConnection.PgConnection, what: RegExp): PgConnection.PgConnection =>
  Object.assign(Object.create(connection) as PgConnection.PgConnection, {
    query: (...args: Parameters<PgConnection.PgConnection["query"]>) =>
      Effect.tap(connection.query(...args), () => what.test(args[0]) ? Effect.fail(lost) : Effect.void)
  })

/** A listener whose connections the test opens: `connect` runs the hook that makes the process present. */
const manualListener = (first: PgConnection.PgConnection) => {
  let connect: (connection: PgConnection.PgConnection) => Effect.Effect<void, SqlError.SqlError> = () => Effect.void
  const listener = Listener.of({
    subscribe: () => Queue.unbounded<string>(),
    notify: () => Effect.void,
    onConnection: (hook) => {
      connect = hook
      // The listener converts this error to a StoreError; nothing is lost at this point of the test.
      return Effect.orDie(hook(first))
    },
    isListening: () => true,
    lost: Effect.never
  })
  return { listener, connect: (connection: PgConnection.PgConnection) => connect(connection) }
}

describe("Presence", () => {
  test("a session that only waits for the lock of a key is not present", function*() {
    const database = yield* DatabaseLive.make()
    const [holder, waiter, observer] = [
      yield* database.openConnection("holder"),
      yield* database.openConnection("waiter"),
      yield* database.openConnection("observer")
    ]
    const presence = yield* Presence.make.pipe(
      Effect.provideService(Database, database),
      Effect.provideService(Listener, manualListener(holder).listener)
    )
    const present = Effect.map(
      observer.query(`SELECT key::int4 FROM (${presence.presentKeys}) AS k`, []),
      ({ rows }) => rows.map((row) => row["key"])
    )
    const key = yield* presence.enter
    assert.deepStrictEqual(yield* present, [key])
    const lock = `(${Presence.lockClass(database.qualified("workers"))}, ${key})`
    yield* holder.query(`SELECT pg_advisory_unlock${lock}, pg_advisory_lock_shared${lock}`, [])
    yield* Effect.forkScoped(waiter.query(`SELECT pg_advisory_lock${lock}`, []))
    yield* waitUntil(
      "the session waits for the lock",
      observer.query("SELECT FROM pg_locks WHERE pid = $1::int4 AND NOT granted", [waiter.processId]),
      ({ rows }) => rows.length > 0
    )
    assert.deepStrictEqual(yield* present, [])
  })

  test(
    "a worker's row contains the presence key that is held, even if the answer to its update was lost",
    function*({ sql }) {
      const database = yield* DatabaseLive.make()
      const first = yield* database.openConnection("first")
      const { connect, listener } = manualListener(first)
      const presence = yield* Presence.make.pipe(
        Effect.provideService(Database, database),
        Effect.provideService(Listener, listener)
      )
      const key = yield* presence.enter
      yield* sql`INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, state, projections, host, pid, presence_key)
        VALUES ('main', 'a', 1, 'running', '[]', 'here', 1, ${key})`
      const second = yield* database.openConnection("second")
      // The server still has the first session, so another key is drawn.
      assert.strictEqual((yield* Effect.exit(connect(losing(second, /UPDATE/))))._tag, "Failure")
      for (const { processId } of [first, second]) yield* sql`SELECT pg_terminate_backend(${processId}::int4, 5000)`
      yield* connect(yield* database.openConnection("third"))
      const rows = yield* sql<{ readonly key: number }>`SELECT presence_key AS key FROM orchestrator_workers`
      assert.strictEqual(rows[0]?.key, presence.own())
    }
  )
})
