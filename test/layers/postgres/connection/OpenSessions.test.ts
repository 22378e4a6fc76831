/** What the stores report of their own sessions, compared with what the server shows. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import type { Options } from "../../../../src/layers/postgres/Database.ts"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import * as Generation from "../../../../src/schema/Generation.ts"
import { CoordinationStore } from "../../../../src/services/CoordinationStore.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import { Membership } from "../../../../src/services/Membership.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import { patient } from "../../../suites/Suite.ts"
import { test } from "../../../support/EventStores.ts"

/** The stores of one process. */
const process = (options: Options = {}) => Layer.build(PostgresStores.layerWith(options))

/** The names of the library's sessions that the server shows, without the common part. */
const names = Effect.flatMap(PgClient.PgClient, (sql) =>
  Effect.map(
    sql<{ readonly name: string }>`SELECT replace(application_name, 'pupsourcing-orchestrator ', '') AS name
      FROM pg_stat_activity
      WHERE datname = current_database() AND application_name LIKE 'pupsourcing-orchestrator %' ORDER BY 1`,
    (rows) => rows.map(({ name }) => name)
  ))

const kill = (name: string) =>
  Effect.flatMap(
    PgClient.PgClient,
    (sql) =>
      sql`SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = ${`pupsourcing-orchestrator ${name}`}`
  )

const join = Effect.fnUntraced(function*(stores: Effect.Success<ReturnType<typeof process>>, workerId: string) {
  const membership = Context.get(stores, Membership)
  const registration = yield* membership.join({ replicaSet: "main", workerId, projections: [], rules: patient })
  yield* membership.wakeUps(registration)
  return registration
})

test("the sessions that the stores report are those that the server shows", function*() {
  const stores = yield* process()
  const membership = Context.get(stores, Membership)
  const sessions = Effect.map(membership.connections, (connections) => connections.sessions)
  assert.deepStrictEqual([yield* sessions, yield* names], [0, []])
  const a = yield* join(stores, "a")
  yield* Context.get(stores, EventStore).settledPosition
  const { isListening } = yield* membership.connections
  assert.isTrue(isListening)
  assert.deepStrictEqual([yield* sessions, yield* names], [3, ["coordination", "listener", "reader"]])

  // A neighbour in another process, for whose end the worker waits.
  const b = yield* join(yield* process(), "b")
  const { generation } = yield* Context.get(stores, CoordinationStore).apply({
    registration: a,
    projections: [],
    activeKeys: new Set(),
    leaving: false,
    rules: patient
  })
  assert.strictEqual(Generation.neighbour(generation!, a)?.incarnation, b.incarnation)
  yield* membership.watch(a, generation!)
  yield* TimeLimits.waitUntil("the wait is counted", sessions, (count) => count === 4, { every: "10 millis" })
  assert.include(yield* names, "presence")
})

test("a lost session is not counted, and LISTEN is inactive until it is open again", function*({ url }) {
  const stores = yield* process()
  const { connections, heartbeat } = Context.get(stores, Membership)
  const registration = yield* join(stores, "a")
  assert.deepStrictEqual(yield* connections, { isListening: true, sessions: 2 })
  const target = new URL(url)
  const database = target.pathname.slice(1)
  target.pathname = "/postgres"
  const admin = yield* PgClient.make({ url: Redacted.make(target.href), maxConnections: 1 }).pipe(
    Effect.provide(Reactivity.layer)
  )
  const allowConnections = (isAllowed: boolean) =>
    admin`ALTER DATABASE ${admin(database)} ALLOW_CONNECTIONS ${admin.literal(String(isAllowed))}`
  yield* allowConnections(false)
  yield* kill("listener")
  const becomes = (isListening: boolean, sessions: number) =>
    TimeLimits.waitUntil(
      `${sessions} sessions`,
      connections,
      (found) => found.isListening === isListening && found.sessions === sessions,
      { every: "10 millis" }
    )
  yield* becomes(false, 1)
  yield* allowConnections(true)
  yield* becomes(true, 2)
  yield* kill("coordination")
  // The first statement on the lost connection fails, which shows the loss; the second opens another connection.
  yield* Effect.ignore(heartbeat(registration))
  assert.strictEqual((yield* connections).sessions, 1)
  yield* heartbeat(registration)
  assert.deepStrictEqual(yield* names, ["coordination", "listener"])
  yield* becomes(true, 2)
})

test("without LISTEN, changes are found by polling", function*() {
  const stores = yield* process({ listen: false })
  yield* join(stores, "a")
  const { isListening } = yield* Context.get(stores, Membership).connections
  assert.isFalse(isListening)
})
