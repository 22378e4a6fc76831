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
import * as Os from "node:os"
import * as CoordinationSession from "../../../../src/layers/postgres/coordination/CoordinationSession.ts"
import * as Presence from "../../../../src/layers/postgres/coordination/Presence.ts"
import { Database } from "../../../../src/layers/postgres/Database.ts"
import type * as Generation from "../../../../src/schema/Generation.ts"
import * as Worker from "../../../../src/schema/Worker.ts"
import { Membership } from "../../../../src/services/Membership.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import { logs } from "../../../services/World.ts"
import * as MembershipSuite from "../../../suites/MembershipSuite.ts"
import { hasty, patient, realTime } from "../../../suites/Suite.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as Seam from "../../../support/Seam.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"
import * as Tests from "../../../support/Tests.ts"

MembershipSuite.suite("postgres", CoordinationStores.layerWith(), { time: realTime })

const { decide, join } = CoordinationStores

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

/** A heartbeat, which displays that the worker runs the generation if there is one. */
const heartbeat = (worker: Worker.Registration, generation?: Generation.Generation) =>
  Membership.use((membership) =>
    membership.heartbeat(worker, generation && Worker.display(worker, "running", generation))
  )

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

    test("an id of a worker in another process is in use, and the error names that process", function*() {
      const process = yield* CoordinationStores.another()
      const other = yield* process.provide(join("elsewhere", "worker", ["elsewhere"]))
      const beats = process.provide(heartbeat(other))
      const error = yield* Effect.flip(join("elsewhere", "worker", ["elsewhere"])).pipe(
        Effect.raceFirst(Effect.andThen(beats, Effect.sleep("50 millis")).pipe(Effect.forever))
      )
      assert(error._tag === "WorkerIdInUse")
      assert.deepStrictEqual([error.host, error.pid], [Os.hostname(), globalThis.process.pid])
      assert.deepStrictEqual(error.since, other.startedAt)
    })

    it.effect.each([true, false])(
      "a registration without heartbeats delays a worker with the same id until it is stale, and is then replaced (presence: %s)",
      (presence) =>
        Effect.gen(function*() {
          const replicaSet = `lingers ${presence}`
          const process = yield* CoordinationStores.another({ presence })
          const first = yield* process.provide(join(replicaSet, "pod-0", [replicaSet]))
          const { layer, lines } = logs()
          const membership = yield* Membership
          const again = yield* membership.join({ replicaSet, workerId: "pod-0", projections: [], rules: hasty }).pipe(
            Effect.provide(layer)
          )
          assert.isTrue(again.incarnation > first.incarnation)
          const waits = lines.filter(({ text }) => text.includes("Waiting"))
          assert.strictEqual(waits.length, 1)
          assert.match(
            waits[0]!.text,
            /^Worker id "pod-0" is still registered by process \d+ on .* replaced in \d+ s, unless/
          )
          const replaced = process.provide(Effect.flip(heartbeat(first)))
          assert.strictEqual((yield* replaced)._tag, "WorkerReplaced")
        })
    )

    test("the wait for an earlier registration survives a lost connection", function*() {
      const first = yield* join("lost wait", "pod-0", ["lost wait"])
      let looks = 0
      const process = yield* CoordinationStores.another(
        {},
        Seam.database({
          // The first query belongs to the attempt to register.
          around: ({ lose, text }, send) => text.includes("own_present") && ++looks === 2 ? lose : send
        })
      )
      const again = yield* process.provide(
        Effect.flatMap(
          Membership,
          (membership) => membership.join({ replicaSet: "lost wait", workerId: "pod-0", projections: [], rules: hasty })
        )
      )
      assert.isTrue(again.incarnation > first.incarnation)
      assert.isAbove(looks, 2)
    })

    test("a deleted registration is reported as deleted, not as silent", function*({ sql }) {
      const worker = yield* join("deleted", "worker", ["deleted"])
      yield* sql`DELETE FROM orchestrator_workers WHERE replica_set = 'deleted'`
      const error = yield* Effect.flip(heartbeat(worker))
      assert(error._tag === "WorkerEvicted")
      assert.include(error.message, "is no longer in the table of workers")
      assert.notInclude(error.message, "silent")
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

    test("without presence, a registration whose acknowledgement was lost does not block a retry", function*() {
      let registering = false
      let losses = 0
      const process = yield* CoordinationStores.another(
        { presence: false },
        Seam.database({
          around: (statement, send) => {
            if (/INSERT INTO .*orchestrator_workers/.test(statement.text)) registering = true
            if (!registering || statement.text !== "COMMIT" || losses > 0) return send
            losses++
            return Effect.andThen(send, statement.lose)
          }
        }, { presence: false })
      )
      const rejoin = process.provide(join("unheard", "worker", ["unheard"]))
      assert.strictEqual(reasonOf(yield* Effect.flip(rejoin))._tag, "DatabaseUnavailable")
      assert.strictEqual(losses, 1)
      assert.strictEqual((yield* rejoin).workerId, "worker")
      assert.strictEqual((yield* Effect.flip(rejoin))._tag, "WorkerIdInUse")
    })

    test("of several concurrent joins under one id, one succeeds", function*() {
      const processes = yield* Effect.forEach([1, 2, 3], () => CoordinationStores.another())
      const failures: Array<unknown> = []
      const joinAndBeat = Effect.gen(function*() {
        const exit = yield* Effect.exit(join("one id", "worker", ["one id"]))
        if (Exit.isFailure(exit)) {
          failures.push(exit.cause)
          return exit
        }
        while (failures.length < 5) {
          yield* heartbeat(exit.value)
          yield* Effect.sleep("20 millis")
        }
        return exit
      })
      const exits = yield* Effect.forEach(
        [...processes, ...processes],
        (process) => process.provide(joinAndBeat),
        { concurrency: "unbounded" }
      )
      assert.strictEqual(exits.filter(Exit.isSuccess).length, 1)
    })

    test("a generation whose activation was not recorded is recorded by the next heartbeat", function*({ sql }) {
      let losses = 0
      const process = yield* CoordinationStores.another(
        {},
        Seam.database({
          around: (statement, send) =>
            statement.text.includes("SET state = 'active'") && losses++ === 0 ? statement.lose : send
        })
      )
      const worker = yield* process.provide(join("activated", "a", ["activated"]))
      const { generation } = yield* process.provide(decide(worker))
      const beat = process.provide(heartbeat(worker, generation))
      const states = sql`SELECT w.state AS worker, g.state AS generation
          FROM orchestrator_generations g JOIN orchestrator_workers w USING (replica_set)
          WHERE replica_set = 'activated'`
      yield* beat
      assert.deepStrictEqual(yield* states, [{ worker: "running", generation: "pending" }])
      yield* beat
      assert.deepStrictEqual(yield* states, [{ worker: "running", generation: "active" }])
    })

    test(
      "a heartbeat does not wait for displayed rows that another session has locked",
      function*({ sql }) {
        const worker = yield* join("locked", "a", ["locked"])
        const { generation } = yield* decide(worker)
        const beat = heartbeat(worker, generation)
        const states = Effect.map(
          sql<{ readonly state: string }>`SELECT state FROM orchestrator_workers WHERE replica_set = 'locked'
            UNION ALL SELECT state FROM orchestrator_generations WHERE replica_set = 'locked'`,
          (rows) => rows.map(({ state }) => state)
        )
        yield* sql.withTransaction(Effect.gen(function*() {
          yield* sql`SELECT FROM orchestrator_workers WHERE replica_set = 'locked' FOR UPDATE`
          yield* sql`SELECT FROM orchestrator_generations WHERE replica_set = 'locked' FOR UPDATE`
          yield* beat
        }))
        assert.deepStrictEqual(yield* states, ["pending", "pending"])
        yield* beat
        assert.deepStrictEqual(yield* states, ["running", "active"])
      }
    )

    it.effect.each(["workers", "generations"])(
      "a heartbeat succeeds although the displayed state of the %s cannot be written",
      (table) =>
        Effect.gen(function*() {
          const sql = yield* SqlClient.SqlClient
          const replicaSet = `unwritable ${table}`
          const worker = yield* join(replicaSet, "a", [replicaSet])
          const { generation } = yield* decide(worker)
          const beat = heartbeat(worker, generation)
          const read = sql<{ beat: Date; worker: string; generation: string }>`
            SELECT h.heartbeat_at AS beat, w.state AS worker, g.state AS generation
            FROM orchestrator_heartbeats h JOIN orchestrator_workers w USING (replica_set, worker_id)
              JOIN orchestrator_generations g USING (replica_set)
            WHERE replica_set = ${replicaSet}`
          const [before] = yield* read
          yield* sql.withTransaction(Effect.gen(function*() {
            // As CREATE INDEX locks it: reads continue, writes wait.
            yield* sql`LOCK TABLE ${sql(`orchestrator_${table}`)} IN SHARE MODE`
            yield* beat
          }))
          const [after] = yield* read
          assert.isAbove(after!.beat.getTime(), before!.beat.getTime())
          assert.strictEqual(after!.generation, "pending")
          yield* beat
          const [last] = yield* read
          assert.deepStrictEqual([last!.worker, last!.generation], ["running", "active"])
        })
    )

    test("a heartbeat whose displayed state is recorded is one statement", function*() {
      const statements: Array<string> = []
      const process = yield* CoordinationStores.another(
        {},
        Seam.database({
          around: (statement, send) => {
            if (statement.session.endsWith("coordination")) statements.push(statement.text)
            return send
          }
        })
      )
      const worker = yield* process.provide(join("idle", "a", ["idle"]))
      const { generation } = yield* process.provide(decide(worker))
      const beat = process.provide(heartbeat(worker, generation))
      yield* beat
      statements.length = 0
      yield* beat
      assert.strictEqual(statements.length, 1, statements.join("\n"))
    })

    test("a generation is active when all of its members run it", function*({ sql }) {
      const workers = [yield* join("active", "a", ["active"]), yield* join("active", "b", ["active"])]
      const { generation } = yield* decide(workers[0]!)
      const state = Effect.map(
        sql<{ state: string; activated: boolean }>`SELECT state, activated_at IS NOT NULL AS activated
            FROM orchestrator_generations WHERE replica_set = 'active'`,
        (rows) => rows[0]
      )
      yield* heartbeat(workers[0]!, generation)
      assert.deepStrictEqual(yield* state, { state: "pending", activated: false })
      yield* heartbeat(workers[1]!, generation)
      assert.deepStrictEqual(yield* state, { state: "active", activated: true })
      assert.deepStrictEqual(
        yield* sql`SELECT worker_id, state, generation_id, partition_key FROM orchestrator_workers
            WHERE replica_set = 'active' ORDER BY partition_key`,
        [
          { worker_id: "a", state: "running", generation_id: 1n, partition_key: 0 },
          { worker_id: "b", state: "running", generation_id: 1n, partition_key: 1 }
        ]
      )
      yield* join("active", "c", ["active"])
      yield* decide(workers[0]!)
      const states =
        yield* sql`SELECT state FROM orchestrator_generations WHERE replica_set = 'active' ORDER BY generation_id`
      assert.deepStrictEqual(states, [{ state: "superseded" }, { state: "pending" }])
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
