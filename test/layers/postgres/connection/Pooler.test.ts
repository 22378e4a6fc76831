/** The library behind PgBouncer: what is refused at start, and that the guarantees hold with `directUrl`. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, describe } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as Probe from "../../../../src/layers/postgres/connection/Probe.ts"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import * as ReadModel from "../../../../src/layers/postgres/ReadModel.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../../src/services/Orchestrator.ts"
import * as Projection from "../../../../src/services/Projection.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as PgBouncer from "../../../support/PgBouncer.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"
import * as Tests from "../../../support/Tests.ts"

const inCI = process.env["CI"] !== undefined

const settings = {
  replicaSet: "pooled",
  heartbeatInterval: "300 millis",
  staleWorkerTimeout: "1200 millis",
  pollInterval: "100 millis"
} as const

/** Writes the versions of each aggregate in the order in which they arrive. */
const versions = Projection.make("versions", {
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`INSERT INTO handled (aggregate_id, version) VALUES (${event.aggregateId}, ${event.aggregateVersion}::bigint)`
  })
})

/** Collects the log lines. */
const logged = (lines: Array<string>) => Logger.layer([Logger.make(({ message }) => lines.push(String(message)))])

const { test } = EventStores
const { url } = Tests

describe.skipIf(PgBouncer.missing !== undefined && !inCI)("behind a pooler", () => {
  const detects = (mode: "session" | "transaction", size: number) =>
    Effect.gen(function*() {
      const through = yield* PgBouncer.make(yield* url, { mode, size })
      return yield* Probe.isTransactionPooler({ url: Redacted.make(through) })
    }).pipe(Effect.scoped)

  /** Hands out server sessions in turn, from a pool of several. */
  const detectsInTurn = (size: number) =>
    Effect.gen(function*() {
      const configuration = "server_round_robin = 1"
      const through = Redacted.make(yield* PgBouncer.make(yield* url, { mode: "transaction", size, configuration }))
      const pool = yield* Effect.provide(
        PgClient.make({ url: through, maxConnections: size, prepare: false }),
        Reactivity.layer
      )
      yield* Effect.replicateEffect(pool`SELECT pg_sleep(0.2)`, size, { concurrency: "unbounded", discard: true })
      return yield* Probe.isTransactionPooler({ url: through })
    }).pipe(Effect.scoped)

  test("detects a pooler in transaction mode", function*() {
    assert.isFalse(yield* Probe.isTransactionPooler({ url: Redacted.make(yield* url) }))
    assert.isFalse(yield* detects("session", 5))
    assert.isTrue(yield* detects("transaction", 1))
    assert.isTrue(yield* detects("transaction", 3))
    for (const size of [2, 3, 5]) assert.isTrue(yield* detectsInTurn(size))
  })

  /** Opens the stores and returns the error with which that fails, within five seconds. */
  const refusal = (config: PgClient.PgPoolConfig, directUrl?: string) =>
    Effect.flip(Layer.build(PostgresStores.layerWith(
      directUrl === undefined ? {} : { directUrl: Redacted.make(directUrl) }
    ))).pipe(
      Effect.provide(Layer.fresh(PgClient.layer(config))),
      TimeLimits.within("5 seconds"),
      Effect.scoped
    )

  test("a pooler in transaction mode is refused without directUrl, with and without prepared statements", function*() {
    const through = Redacted.make(yield* PgBouncer.make(yield* url, { mode: "transaction", size: 3 }))
    for (const prepare of [true, false]) {
      const failure = yield* refusal({ url: through, prepare })
      assert.strictEqual(failure._tag, "InvalidSettings")
      assert.match(
        failure.message,
        /^Setting "directUrl": 127\.0\.0\.1:\d+ is a pooler in transaction mode, behind which the library's own sessions cannot listen or hold locks\. Pass PostgresStores\.layerWith\({ directUrl }\) the URL of the database server itself, or of a pooler in session mode; the client may keep this URL\.$/
      )
    }
  })

  test("a directUrl that leads to a pooler in transaction mode is refused", function*() {
    const through = yield* PgBouncer.make(yield* url, { mode: "transaction", size: 3 })
    const failure = yield* refusal({ url: Redacted.make(yield* url) }, through)
    assert.strictEqual(failure._tag, "InvalidSettings")
    assert.match(
      failure.message,
      /^Setting "directUrl": 127\.0\.0\.1:\d+ is a pooler in transaction mode\. Give the URL of the database server itself, or of a pooler in session mode\.$/
    )
  })

  test("prepared statements through a pooler in transaction mode are refused, with the name of the setting", function*() {
    const through = yield* PgBouncer.make(yield* url, { mode: "transaction", size: 3 })
    const failure = yield* refusal({ url: Redacted.make(through) }, yield* url)
    assert.strictEqual(failure._tag, "InvalidSettings")
    assert.match(
      failure.message,
      /^Setting "prepare": 127\.0\.0\.1:\d+ is a pooler in transaction mode, which loses prepared statements\. Give PgClient prepare: false\.$/
    )
  })

  test("read models are created by one process at a time in transaction mode", function*({ sql }) {
    const through = yield* PgBouncer.make(yield* url, { mode: "transaction", size: 3 })
    const create = ReadModel.run("days", (sql) =>
      Effect.all([
        sql`CREATE TABLE IF NOT EXISTS days (day date PRIMARY KEY)`,
        sql`CREATE INDEX IF NOT EXISTS days_again ON days (day)`
      ]))
    yield* Effect.forEach(
      [1, 2, 3, 4, 5],
      () => Effect.provide(create, Layer.fresh(PgClient.layer({ url: Redacted.make(through), prepare: false }))),
      {
        concurrency: "unbounded"
      }
    )
    assert.strictEqual((yield* sql`SELECT 1 FROM pg_class WHERE relname = 'days_again'`).length, 1)
    // No lock is left behind on a session of the pooler.
    assert.deepStrictEqual(
      yield* sql`SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
      []
    )
  })

  test("an error of the pooler is reported in its own words", function*() {
    const through = yield* PgBouncer.make(yield* url, { mode: "transaction", size: 3 })
    const failure = yield* Effect.flip(Layer.build(PostgresStores.layer)).pipe(
      Effect.provide(PgClient.layer({ url: Redacted.make(through), startupParameters: { jit: "off" } }))
    )
    assert.include(failure.message, "unsupported startup parameter: jit")
  })

  test("a pooler that hands out no session causes an error in bounded time", { tags: ["long"] }, function*() {
    // The pool has a single session, and the first connection holds it.
    const through = yield* PgBouncer.make(yield* url, { mode: "session", size: 1 })
    const failure = yield* Effect.flip(Layer.build(PostgresStores.layer)).pipe(
      Effect.provide(PgClient.layer({ url: Redacted.make(through) })),
      TimeLimits.within("60 seconds")
    )
    assert.strictEqual(reasonOf(failure)._tag, "DatabaseUnavailable")
  })

  /** Appends an event and handles it, and returns the log lines. */
  const handleOne = (config: PgClient.PgPoolConfig, options: PostgresStores.Options) =>
    Effect.gen(function*() {
      const lines: Array<string> = []
      yield* Effect.gen(function*() {
        yield* (yield* EventStore).append([
          { boundedContext: "b", aggregateType: "T", aggregateId: "a", eventType: "E", payload: {} }
        ])
        yield* Orchestrator.catchUp
      }).pipe(
        Effect.provide(
          Orchestrator.layer({ ...settings, projections: [Projection.make("p", { handle: () => Effect.void })] }).pipe(
            Layer.provideMerge(PostgresStores.layerWith(options)),
            Layer.provideMerge(PgClient.layer({ ...config, maxConnections: 5 })),
            Layer.provideMerge(logged(lines))
          )
        )
      )
      return lines
    })

  test("in session mode everything works as it does without a pooler", function*() {
    const through = Redacted.make(yield* PgBouncer.make(yield* url, { mode: "session", size: 20 }))
    const lines = yield* handleOne({ url: through }, {})
    assert.isFalse(lines.some((line) => line.includes("pooler")))
  })

  test("directUrl may lead through a pooler in session mode", function*() {
    const pool = Redacted.make(yield* PgBouncer.make(yield* url, { mode: "transaction", size: 3 }))
    const directUrl = Redacted.make(yield* PgBouncer.make(yield* url, { mode: "session", size: 20 }))
    const lines = yield* handleOne({ url: pool, prepare: false }, { directUrl })
    assert.isFalse(lines.some((line) => line.includes("pooler")))
  })

  test(
    "with directUrl three workers handle every event once and in order while sessions are terminated",
    function*({ sql }) {
      yield* sql`CREATE TABLE handled (seq bigserial, aggregate_id text, version bigint)`
      const through = yield* PgBouncer.make(yield* url, { mode: "transaction", size: 3 })
      const lines: Array<string> = []
      const direct = Redacted.make(yield* url)
      const stores = PostgresStores.layerWith({ directUrl: direct }).pipe(
        Layer.provideMerge(PgClient.layer({ url: Redacted.make(through), prepare: false, maxConnections: 4 }))
      )
      const worker = (workerId: string) =>
        Orchestrator.run.pipe(
          Effect.provide(Layer.fresh(
            Orchestrator.layer({ ...settings, workerId, projections: [versions] }).pipe(
              Layer.provide(Layer.fresh(stores)),
              Layer.provideMerge(logged(lines))
            )
          ))
        )
      const append = Effect.gen(function*() {
        const store = yield* EventStore
        for (let turn = 0; turn < 60; turn++) {
          yield* store.append(Array.from({ length: 5 }, () => ({
            boundedContext: "b",
            aggregateType: "T",
            aggregateId: `a${turn % 20}`,
            eventType: "E",
            payload: {}
          })))
          if (turn % 20 === 10) {
            yield* sql`SELECT pg_terminate_backend(pid) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name LIKE 'pupsourcing%'`
          }
          yield* Effect.sleep("30 millis")
        }
      }).pipe(Effect.provide(PostgresStores.layerWith({ presence: false })))
      const handled = Effect.map(
        sql<{ readonly events: bigint }>`SELECT count(*) AS events FROM handled`,
        ([row]) => Number(row?.events)
      )

      yield* Effect.forkScoped(worker("a"))
      const b = yield* Effect.forkScoped(worker("b"))
      yield* Effect.forkScoped(append)
      yield* TimeLimits.waitUntil("some events are handled", handled, (events) => events > 100, {
        progress: (events) => events
      })
      yield* Effect.forkScoped(worker("c"))
      yield* Effect.forkScoped(Effect.sync(() => b.interruptUnsafe()))
      yield* TimeLimits.waitUntil("everything is handled", handled, (events) => events >= 300, {
        progress: (events) => events,
        every: "50 millis"
      })
      const wrong = yield* sql`
      SELECT aggregate_id, array_agg(version ORDER BY seq) FROM handled GROUP BY aggregate_id
      HAVING array_agg(version ORDER BY seq) <> (SELECT array_agg(v ORDER BY v) FROM generate_series(1::bigint, 15) AS v)`
      assert.deepStrictEqual(wrong, [])
      // The presence locks show that the library's own sessions do not go through the pooler.
      assert.deepStrictEqual(
        yield* sql`SELECT DISTINCT presence_key IS NOT NULL AS present FROM orchestrator_workers`.values,
        [[true]]
      )
    }
  )
})
