/**
 * Tests `examples/basic` as users run it, with real processes, signals, output, rows and exit codes.
 *
 * @module-tag long
 */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Path from "node:path"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as WorkerProcess from "../../src/testing/WorkerProcess.ts"

const example = (file: string) => Path.resolve(import.meta.dirname, "../../examples/basic", file)

const start = Effect.fnUntraced(function*(id: string, url: string, file = "main.ts", mayEnd = false) {
  return yield* WorkerProcess.spawn({ id, script: example(file), env: { DATABASE_URL: url }, mayEnd })
})

type Process = Effect.Success<ReturnType<typeof start>>

/** Waits for a condition; any output of the processes extends the time limit. */
const until = <E, R>(what: string, processes: ReadonlyArray<Process>, holds: Effect.Effect<boolean, E, R>) => {
  const outputs = () => processes.map((process) => `output of ${process.id}:\n${process.output()}`).join("\n")
  const look = Effect.suspend(() => {
    const problem = processes.map((process) => process.problem()).find((text) => text !== undefined)
    return problem === undefined ? holds : Effect.die(new Error(`${problem}\n${outputs()}`))
  })
  return TimeLimits.waitUntil(what, look, (done) => done, { progress: outputs, describe: outputs })
}

const printed = (process: Process, text: string) =>
  until(`${process.id} prints "${text}"`, [process], Effect.sync(() => process.output().includes(text)))

/** Asserts that the output contains the texts, each on a later line than the previous one. */
const inOrder = (output: string, texts: ReadonlyArray<string>) => {
  const lines = output.split("\n")
  let from = 0
  for (const text of texts) {
    const found = lines.findIndex((line, index) => index >= from && line.includes(text))
    if (found < 0) assert.fail(`"${text}" is missing, or out of order, in:\n${output}`)
    from = found + 1
  }
}

const reconfiguration = ["Stopping current generation", "Restarting with new configuration..."]

describe("examples/basic", { concurrent: false }, () => {
  it.live("two workers share the work, and one claims everything when the other is interrupted", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const { url } = yield* PostgresTest.TestDatabase
      const a = yield* start("a", url)
      yield* printed(a, "Processing events...")
      inOrder(a.output(), [
        "Starting orchestrator...",
        "Worker registered: worker-",
        "Assigned partition: 0 of 1",
        "Processing events..."
      ])

      const b = yield* start("b", url)
      yield* printed(b, "Processing events...")
      yield* printed(a, "Assigned partition: 0 of 2")
      inOrder(a.output(), ["New worker detected, reconfiguring...", ...reconfiguration, "Assigned partition: 0 of 2"])
      inOrder(b.output(), ["Starting orchestrator...", "Worker registered: worker-", "Assigned partition: 1 of 2"])
      // The tutorial's queries, verbatim.
      const [generation] = yield* sql<{ readonly members: ReadonlyArray<unknown>; readonly total_partitions: number }>`
        SELECT * FROM orchestrator_generations WHERE replica_set = 'main-projections' ORDER BY generation_id DESC LIMIT 1`
      assert.strictEqual(generation?.total_partitions, 2)
      const workers = () =>
        sql<{ readonly state: string; readonly pid: number; readonly partition_key: number }>`
          SELECT * FROM orchestrator_workers WHERE replica_set = 'main-projections'`
      yield* until(
        "both are running",
        [a, b],
        Effect.map(workers(), (rows) => rows.length === 2 && rows.every(({ state }) => state === "running"))
      )
      const heartbeats = yield* sql`
        SELECT * FROM orchestrator_heartbeats WHERE replica_set = 'main-projections' ORDER BY heartbeat_at DESC LIMIT 10`
      assert.strictEqual(heartbeats.length, 2)

      const handled = (processes: ReadonlyArray<Process>) =>
        until(
          "every user is in the table",
          processes,
          Effect.map(
            sql<{ readonly missing: bigint }>`
            SELECT count(*) AS missing
            FROM (
              SELECT aggregate_id AS id, max(aggregate_version) AS version, bool_or(event_type = 'UserDeleted') AS deleted
              FROM events GROUP BY aggregate_id
            ) e
            FULL JOIN users u USING (id) WHERE CASE WHEN e.deleted THEN u.id IS NOT NULL
              ELSE e.version IS DISTINCT FROM u.version END`,
            ([row]) => row?.missing === 0n
          )
        )
      const append = yield* start("append", url, "append.ts", true)
      assert.deepStrictEqual(yield* append.ended, { code: 0, signal: null })
      assert.match(append.output(), /Appended [23] events of user-\d+ at positions 1, 2/)
      yield* handled([a, b])

      assert.deepStrictEqual(yield* b.interrupt, { code: 0, signal: null }, b.output())
      inOrder(b.output(), [
        "Received signal interrupt, shutting down...",
        "Unregistering worker...",
        "Shutdown complete"
      ])
      yield* printed(a, "Processing all events now...")
      inOrder(a.output(), [
        "Worker left, reconfiguring...",
        ...reconfiguration,
        "Assigned partition: 0 of 1",
        "Processing all events now..."
      ])
      assert.deepStrictEqual((yield* workers()).filter(({ pid }) => pid === b.pid).map(({ state }) => state), [
        "stopped"
      ])
      const held = yield* sql<{ readonly range_start: bigint; readonly range_end: bigint; readonly pid: number }>`
        SELECT c.range_start, c.range_end, w.pid
        FROM orchestrator_checkpoints c JOIN orchestrator_workers w USING (worker_id, incarnation)`
      assert.isTrue(held.every(({ pid }) => pid === a.pid))
      assert.strictEqual(held.reduce((sum, row) => sum + Number(row.range_end - row.range_start), 0), 2 ** 32)

      yield* (yield* start("append", url, "append.ts", true)).ended
      yield* handled([a])
      assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null }, a.output())
      inOrder(a.output(), [
        "Received signal terminated, shutting down...",
        "Unregistering worker...",
        "Shutdown complete"
      ])
      const free = yield* sql`SELECT FROM orchestrator_checkpoints WHERE worker_id IS NOT NULL`
      assert.strictEqual(free.length, 0)
    }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))

  it.live("a second signal ends the process at once, but a repetition of the first does not", () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      const { url } = yield* PostgresTest.TestDatabase
      const hanging = (process: Process) =>
        until(
          "the handler waits for the lock",
          [process],
          Effect.map(
            sql`SELECT FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'example' AND wait_event_type = 'Lock'`,
            (rows) => rows.length > 0
          )
        )
      /** Runs `self` while the handler's table is locked. */
      const locked = <E, R>(self: Effect.Effect<void, E, R>) =>
        sql.withTransaction(Effect.andThen(sql`LOCK TABLE users IN ACCESS EXCLUSIVE MODE`, self))
      const a = yield* start("a", url)
      yield* printed(a, "Processing events...")
      const append = yield* start("append", url, "append.ts", true)
      yield* append.ended

      yield* locked(Effect.gen(function*() {
        yield* (yield* start("append", url, "append.ts", true)).ended
        yield* hanging(a)
        yield* a.send("SIGINT")
        // As npm forwards a signal that the terminal has already sent. Two signals before the first is handled would be
        // delivered as one.
        yield* printed(a, "Received signal interrupt, shutting down...")
        yield* a.send("SIGINT")
      }))
      assert.deepStrictEqual(yield* a.ended, { code: 0, signal: null }, a.output())
      inOrder(a.output(), ["Received signal", "Unregistering worker...", "Shutdown complete"])
      assert.strictEqual(a.output().split("Received signal").length, 2)

      const b = yield* start("b", url)
      yield* printed(b, "Processing events...")
      yield* locked(Effect.gen(function*() {
        yield* (yield* start("append", url, "append.ts", true)).ended
        yield* hanging(b)
        yield* b.send("SIGTERM")
        yield* printed(b, "Received signal terminated, shutting down...")
        // Only a signal after some time counts as a second one.
        yield* Effect.sleep(700)
        yield* b.send("SIGINT")
        // The handler still hangs, so only the second signal can have ended the process.
        assert.deepStrictEqual(yield* b.ended, { code: 130, signal: null }, b.output())
        assert.notInclude(b.output(), "Unregistering worker...")
      }))
    }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))

  it.live("an unusable database ends the program with a message and exit code 1", () =>
    Effect.gen(function*() {
      const { name, url } = yield* PostgresTest.TestDatabase
      const password = "s3cret-of-nobody"
      const urlWith = (change: (url: URL) => void) => {
        const changed = new URL(url)
        changed.password = password
        change(changed)
        return changed
      }
      const closedPort =
        /DatabaseUnavailable: The database server at \S+:1 refuses connections\. Check that PostgreSQL runs there/
      const cases: ReadonlyArray<{
        readonly id: string
        readonly file?: string
        readonly url: URL
        readonly says: RegExp
      }> = [
        {
          id: "closed port, the README's program",
          file: "../ways/program.ts",
          url: urlWith((url) => {
            url.port = "1"
          }),
          says: closedPort
        },
        {
          id: "closed port",
          url: urlWith((url) => {
            url.port = "1"
          }),
          says: closedPort
        },
        {
          id: "wrong password",
          url: urlWith(() => {}),
          says:
            /DatabaseUnavailable: The database server at \S+:\d+ does not accept user "\w+" with the given password\. Check/
        },
        {
          id: "unknown database",
          url: urlWith((changed) => {
            changed.password = new URL(url).password
            changed.pathname = `/${name}_not`
          }),
          says: /DatabaseUnavailable: The database server at \S+:\d+ has no database "\w+_not"\. Create it/
        }
      ]
      yield* Effect.forEach(cases, ({ file, id, says, url }) =>
        Effect.gen(function*() {
          const process = yield* start(id, url.href, file ?? "main.ts", true)
          assert.deepStrictEqual(yield* process.ended, { code: 1, signal: null }, process.output())
          assert.match(process.output(), says)
          assert.notMatch(process.output(), /^\s+at /m)
          assert.notInclude(process.output(), url.password)
        }), { concurrency: "unbounded", discard: true })
    }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))
})
