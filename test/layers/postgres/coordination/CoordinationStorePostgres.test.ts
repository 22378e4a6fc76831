import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as Scheduler from "effect/Scheduler"
import * as SqlClient from "effect/sql/SqlClient"
import * as HashRange from "../../../../src/schema/HashRange.ts"
import { CheckpointStore } from "../../../../src/services/CheckpointStore.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as CoordinationStoreSuite from "../../../suites/CoordinationStoreSuite.ts"
import * as SelectionSuite from "../../../suites/SelectionSuite.ts"
import { patient, realTime } from "../../../suites/Suite.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as Seam from "../../../support/Seam.ts"
import * as Tests from "../../../support/Tests.ts"

CoordinationStoreSuite.suite("postgres", CoordinationStores.layerWith(), { time: realTime })

SelectionSuite.suite("postgres", CoordinationStores.layerWith(), { time: realTime })

const { decide, join, preview } = CoordinationStores

/** Repeats the query until it returns true. */
const until = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
  TimeLimits.waitUntil("a condition on the database holds", condition, (holds) => holds, { every: "10 millis" })

/** Runs `self` while another session has run `statement` in a transaction that stays open. */
const holding = Effect.fnUntraced(function*<A, E, R>(
  statement: (sql: SqlClient.SqlClient) => Effect.Effect<unknown, unknown>,
  self: Effect.Effect<A, E, R>
) {
  const sql = yield* SqlClient.SqlClient
  const held = yield* Deferred.make<void>()
  const done = yield* Deferred.make<void>()
  const holder = yield* statement(sql).pipe(
    Effect.andThen(Deferred.succeed(held, undefined)),
    Effect.andThen(Deferred.await(done)),
    sql.withTransaction,
    Effect.forkChild
  )
  yield* Deferred.await(held)
  const result = yield* self
  yield* Deferred.succeed(done, undefined)
  yield* Fiber.join(holder)
  return result
})

const decisionLock = (replicaSet: string) => (sql: SqlClient.SqlClient) =>
  sql`SELECT pg_advisory_xact_lock('orchestrator_generations'::regclass::oid::int4, hashtext(${replicaSet}))`

const isAnyDecisionWaiting = Effect.flatMap(SqlClient.SqlClient, (sql) =>
  Effect.map(
    sql`SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND classid = 'orchestrator_generations'::regclass::oid`,
    (rows) => rows.length > 0
  ))

it.layer(CoordinationStores.layerWith(), { excludeTestServices: true })(
  "CoordinationStorePostgres",
  (it) => {
    const test = Tests.on(it.effect, Effect.all({ sql: SqlClient.SqlClient }))

    test("of sixteen concurrent decisions in four processes, one forms the generation", function*({ sql }) {
      const processes = yield* Effect.forEach([1, 2, 3, 4], () => CoordinationStores.another())
      const workers = yield* Effect.forEach(
        Array.from({ length: 16 }, (_, index) => ({ index, process: processes[index % 4]! })),
        ({ index, process }) =>
          Effect.map(process.provide(join("sixteen", `worker-${index}`, ["sixteen"])), (registration) => ({
            process,
            registration
          }))
      )
      const decisions = yield* Effect.forEach(
        workers,
        ({ process, registration }) => process.provide(decide(registration)),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(decisions.filter((decision) => decision.form !== undefined).length, 1)
      const generations = yield* sql`
          SELECT generation_id, total_partitions, state, jsonb_array_length(members) AS members
          FROM orchestrator_generations WHERE replica_set = 'sixteen'`
      assert.deepStrictEqual(generations, [{
        generation_id: 1n,
        total_partitions: 16,
        state: "pending",
        members: 16
      }])
      const rows = yield* (yield* CheckpointStore).rows("sixteen")
      assert.isTrue(HashRange.tiles(rows.map((row) => row.range)))
      assert.strictEqual(rows.filter((row) => row.fence !== undefined).length, 16)
    })

    test("a row that an open batch has locked is skipped, and claimed when the batch has ended", function*() {
      const first = yield* join("locked row", "first", ["locked row"])
      assert.isTrue((yield* decide(first)).isComplete)
      yield* decide(first, { leaving: true, activeKeys: new Set(["locked row@0"]) })
      // The first worker has stopped, but its last batch is still open, so it still holds the row.
      const second = yield* join("locked row", "second", ["locked row"])
      const during = yield* holding(
        (sql) => sql`SELECT 1 FROM orchestrator_checkpoints WHERE projection_name = 'locked row' FOR UPDATE`,
        decide(second)
      )
      assert.isFalse(during.isComplete)
      assert.deepStrictEqual(during.ownedRows, [])
      assert.isAtMost(during.recheckAfterMillis!, 10)
      const after = yield* decide(second)
      assert.isTrue(after.isComplete)
      assert.deepStrictEqual(after.ownedRows.map((row) => row.fence.workerId), ["second"])
    })

    test("a decision waits for the previous one and reads its results", function*({ sql }) {
      const worker = yield* join("waits", "worker", ["waits"])
      const waiting = yield* holding(
        decisionLock("waits"),
        Effect.gen(function*() {
          const fiber = yield* Effect.forkDetach(decide(worker))
          yield* until(isAnyDecisionWaiting)
          assert.isUndefined(fiber.pollUnsafe())
          assert.deepStrictEqual(yield* sql`SELECT 1 FROM orchestrator_generations WHERE replica_set = 'waits'`, [])
          // Decisions of another replica set are not blocked.
          const process = yield* CoordinationStores.another()
          const other = yield* process.provide(join("waits not", "worker", ["waits not"]))
          assert.isTrue((yield* process.provide(decide(other))).isComplete)
          return fiber
        })
      )
      assert.isTrue((yield* Fiber.join(waiting)).isComplete)
    })

    test(
      "a worker that misses its heartbeats while a decision waits for the decision lock is evicted",
      function*({ sql }) {
        const rules = { heartbeatIntervalMillis: 10, staleWorkerTimeoutMillis: 300, presenceGraceMillis: 60_000 }
        const frozen = yield* join("falls silent", "frozen", ["falls silent"])
        yield* decide(frozen)
        const worker = yield* join("falls silent", "worker", ["falls silent"])
        const fiber = yield* holding(
          decisionLock("falls silent"),
          Effect.gen(function*() {
            yield* sql`UPDATE orchestrator_heartbeats SET heartbeat_at = clock_timestamp() WHERE worker_id = 'frozen'`
            const fiber = yield* Effect.forkDetach(decide(worker, { rules }))
            yield* until(isAnyDecisionWaiting)
            yield* Effect.sleep("400 millis")
            return fiber
          })
        )
        // The waiting transaction began before the timeout passed, and `now()` returns the time at which it began.
        assert.deepStrictEqual((yield* Fiber.join(fiber)).evict.map(({ workerId }) => workerId), ["frozen"])
      }
    )

    test("a decision retries until a hanging decision releases the lock", function*() {
      const worker = yield* join("hangs", "worker", ["hangs"])
      const fiber = yield* holding(
        decisionLock("hangs"),
        Effect.gen(function*() {
          const fiber = yield* Effect.forkDetach(decide(worker))
          yield* until(isAnyDecisionWaiting)
          // `lock_timeout` ends the first attempt, and the decision is retried.
          yield* until(Effect.map(isAnyDecisionWaiting, (waits) => !waits))
          yield* until(isAnyDecisionWaiting)
          return fiber
        })
      )
      assert.isTrue((yield* Fiber.join(fiber)).isComplete)
    })

    test("a generation is formed while another session holds locks on older rows", function*({ sql }) {
      const first = yield* join("locked history", "first", ["locked history"])
      yield* decide(first)
      yield* sql`
          INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, state, projections, stopped_at)
          VALUES ('locked history', 'old', -3, 'stopped', '[]', clock_timestamp() - interval '8 days')`
      const second = yield* join("locked history", "second", ["locked history"])
      const lock = (sql: SqlClient.SqlClient) =>
        Effect.andThen(
          sql`SELECT 1 FROM orchestrator_generations WHERE replica_set = 'locked history' FOR UPDATE`,
          sql`SELECT 1 FROM orchestrator_workers WHERE worker_id IN ('old', 'second')
              AND replica_set = 'locked history' FOR UPDATE`
        )
      const { form } = yield* holding(lock, decide(second))
      assert.strictEqual(form?.generationId, 2n)
      const third = yield* join("locked history", "third", ["locked history"])
      yield* decide(third)
      assert.deepStrictEqual(
        yield* sql`SELECT generation_id, state FROM orchestrator_generations WHERE replica_set = 'locked history'
            ORDER BY 1`,
        [
          { generation_id: 1n, state: "superseded" },
          { generation_id: 2n, state: "superseded" },
          { generation_id: 3n, state: "pending" }
        ]
      )
      assert.deepStrictEqual(
        yield* sql`SELECT worker_id FROM orchestrator_workers WHERE replica_set = 'locked history' ORDER BY 1`,
        [{ worker_id: "first" }, { worker_id: "second" }, { worker_id: "third" }]
      )
    })

    test("old generations and workers that stopped long ago are pruned", function*({ sql }) {
      const worker = yield* join("pruned", "worker", ["pruned"])
      yield* sql`INSERT INTO orchestrator_generations (replica_set, generation_id, members, total_partitions, state)
          SELECT 'pruned', g, '[]', 0, 'superseded' FROM generate_series(1, 150) AS g`
      yield* sql`INSERT INTO orchestrator_workers (replica_set, worker_id, incarnation, state, projections, stopped_at)
          VALUES ('pruned', 'old', -1, 'stopped', '[]', clock_timestamp() - interval '8 days'),
            ('pruned', 'younger', -2, 'stopped', '[]', clock_timestamp() - interval '6 days')`
      yield* sql`INSERT INTO orchestrator_heartbeats (replica_set, worker_id, incarnation)
          VALUES ('pruned', 'old', -1), ('pruned', 'younger', -2)`
      const { form } = yield* decide(worker)
      assert.strictEqual(form?.generationId, 151n)
      assert.deepStrictEqual(
        yield* sql`SELECT min(generation_id) AS low, max(generation_id) AS high FROM orchestrator_generations
            WHERE replica_set = 'pruned'`,
        [{ low: 52n, high: 151n }]
      )
      for (const table of ["workers", "heartbeats"]) {
        assert.deepStrictEqual(
          yield* sql`SELECT worker_id FROM ${sql(`orchestrator_${table}`)} WHERE replica_set = 'pruned' ORDER BY 1`,
          [{ worker_id: "worker" }, { worker_id: "younger" }]
        )
      }
    })

    test("a preview that is interrupted at any step does not keep later ones waiting", function*() {
      const worker = yield* join("interrupted preview", "worker", ["interrupted preview"])
      for (let steps = 3; steps < 80; steps++) {
        // The fiber pauses after so many steps, and is interrupted there.
        const fiber = yield* Effect.forkDetach(preview(worker), { startImmediately: true }).pipe(
          Effect.provideService(Scheduler.MaxOpsBeforeYield, steps)
        )
        yield* Fiber.interrupt(fiber)
        yield* preview(worker).pipe(Effect.timeout(TimeLimits.scaledMillis(5000)))
      }
    })

    test("a worker that leaves is recorded as stopped", function*({ sql }) {
      const worker = yield* join("stops", "worker", ["stops"])
      yield* decide(worker)
      yield* decide(worker, { leaving: true })
      const [row] = yield* sql<{ state: string; stopped: boolean; partition_key: number }>`
          SELECT state, stopped_at IS NOT NULL AS stopped, partition_key FROM orchestrator_workers
          WHERE replica_set = 'stops'`
      assert.deepStrictEqual(row, { state: "stopped", stopped: true, partition_key: -1 })
      assert.deepStrictEqual((yield* (yield* CheckpointStore).rows("stops")).map((each) => each.fence), [undefined])
    })
  }
)

it.layer(CoordinationStores.layerWith(), { excludeTestServices: true })(
  "CoordinationStorePostgres, sessions lost",
  (it) => {
    const test = Tests.on(it.effect, Effect.all({ sql: SqlClient.SqlClient }))

    test("a terminated coordination session is replaced", function*({ sql }) {
      const process = yield* CoordinationStores.another()
      const worker = yield* process.provide(join("heals", "worker", ["heals"]))
      const killed = yield* sql`
          SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name = 'pupsourcing-orchestrator coordination'`
      assert.isAtLeast(killed.length, 1)
      const decision = yield* process.provide(decide(worker)).pipe(
        Effect.retry({ while: (error) => error._tag === "StoreError" && error.isRetryable, times: 3 })
      )
      assert.isTrue(decision.isComplete)
    })

    test("losing every session evicts no worker", function*({ sql }) {
      const processes = yield* Effect.forEach([1, 2], () => CoordinationStores.another())
      const workers = yield* Effect.forEach(
        processes,
        (process, index) => process.provide(join("outage", `worker-${index}`, ["outage"]))
      )
      const hasty = { ...patient, presenceGraceMillis: 1 }
      const deciding = (index: number) =>
        processes[index]!.provide(decide(workers[index]!, { rules: hasty })).pipe(
          Effect.retry({ while: (error) => error._tag === "StoreError" && error.isRetryable, times: 3 })
        )
      yield* deciding(0)
      assert.isTrue((yield* deciding(1)).generation?.members.length === 2)
      yield* sql`
          SELECT pg_terminate_backend(pid) FROM pg_stat_activity
          WHERE datname = current_database() AND application_name LIKE 'pupsourcing-orchestrator %'`
      for (let round = 0; round < 40; round++) {
        for (const index of [0, 1]) {
          const { evict, generation } = yield* deciding(index)
          assert.deepStrictEqual(evict, [])
          assert.strictEqual(generation?.generationId, 1n)
        }
      }
    })
  }
)

EventStores.test(
  "workers of one process that preview at the same time share a read that has not begun",
  function*({ url }) {
    let reads = 0
    const hooks: Seam.Hooks = {
      around: ({ text }, send) => {
        if (text.includes("own_present")) reads++
        return send
      }
    }
    const client = Seam.client({ url: Redacted.make(url), maxConnections: 2 }, hooks)
    yield* Effect.gen(function*() {
      const workers = yield* Effect.forEach(["a", "b", "c", "d"], (id) => join("sharing", id, ["sharing"]))
      yield* decide(workers[0]!)
      reads = 0
      const plans = yield* Effect.forEach(workers, preview, { concurrency: "unbounded" })
      // The first began at once; the others waited for their turn together.
      assert.strictEqual(reads, 2)
      assert.deepStrictEqual(
        plans.map(({ ownedRows }) => ownedRows.map(({ range }) => range)),
        Array.from({ length: 4 }, (_, key) => [HashRange.partition(key, 4)])
      )
    }).pipe(Effect.provide(Layer.provideMerge(Seam.stores(hooks), client)))
  }
)
