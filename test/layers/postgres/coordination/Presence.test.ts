import * as PgClient from "@effect/sql-pg/PgClient"
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
import { live } from "../../../support/EventStores.ts"

const lost = new SqlError.SqlError({
  reason: new SqlError.ConnectionError({ cause: new Error("lost"), message: "lost", operation: "query" })
})

/** A connection that loses the answers to the statements that match. */
const losing = (connection: PgConnection.PgConnection, what: RegExp): PgConnection.PgConnection =>
  Object.assign(Object.create(connection) as PgConnection.PgConnection, {
    query: (...args: Parameters<PgConnection.PgConnection["query"]>) =>
      Effect.tap(connection.query(...args), () => what.test(args[0]) ? Effect.fail(lost) : Effect.void)
  })

describe("Presence", () => {
  live(
    "a worker's row contains the presence key that is held, even if the answer to its update was lost",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient.PgClient
        const database = yield* DatabaseLive.make()
        let connected: (connection: PgConnection.PgConnection) => Effect.Effect<void, SqlError.SqlError> = () =>
          Effect.void
        const first = yield* database.openConnection("first")
        const presence = yield* Presence.make.pipe(
          Effect.provideService(Database, database),
          Effect.provideService(Listener, {
            subscribe: () => Queue.unbounded<string>(),
            notify: () => Effect.void,
            onConnection: (hook) => {
              connected = hook
              // The listener converts this error to a StoreError; nothing is lost at this point of the test.
              return Effect.orDie(hook(first))
            },
            lost: Effect.never
          })
        )
        const key = yield* presence.enter
        yield* sql`INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, state, projections, host, pid, presence_key)
        VALUES ('main', 'a', 1, 'running', '[]', 'here', 1, ${key})`
        const second = yield* database.openConnection("second")
        // The server still has the first session, so another key is drawn.
        assert.strictEqual((yield* Effect.exit(connected(losing(second, /UPDATE/))))._tag, "Failure")
        for (const { processId } of [first, second]) yield* sql`SELECT pg_terminate_backend(${processId}::int4, 5000)`
        yield* connected(yield* database.openConnection("third"))
        const rows = yield* sql<{ readonly key: number }>`SELECT presence_key AS key FROM orchestrator_workers`
        assert.strictEqual(rows[0]?.key, presence.own())
      })
  )
})
