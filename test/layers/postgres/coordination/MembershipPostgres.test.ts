import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import * as CoordinationSession from "../../../../src/layers/postgres/coordination/CoordinationSession.ts"
import * as Presence from "../../../../src/layers/postgres/coordination/Presence.ts"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import type * as Worker from "../../../../src/schema/Worker.ts"
import { Membership } from "../../../../src/services/Membership.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as MembershipSuite from "../../../suites/MembershipSuite.ts"
import { patient, realTime } from "../../../suites/Suite.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as Seam from "../../../support/Seam.ts"
import * as Tests from "../../../support/Tests.ts"

MembershipSuite.suite("postgres", CoordinationStores.layerWith(), { time: realTime })

const { decide, heartbeat, join } = CoordinationStores

/** Repeats the query until it returns true. */
const until = <E, R>(condition: Effect.Effect<boolean, E, R>) =>
  TimeLimits.waitUntil("a condition on the database holds", condition, (holds) => holds, { every: "10 millis" })

const keyOf = (replicaSet: string, workerId: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    Effect.map(
      sql<{ presence_key: number | null }>`SELECT presence_key FROM orchestrator_workers
        WHERE replica_set = ${replicaSet} AND worker_id = ${workerId}`,
      (rows) => rows[0]!.presence_key
    ))

const presenceClass = Effect.gen(function*() {
  const { qualified, sql } = yield* Database
  return sql.literal(Presence.lockClass(qualified("workers")))
})

/** Backends that hold the presence lock of a key, or wait for its release. */
const backendsOf = (key: number, who: "holding" | "watching") =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const rows = yield* sql<{ pid: number }>`SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND classid::int8 = ${yield* presenceClass}::int8 & 4294967295 AND objid::int8 = ${key}
      AND granted = ${who === "holding"}`
    return rows.map(({ pid }) => pid)
  })

const terminate = (pids: ReadonlyArray<number>) =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) => sql`SELECT pg_terminate_backend(pid) FROM unnest(${pids}::int4[]) AS p (pid)`
  )

/** Subscribes to wake-ups as every running worker does, so that the loss of its session is detected. */
const listens = (worker: Worker.Registration) => Membership.use((membership) => membership.wakeUps(worker))

it.layer(CoordinationStores.layerWith(), { excludeTestServices: true })(
  "MembershipPostgres",
  (it) => {
    const test = Tests.on(it.effect, Effect.all({ membership: Membership, sql: SqlClient.SqlClient }))

    /** Two processes with a worker each; the first watches the second. */
    const pair = Effect.fnUntraced(function*(replicaSet: string, hooks: Seam.Hooks = {}) {
      const membership = yield* Membership
      const first = yield* join(replicaSet, "first", [replicaSet])
      const process = yield* CoordinationStores.another({}, Seam.database(hooks))
      const scope = yield* Scope.make()
      const second = yield* process.provide(join(replicaSet, "second", [replicaSet])).pipe(Scope.provide(scope))
      yield* process.provide(listens(second))
      yield* decide(first)
      const { generation } = yield* process.provide(decide(second))
      yield* decide(first)
      const wakeUps = yield* membership.wakeUps(first)
      yield* membership.watch(first, generation!)
      const key = (yield* keyOf(replicaSet, "second"))!
      yield* until(Effect.map(backendsOf(key, "watching"), (pids) => pids.length === 1))
      yield* Effect.sleep("100 millis")
      yield* Queue.clear(wakeUps)
      const die = Effect.andThen(Scope.close(scope, Exit.void), process.close)
      return { first, second, process, die, wakeUps, generation: generation!, key }
    })

    test("the death of a neighbour's process wakes its watcher, and its worker is replaced after the grace period", function*() {
      const { die, first, second, wakeUps } = yield* pair("death")
      // The process ends without unregistering: its final statements do not reach the tables.
      yield* die
      // Only the presence lock can end this wait: under the patient rules the next heartbeat is far away.
      yield* Queue.take(wakeUps)
      const rules = { ...patient, presenceGraceMillis: 100 }
      const evicted = yield* TimeLimits.waitUntil(
        "the dead worker is evicted",
        decide(first, { rules }),
        ({ evict }) => evict.length > 0
      )
      assert.deepStrictEqual(evicted.evict.map((worker) => worker.incarnation), [second.incarnation])
      assert.isTrue(evicted.isComplete)
    })

    test("a killed session wakes the watcher, but its process reconnects before its worker is replaced", function*() {
      const { first, key, process, second } = yield* pair("killed session")
      const holders = yield* backendsOf(key, "holding")
      assert.strictEqual(holders.length, 1)
      yield* terminate(holders)
      yield* until(
        Effect.map(backendsOf(key, "holding"), (pids) => pids.length === 1 && pids[0] !== holders[0])
      )
      assert.strictEqual(yield* keyOf("killed session", "second"), key)
      const { evict } = yield* decide(first, { rules: { ...patient, presenceGraceMillis: 2000 } })
      assert.deepStrictEqual(evict, [])
      yield* process.provide(heartbeat(second))
    })

    /** Two processes on a database whose clock is shifted once `set` has been called. */
    const withClock = Effect.fnUntraced(function*(replicaSet: string) {
      let shift: string | undefined
      const hooks: Seam.Hooks = {
        rewrite: ({ text }) =>
          shift === undefined
            ? text
            : text.replaceAll("clock_timestamp()", `(clock_timestamp() + interval '${shift}')`)
      }
      const observer = yield* CoordinationStores.another({}, Seam.database(hooks))
      const first = yield* observer.provide(join(replicaSet, "first", [replicaSet]))
      const process = yield* CoordinationStores.another({}, Seam.database(hooks))
      const second = yield* process.provide(join(replicaSet, "second", [replicaSet]))
      const decides = (rules: Partial<typeof patient>) =>
        observer.provide(decide(first, { rules: { ...patient, heartbeatIntervalMillis: 0, ...rules } }))
      yield* decides({})
      const evicts = (rules: Partial<typeof patient>) =>
        Effect.map(
          TimeLimits.waitUntil("a worker is evicted", decides(rules), ({ evict }) => evict.length > 0),
          ({ evict }) => evict.map((worker) => worker.incarnation)
        )
      const set = (interval: string) =>
        Effect.sync(() => {
          shift = interval
        })
      return { decides, evicts, process, second, set }
    })

    it.effect.each(["1 hour", "-1 hour"])(
      "setting the database's clock by %s evicts no live worker",
      (interval) =>
        Effect.gen(function*() {
          const { decides, process, second, set } = yield* withClock(`live ${interval}`)
          yield* set(interval)
          assert.deepStrictEqual((yield* decides({})).evict, [])
          yield* process.provide(heartbeat(second))
          assert.deepStrictEqual((yield* decides({})).evict, [])
          assert.deepStrictEqual((yield* decides({})).evict, [])
        })
    )

    it.effect.each(["1 hour", "-1 hour"])(
      "a worker silent since the database's clock was set by %s is evicted after the timeout",
      (interval) =>
        Effect.gen(function*() {
          const { evicts, second, set } = yield* withClock(`frozen ${interval}`)
          yield* set(interval)
          assert.deepStrictEqual(yield* evicts({ staleWorkerTimeoutMillis: 300 }), [second.incarnation])
        })
    )

    it.effect.each(["silence", "absence"])(
      "the time that a blocked process takes to read an answer does not count as another worker's %s",
      (evidence) =>
        Effect.gen(function*() {
          const replicaSet = `blocked observer, ${evidence}`
          let blocked = 0n
          let blocks = false
          const clock = yield* Clock.Clock
          const late: Clock.Clock = {
            currentTimeMillisUnsafe: () => clock.currentTimeMillisUnsafe(),
            currentTimeMillis: clock.currentTimeMillis,
            currentTimeNanosUnsafe: () => clock.currentTimeNanosUnsafe(),
            currentTimeNanos: clock.currentTimeNanos,
            monotonicTimeNanosUnsafe: () => clock.monotonicTimeNanosUnsafe() + blocked,
            monotonicTimeNanos: Effect.sync(() => clock.monotonicTimeNanosUnsafe() + blocked),
            sleep: (duration) => clock.sleep(duration)
          }
          const block = Effect.sync(() => {
            if (blocks) blocked += 3_600_000_000_000n
          })
          const hooks: Seam.Hooks = {
            around: ({ text }, send) => text.includes("json_agg") ? Effect.tap(send, () => block) : send
          }
          const observer = yield* CoordinationStores.another({}, Seam.database(hooks))
          const first = yield* observer.provide(join(replicaSet, "first", [replicaSet]))
          const process = yield* CoordinationStores.another()
          yield* process.provide(join(replicaSet, "second", [replicaSet]))
          const key = (yield* keyOf(replicaSet, "second"))!
          const decides = observer.provide(decide(first)).pipe(Effect.provideService(Clock.Clock, late))
          yield* decides
          if (evidence === "absence") {
            yield* process.close
            yield* until(Effect.map(backendsOf(key, "holding"), (pids) => pids.length === 0))
            yield* decides
          }
          blocks = true
          assert.deepStrictEqual((yield* decides).evict, [])
          assert.isTrue(blocked > 0n)
        })
    )

    test("a process that died before the database's clock was set back is replaced after the grace period", function*() {
      const { evicts, process, second, set } = yield* withClock("dead")
      yield* process.close
      yield* set("-1 hour")
      assert.deepStrictEqual(yield* evicts({ presenceGraceMillis: 100 }), [second.incarnation])
    })

    test(
      "an observer that started while the clock was wrong evicts a silent worker after the timeout",
      function*({ sql }) {
        const { process, second, set } = yield* withClock("young")
        yield* set("-1 hour")
        const observer = yield* CoordinationStores.another()
        const third = yield* observer.provide(join("young", "third", ["young"]))
        yield* sql`UPDATE orchestrator_heartbeats SET heartbeat_at = clock_timestamp() + interval '1 hour'
          WHERE replica_set = 'young' AND incarnation = ${second.incarnation}`
        const evicted = yield* TimeLimits.waitUntil(
          "the silent worker is evicted",
          observer.provide(
            decide(third, { rules: { ...patient, heartbeatIntervalMillis: 0, staleWorkerTimeoutMillis: 300 } })
          ),
          ({ evict }) => evict.some(({ incarnation }) => incarnation === second.incarnation)
        )
        assert.isTrue(evicted.evict.length > 0)
        yield* process.close
      }
    )

    it.effect.each([
      "the session of its presence",
      "all of its sessions"
    ])(
      "a process that has lost %s still counts as alive until it reconnects, and is not replaced",
      (what) =>
        Effect.gen(function*() {
          const reconnected = yield* Deferred.make<void>()
          let slow = false
          const { first, key, process, second } = yield* pair(what, {
            around: ({ text }, send) =>
              slow && text.includes("pg_try_advisory_lock")
                ? Effect.andThen(Deferred.await(reconnected), send)
                : send
          })
          const coordination = yield* process.provide(
            Effect.flatMap(CoordinationSession.CoordinationSession, ({ use }) =>
              use("look", ({ sql }) => sql<{ readonly pid: number }>`SELECT pg_backend_pid() AS pid`))
          )
          slow = true
          yield* terminate([
            ...yield* backendsOf(key, "holding"),
            ...(what.startsWith("all")
              ? coordination.map(({ pid }) =>
                pid
              )
              : [])
          ])
          yield* until(Effect.map(backendsOf(key, "holding"), (pids) => pids.length === 0))
          const evicted: Array<bigint> = []
          // The process sends a heartbeat every 40 ms. The grace period is much longer, because a test process that
          // shares its cores may be paused itself.
          yield* decide(first, { rules: { ...patient, presenceGraceMillis: TimeLimits.scaledMillis(800) } }).pipe(
            Effect.tap(({ evict }) => Effect.sync(() => evicted.push(...evict.map(({ incarnation }) => incarnation)))),
            Effect.repeat(
              Schedule.max([Schedule.spaced("20 millis"), Schedule.during(TimeLimits.scaled("2500 millis"))])
            )
          )
          yield* Deferred.succeed(reconnected, undefined)
          yield* until(Effect.map(backendsOf(key, "holding"), (pids) => pids.length === 1))
          assert.deepStrictEqual(evicted, [], `${second.incarnation} lives`)
        }),
      { tags: ["long"] }
    )

    test("a process whose presence key is still locked takes a new one", function*({ sql }) {
      const process = yield* CoordinationStores.another()
      yield* process.provide(Effect.flatMap(join("new key", "worker", ["new key"]), listens))
      const key = (yield* keyOf("new key", "worker"))!
      const holders = yield* backendsOf(key, "holding")
      // Another session holds the key, as an old session does whose end the server has not noticed.
      yield* sql.withTransaction(Effect.gen(function*() {
        yield* terminate(holders)
        yield* sql`SELECT pg_advisory_xact_lock(${yield* presenceClass}, ${key}::int4)`
        yield* until(Effect.map(keyOf("new key", "worker"), (now) => now !== key))
      }))
      const now = (yield* keyOf("new key", "worker"))!
      assert.strictEqual((yield* backendsOf(now, "holding")).length, 1)
    })

    test("a worker that registers while its process takes a new key gets the new key", function*({ sql }) {
      const process = yield* CoordinationStores.another()
      yield* process.provide(Effect.flatMap(join("early", "worker", ["early"]), listens))
      const key = (yield* keyOf("early", "worker"))!
      const joining = yield* sql.withTransaction(Effect.gen(function*() {
        // The join waits for the decision lock with the key that its process had when it began.
        yield* sql`SELECT pg_advisory_xact_lock('orchestrator_generations'::regclass::oid::int4, hashtext('late'))`
        const joining = yield* Effect.forkScoped(process.provide(join("late", "worker", ["late"])))
        yield* until(
          Effect.map(
            sql`SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted
                AND classid = 'orchestrator_generations'::regclass AND objid::int8 = hashtext('late')::int8 & 4294967295
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`,
            (waiting) => waiting.length > 0
          )
        )
        const holders = yield* backendsOf(key, "holding")
        yield* terminate(holders)
        yield* sql`SELECT pg_advisory_xact_lock(${yield* presenceClass}, ${key}::int4)`
        yield* until(Effect.map(keyOf("early", "worker"), (now) => now !== key))
        return joining
      }))
      yield* Fiber.join(joining)
      assert.strictEqual(yield* keyOf("late", "worker"), yield* keyOf("early", "worker"))
    })

    test("watching does not hold back vacuum for longer than one wait", { tags: ["long"] }, function*({ sql }) {
      const { key } = yield* pair("vacuum")
      const pid = (yield* backendsOf(key, "watching"))[0]!
      const started = Effect.map(
        sql<{ since: string }>`SELECT xact_start::text AS since FROM pg_stat_activity WHERE pid = ${pid}`,
        (rows) => rows[0]?.since
      )
      const first = yield* started
      yield* until(Effect.map(started, (since) => typeof since === "string" && since !== first))
    })

    test("a watch survives the loss of its own session without a wake-up", function*() {
      const { die, key, wakeUps } = yield* pair("watcher's session")
      const watchers = yield* backendsOf(key, "watching")
      yield* terminate(watchers)
      yield* until(
        Effect.map(backendsOf(key, "watching"), (pids) => pids.length === 1 && pids[0] !== watchers[0])
      )
      assert.strictEqual((yield* Queue.clear(wakeUps)).length, 0)
      yield* die
      yield* Queue.take(wakeUps)
    })

    test("workers that watch the same process share a connection", function*({ membership }) {
      const process = yield* CoordinationStores.another()
      const sets = ["shared 1", "shared 2", "shared 3"]
      const watched = yield* Effect.forEach(sets, (set) => process.provide(join(set, "other", [set])))
      assert.strictEqual(new Set(yield* Effect.forEach(sets, (set) => keyOf(set, "other"))).size, 1)
      const key = (yield* keyOf(sets[0]!, "other"))!
      for (const set of sets) {
        const worker = yield* join(set, "worker", [set])
        const { generation } = yield* decide(worker)
        yield* membership.watch(worker, generation!)
      }
      yield* until(Effect.map(backendsOf(key, "watching"), (pids) => pids.length === 1))
      assert.strictEqual(watched.length, 3)
      assert.strictEqual((yield* backendsOf(key, "holding")).length, 1)
    })

    test("a worker id whose process has just died is free again after two seconds", function*() {
      const { die, second } = yield* pair("just died")
      yield* die
      const before = yield* Clock.monotonicTimeNanos
      const again = yield* join("just died", "second", ["just died"])
      const millis = Number((yield* Clock.monotonicTimeNanos) - before) / 1e6
      assert.isTrue(again.incarnation > second.incarnation)
      assert.isAtLeast(millis, 1900)
    })

    test("without presence, a registration counts as alive until its heartbeat is too old", function*() {
      const process = yield* CoordinationStores.another({ presence: false })
      const scope = yield* Scope.make()
      yield* process.provide(join("no presence", "worker", ["no presence"])).pipe(Scope.provide(scope))
      assert.isNull(yield* keyOf("no presence", "worker"))
      yield* Scope.close(scope, Exit.void)
      yield* process.close
      const joining = yield* Effect.forkChild(join("no presence", "worker", []), { startImmediately: true })
      yield* Effect.sleep("300 millis")
      assert.isUndefined(joining.pollUnsafe())
      yield* Fiber.interrupt(joining)
    })
  }
)

it.live("a presence key that the sequence returns again while another process holds it is not used", () =>
  Effect.gen(function*() {
    const sql = yield* PgClient.PgClient
    const first = yield* join("set", "first", ["p"])
    // As after a failover that lost the sequence's last steps.
    yield* sql`SELECT setval('orchestrator_presence_keys', 1, false)`
    const process = yield* CoordinationStores.another()
    const second = yield* process.provide(join("set", "second", ["p"]))
    const { evict, generation } = yield* process.provide(decide(second, {
      rules: { ...patient, presenceGraceMillis: 0 }
    }))
    assert.deepStrictEqual(evict, [])
    assert.deepStrictEqual(generation?.members.map(({ workerId }) => workerId), [first.workerId, second.workerId])
  }).pipe(Effect.scoped, Effect.provide(CoordinationStores.layerWith())))
