/** What heartbeats display and report, and which registrations of an id replace each other. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as SqlClient from "effect/sql/SqlClient"
import * as Os from "node:os"
import { Membership } from "../../../../src/services/Membership.ts"
import { logs } from "../../../services/World.ts"
import { hasty } from "../../../suites/Suite.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as Seam from "../../../support/Seam.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"
import * as Tests from "../../../support/Tests.ts"

const { decide, heartbeat, join } = CoordinationStores

it.layer(CoordinationStores.layerWith(), { excludeTestServices: true })(
  "MembershipPostgres: registrations and heartbeats",
  (it) => {
    const test = Tests.on(it.effect, Effect.all({ membership: Membership, sql: SqlClient.SqlClient }))

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
