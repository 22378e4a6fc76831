import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import type { Held } from "../../../../src/schema/Checkpoint.ts"
import { CheckpointStore } from "../../../../src/services/CheckpointStore.ts"
import * as PostgresTest from "../../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as CheckpointStoreSuite from "../../../suites/CheckpointStoreSuite.ts"
import { realTime } from "../../../suites/Suite.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as Proxy from "../../../support/Proxy.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"
import * as Tests from "../../../support/Tests.ts"

const layer = Layer.effectDiscard(Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE counts (key text PRIMARY KEY, count int NOT NULL)`
)).pipe(Layer.provideMerge(CoordinationStores.layerWith()))

CheckpointStoreSuite.suite("postgres", layer, {
  time: realTime,
  effects: {
    record: (key) =>
      Effect.flatMap(
        SqlClient.SqlClient,
        (sql) => sql`INSERT INTO counts VALUES (${key}, 1) ON CONFLICT (key) DO UPDATE SET count = counts.count + 1`
      ).pipe(Effect.asVoid),
    count: (key) =>
      Effect.flatMap(
        SqlClient.SqlClient,
        (sql) =>
          Effect.map(sql<{ count: number }>`SELECT count FROM counts WHERE key = ${key}`, (rows) => rows[0]?.count ?? 0)
      )
  }
})

const idleTimeout = Duration.seconds(20)

/** The backend that runs the batch. */
const backend = Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => Effect.map(sql<{ pid: number }>`SELECT pg_backend_pid() AS pid`, (rows) => rows[0]!.pid)
)

class OwnError extends Data.TaggedError("OwnError")<{ readonly cause: unknown }> {}

const messagesOf = (cause: Cause.Cause<unknown>) =>
  cause.reasons.map((reason) => Cause.isDieReason(reason) ? String(reason.defect) : "").join()

it.layer(layer, { excludeTestServices: true })("CheckpointStorePostgres", (it) => {
  const position = (row: Held) =>
    Effect.flatMap(CheckpointStore, (store) => Effect.map(store.rows(row.projection), (rows) => rows[0]!.position))

  const record = (key: string) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) => sql`INSERT INTO counts VALUES (${key}, 1)`).pipe(Effect.asVoid)

  const count = (key: string) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT 1 FROM counts WHERE key = ${key}`).pipe(
      Effect.map((rows) => rows.length)
    )

  const terminate = (pid: number) =>
    Effect.flatMap(PostgresTest.TestDatabase, ({ url }) =>
      PostgresTest.withConnection(
        url,
        Effect.flatMap(SqlClient.SqlClient, (sql) => sql`SELECT pg_terminate_backend(${pid})`)
      ))

  it.effect("a handler that is idle for longer than the idle timeout keeps its transaction", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const row = yield* CoordinationStores.held("idle")
      const work = record("idle").pipe(Effect.andThen(Effect.sleep(TimeLimits.scaled("2 seconds"))))
      yield* store.commit(row, { from: 0n, idleTimeout: TimeLimits.scaled("600 millis") }, Effect.as(work, 5n))
      assert.strictEqual(yield* position(row), 5n)
      assert.strictEqual(yield* count("idle"), 1)
    }))

  it.effect("a batch that the server's transaction timeout ends is a transient failure", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("transaction timeout")
      const work = sql`SELECT set_config('transaction_timeout', '200', true)`.pipe(
        Effect.andThen(Effect.sleep("600 millis")),
        Effect.andThen(sql`SELECT 1`)
      )
      const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, Effect.as(work, 5n)))
      assert(failure._tag === "TransientFailure")
      assert.strictEqual(failure.kind, "connection")
    }))

  it.effect("a batch whose table was altered after its statements were prepared is a transient failure", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE changed (key text)`
      const row = yield* CoordinationStores.held("changed")
      const step = (from: bigint) =>
        store.commit(row, { from, idleTimeout }, Effect.as(sql`SELECT * FROM changed`, from + 1n))
      yield* step(0n)
      yield* step(1n)
      yield* sql`ALTER TABLE changed ADD COLUMN extra int`
      const failure = yield* Effect.flip(step(2n))
      assert(failure._tag === "TransientFailure")
      assert.strictEqual(failure.kind, "refusal")
      yield* step(2n)
      assert.strictEqual(yield* position(row), 3n)
    }))

  it.effect("a refused COMMIT is a failure, whatever the error code", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      yield* sql`CREATE TABLE refusing (code text)`
      yield* sql.unsafe(`
        CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = NEW.code; END $$`)
      yield* sql.unsafe(`
        CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON refusing DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION refuse()`)
      for (const code of ["23514", "0A000", "26000"]) {
        const row = yield* CoordinationStores.held(`refused with ${code}`)
        const insert = Effect.as(sql`INSERT INTO refusing VALUES (${code})`, 1n)
        const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, insert))
        assert.strictEqual(failure._tag, "HandlerFailure")
        assert.strictEqual(yield* position(row), 0n)
      }
    }))

  it.effect("a COMMIT that the server answers with ROLLBACK is a failure", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("rolled back")
      let announced = false
      const work = Effect.gen(function*() {
        yield* record("rolled back")
        yield* sql.afterCommit(Effect.sync(() => {
          announced = true
        }))
        // Detached fibers outlive the handler, so their statements run between the fenced advance and COMMIT.
        yield* Effect.forkDetach(sql`SELECT pg_sleep(0.5)`, { startImmediately: true })
        yield* Effect.forkDetach(Effect.delay(sql`SELECT 1 / 0`, "200 millis"), { startImmediately: true })
        return 5n
      })
      const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, work))
      assert(failure._tag === "HandlerFailure")
      assert.include(messagesOf(failure.cause), "its error was ignored")
      assert.isFalse(announced)
      assert.strictEqual(yield* position(row), 0n)
      assert.strictEqual(yield* count("rolled back"), 0)
    }))

  it.effect("a read-only transaction is attributed to the handler only if the handler made it read-only", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("reads only")
      let calls = 0
      const work = Effect.as(Effect.sync(() => calls++), 1n)
      const readOnly = Effect.provideService(SqlClient.BeginTransaction, "BEGIN READ ONLY")
      // On a standby, where the reading session does not exist either, its server epoch has not ended.
      for (const epoch of [undefined, "1@2@3"]) {
        const failure = yield* Effect.flip(readOnly(store.commit(row, { from: 0n, idleTimeout, epoch }, work)))
        assert(failure._tag === "StoreError")
        assert.strictEqual(reasonOf(failure)._tag, "ReadOnlyDatabase")
      }
      assert.strictEqual(calls, 0)
      // A transaction that the handler itself made read-only is the handler's failure.
      const own = Effect.andThen(sql`SET TRANSACTION READ ONLY`, record("reads only"))
      const attributed = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, Effect.as(own, 1n)))
      assert.strictEqual(attributed._tag, "HandlerFailure")
    }))

  it.effect("a disk error under a handler is a failure of the store", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("bad disk")
      const work = sql.unsafe("DO $$ BEGIN RAISE EXCEPTION 'could not read block' USING ERRCODE = '58030'; END $$")
      const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, Effect.as(work, 1n)))
      assert.strictEqual(reasonOf(failure)._tag, "StatementFailed")
      // A missing file that the handler's own statement reads is the handler's failure.
      const asks = Effect.as(sql`SELECT pg_read_file('/nonexistent')`, 1n)
      assert.strictEqual(
        (yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, asks)))._tag,
        "HandlerFailure"
      )
    }))

  it.effect("a batch sets an idle timeout, for its own transaction only", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("settings")
      let timeout: unknown
      const work = Effect.map(sql`SHOW idle_in_transaction_session_timeout`, (rows) => {
        timeout = rows[0]
      })
      yield* store.commit(row, { from: 0n, idleTimeout }, Effect.as(work, 5n))
      assert.deepStrictEqual(timeout, { idle_in_transaction_session_timeout: "20s" })
      assert.deepStrictEqual(yield* sql`SHOW idle_in_transaction_session_timeout`, [
        { idle_in_transaction_session_timeout: "0" }
      ])
    }))

  it.effect("a batch that waits for a lock as long as the idle timeout is a transient failure", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const { url } = yield* PostgresTest.TestDatabase
      const row = yield* CoordinationStores.held("queue")
      yield* record("queue")
      const touch = sql`UPDATE counts SET count = count + 1 WHERE key = 'queue'`
      const isLocked = yield* Deferred.make<void>()
      const locker = yield* PostgresTest.withConnection(
        url,
        Effect.flatMap(SqlClient.SqlClient, (other) =>
          other`SELECT FROM counts WHERE key = 'queue' FOR UPDATE`.pipe(
            Effect.andThen(Deferred.succeed(isLocked, undefined)),
            Effect.andThen(Effect.never),
            other.withTransaction
          ))
      ).pipe(Effect.forkScoped)
      yield* Tests.reached(isLocked, locker)
      const failure = yield* Effect.flip(
        store.commit(row, { from: 0n, idleTimeout: Duration.millis(400) }, Effect.as(touch, 5n))
      )
      assert(failure._tag === "TransientFailure")
      assert.strictEqual(failure.kind, "conflict")
    }))

  for (const [own, expected] of [["0", "20s"], ["7s", "7s"], ["1min", "20s"]] as const) {
    it.effect(`where the session's own lock_timeout is ${own}, a batch waits ${expected}`, () =>
      Effect.gen(function*() {
        const { url } = yield* PostgresTest.TestDatabase
        const client = PgClient.layer({ url: Redacted.make(url), startupParameters: { lock_timeout: own } })
        yield* Effect.gen(function*() {
          const store = yield* CheckpointStore
          const sql = yield* SqlClient.SqlClient
          const row = yield* CoordinationStores.held(`lock_timeout ${own}`)
          let timeout: unknown
          const work = Effect.map(sql`SHOW lock_timeout`, (rows) => {
            timeout = rows[0]
          })
          yield* store.commit(row, { from: 0n, idleTimeout }, Effect.as(work, 5n))
          assert.deepStrictEqual(timeout, { lock_timeout: expected })
        }).pipe(Effect.provide(CoordinationStores.over().pipe(Layer.provideMerge(client))))
      }))
  }

  const afterwards: ReadonlyArray<readonly [string, Effect.Effect<unknown, unknown, SqlClient.SqlClient>]> = [
    ["continues", Effect.void],
    ["fails with an error of its own", Effect.fail(new OwnError({ cause: undefined }))],
    ["executes another statement", backend]
  ]
  for (const [what, then] of afterwards) {
    it.effect(`a connection that is killed in the middle of a batch whose handler ${what} is a transient failure`, () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const name = `killed ${what}`
        const row = yield* CoordinationStores.held(name)
        const work = record(name).pipe(
          Effect.andThen(backend),
          Effect.flatMap(terminate),
          Effect.andThen(then),
          Effect.asVoid
        )
        const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, Effect.as(work, 5n)))
        assert(failure._tag === "TransientFailure")
        assert.strictEqual(failure.kind, "connection")
        assert.strictEqual(yield* count(name), 0)
        yield* store.commit(row, { from: 0n, idleTimeout }, Effect.as(record(name), 5n))
        assert.strictEqual(yield* count(name), 1)
      }))
  }

  it.effect("the outcome of a COMMIT whose connection dies is looked up: nothing was committed", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("deferred death")
      yield* sql`CREATE TABLE deadly (id int)`
      yield* sql`CREATE FUNCTION die() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM pg_terminate_backend(pg_backend_pid()); RETURN NULL; END'`
      yield* sql`CREATE CONSTRAINT TRIGGER die AFTER INSERT ON deadly DEFERRABLE INITIALLY DEFERRED
        FOR EACH ROW EXECUTE FUNCTION die()`
      const work = Effect.asVoid(sql`INSERT INTO deadly VALUES (1)`)
      const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, Effect.as(work, 5n)))
      assert(failure._tag === "TransientFailure")
      assert.strictEqual(failure.kind, "connection")
      assert.strictEqual(yield* position(row), 0n)
      yield* sql`DROP TABLE deadly`
    }))

  it.effect("the outcome of a COMMIT whose answer is lost is looked up: it was committed, once", () =>
    Effect.gen(function*() {
      const { url } = yield* PostgresTest.TestDatabase
      const row = yield* CoordinationStores.held("lost answer")
      const through = new URL(url)
      const proxy = yield* Proxy.make({ host: through.hostname, port: Number(through.port) })
      through.hostname = "127.0.0.1"
      through.port = String(proxy.port)
      yield* Effect.gen(function*() {
        const store = yield* CheckpointStore
        yield* store.commit(
          row,
          { from: 0n, idleTimeout },
          Effect.as(Effect.andThen(record("lost answer"), proxy.cutAtEnd), 5n)
        )
        // A position that another worker may have written does not prove that this batch committed.
        const fenced = yield* Effect.flip(
          store.commit(
            { ...row, fence: { ...row.fence, incarnation: 0n } },
            { from: 5n, idleTimeout },
            Effect.as(Effect.void, 6n)
          )
        )
        assert.strictEqual(fenced._tag, "Fenced")
        // The same for progress without a batch.
        yield* proxy.cutAtEnd
        yield* store.advance(row, { from: 5n, to: 7n })
      }).pipe(Effect.provide(
        CoordinationStores.over({ presence: false, listen: false }).pipe(
          Layer.provideMerge(PgClient.layer({ url: Redacted.make(through.href) }))
        )
      ))
      assert.strictEqual(yield* position(row), 7n)
      assert.strictEqual(yield* count("lost answer"), 1)
    }))

  it.effect("ranges that advance at the same time are written by one statement, each under its own fence", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const projections = Array.from({ length: 50 }, (_, index) => `together ${index}`)
      const registration = yield* CoordinationStores.join("together", "worker", projections)
      const { ownedRows: held } = yield* CoordinationStores.decide(registration)
      const [locked, moved, fenced] = held
      const other = { ...fenced!, fence: { ...fenced!.fence, incarnation: 0n } }
      yield* store.advance(moved!, { from: 0n, to: 2n })
      const advanceAll = Effect.forEach(
        held,
        (row) => Effect.result(store.advance(row === fenced ? other : row, { from: 0n, to: 5n })),
        { concurrency: "unbounded" }
      )
      const { url } = yield* PostgresTest.TestDatabase
      const results = yield* PostgresTest.withConnection(
        url,
        Effect.flatMap(SqlClient.SqlClient, (holder) =>
          holder.withTransaction(Effect.andThen(
            holder`SELECT FROM orchestrator_checkpoints WHERE projection_name = ${locked!.projection} FOR UPDATE`,
            advanceAll
          )))
      )
      const failures = results.map((result) => result._tag === "Failure" ? result.failure._tag : "none")
      assert.deepStrictEqual(failures.slice(0, 3), ["TransientFailure", "Fenced", "Fenced"])
      assert.deepStrictEqual(new Set(failures.slice(3)), new Set(["none"]))
      const rows = yield* sql<{ readonly position: bigint; readonly transactions: bigint; readonly rows: bigint }>`
        SELECT position, count(DISTINCT xmin::text) AS transactions, count(*) AS rows
        FROM orchestrator_checkpoints WHERE replica_set = 'together' GROUP BY position ORDER BY position`
      assert.deepStrictEqual(rows, [
        { position: 0n, transactions: 1n, rows: 2n },
        { position: 2n, transactions: 1n, rows: 1n },
        { position: 5n, transactions: 1n, rows: 47n }
      ])
      yield* store.advance(locked!, { from: 0n, to: 5n })
    }))

  for (const [what, code] of [["an error", "P0001"], ["a conflict", "40001"]] as const) {
    it.effect(`${what} of one range does not prevent the others from advancing at the same time`, () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const sql = yield* SqlClient.SqlClient
        const projections = ["one 1", "one 2", "one 3"].map((name) => `${name} ${code}`)
        const registration = yield* CoordinationStores.join(`one ${code}`, "worker", projections)
        const { ownedRows: held } = yield* CoordinationStores.decide(registration)
        yield* sql.unsafe(`CREATE FUNCTION refuse_one() RETURNS trigger LANGUAGE plpgsql AS $$
          BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '${code}'; END $$`)
        yield* sql.unsafe(`CREATE TRIGGER refuse_one BEFORE UPDATE ON orchestrator_checkpoints FOR EACH ROW
          WHEN (OLD.projection_name = 'one 2 ${code}') EXECUTE FUNCTION refuse_one()`)
        const results = yield* Effect.forEach(
          held,
          (row) => Effect.result(store.advance(row, { from: 0n, to: 5n })),
          { concurrency: "unbounded" }
        ).pipe(Effect.ensuring(Effect.orDie(sql`DROP FUNCTION refuse_one CASCADE`)))
        assert.deepStrictEqual(results.map(({ _tag }) => _tag), ["Success", "Failure", "Success"])
      }))
  }

  it.effect("an advance is cancelled when the last range that requested it is interrupted", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const registration = yield* CoordinationStores.join("abandoned", "worker", ["abandoned 1", "abandoned 2"])
      const { ownedRows: held } = yield* CoordinationStores.decide(registration)
      const waiting = Effect.map(
        sql<{ readonly statement: string }>`
          SELECT CASE WHEN query LIKE '%wanted%' THEN 'advance' ELSE 'rows' END AS statement FROM pg_stat_activity
          WHERE datname = current_database() AND wait_event_type = 'Lock' ORDER BY statement`,
        (rows) => rows.map(({ statement }) => statement).join()
      )
      const startAll = Effect.forEach(held, (row) => Effect.forkChild(store.advance(row, { from: 0n, to: 5n })))
      const { url } = yield* PostgresTest.TestDatabase
      yield* PostgresTest.withConnection(
        url,
        Effect.flatMap(SqlClient.SqlClient, (locker) =>
          locker.withTransaction(Effect.gen(function*() {
            yield* locker`LOCK TABLE orchestrator_checkpoints`
            // Starts before the advance, so that its time limit ends it first.
            const rows = yield* Effect.forkChild(store.rows("abandoned 1"))
            yield* TimeLimits.waitUntil("one statement waits for the table", waiting, (all) => all === "rows")
            const all = yield* startAll
            yield* TimeLimits.waitUntil("both statements wait", waiting, (all) => all === "advance,rows")
            yield* Fiber.interruptAll(all)
            yield* TimeLimits.waitUntil("the advance is cancelled", waiting, (all) => !all.includes("advance"))
            assert.isUndefined(rows.pollUnsafe())
          })))
      )
      yield* Effect.forEach(held, (row) => store.advance(row, { from: 0n, to: 5n }))
    }))

  it.effect("a range whose advance is interrupted ends after the statement that it shares with another range", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const registration = yield* CoordinationStores.join("shared", "worker", ["shared 1", "shared 2"])
      const { ownedRows: [left, remaining] } = yield* CoordinationStores.decide(registration)
      const waiting = sql`
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%wanted%'`
      const { url } = yield* PostgresTest.TestDatabase
      const [interrupted, other] = yield* PostgresTest.withConnection(
        url,
        Effect.flatMap(SqlClient.SqlClient, (locker) =>
          locker.withTransaction(Effect.gen(function*() {
            yield* locker`LOCK TABLE orchestrator_checkpoints IN EXCLUSIVE MODE`
            const [first, second] = yield* Effect.forEach(
              [left!, remaining!],
              (row) => Effect.forkChild(store.advance(row, { from: 0n, to: 5n }), { startImmediately: true })
            )
            yield* TimeLimits.waitUntil("the advance waits", waiting, (found) => found.length === 1)
            const interrupted = yield* Effect.forkChild(Fiber.interrupt(first!), { startImmediately: true })
            // The row is not written yet: a range that is opened from it now would be fenced.
            assert.strictEqual(yield* position(left!), 0n)
            assert.isUndefined(interrupted.pollUnsafe())
            return [interrupted, second!] as const
          })))
      )
      yield* Fiber.join(interrupted)
      assert.strictEqual(yield* position(left!), 5n)
      yield* Fiber.join(other)
    }))

  it.effect("a failed statement whose error is ignored is the handler's failure", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("ignored")
      const work = Effect.andThen(record("ignored"), Effect.ignore(sql`SELECT 1 / 0`))
      const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, Effect.as(work, 5n)))
      assert(failure._tag === "HandlerFailure")
      assert.include(messagesOf(failure.cause), "its error was ignored")
      assert.strictEqual(yield* count("ignored"), 0)
      // Inside a savepoint, the error may be ignored.
      const isolated = Effect.andThen(record("ignored"), Effect.ignore(sql.withTransaction(sql`SELECT 1 / 0`)))
      yield* store.commit(row, { from: 0n, idleTimeout }, Effect.as(isolated, 5n))
      assert.strictEqual(yield* count("ignored"), 1)
    }))

  it.effect.each(["SET LOCAL ROLE pg_monitor", "SET TRANSACTION READ ONLY"])(
    "a handler that leaves its transaction changed (%s) fails, and the error states the reason",
    (statement) =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const sql = yield* SqlClient.SqlClient
        const row = yield* CoordinationStores.held(statement)
        const work = Effect.as(sql.unsafe(statement), 1n)
        const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, work))
        assert(failure._tag === "HandlerFailure")
        assert.include(messagesOf(failure.cause), "the handler changed the role or the access mode")
        assert.strictEqual(yield* position(row), 0n)
      })
  )

  it.effect.each(["COMMIT", "ROLLBACK"])(
    "a handler that ends its transaction with %s fails, and the error states the reason",
    (statement) =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const sql = yield* SqlClient.SqlClient
        const row = yield* CoordinationStores.held(statement)
        const work = Effect.as(Effect.andThen(record(statement), sql.unsafe(statement)), 1n)
        const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, work))
        assert(failure._tag === "HandlerFailure")
        assert.include(messagesOf(failure.cause), "has ended the transaction that it runs in")
        assert.strictEqual(yield* position(row), 0n)
      })
  )

  it.effect("a prepared statement that the session has lost is prepared again by later attempts", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("deallocated")
      const ask = sql`SELECT 'prepared'`
      const work = Effect.as(Effect.andThen(ask, Effect.andThen(sql`DEALLOCATE ALL`, ask)), 1n)
      const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, work))
      assert(failure._tag === "TransientFailure")
      assert.strictEqual(failure.kind, "refusal")
      // Each attempt prepares one of the lost statements again.
      yield* Effect.retry(store.commit(row, { from: 0n, idleTimeout }, Effect.as(ask, 1n)), { times: 10 })
      // Uses its own pool, so that no other test receives these connections.
    }).pipe(Effect.provide(Layer.fresh(CoordinationStores.layerWith()))))

  it.effect("executing a statement that was never prepared is the handler's failure", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("never prepared")
      const failure = yield* Effect.flip(
        store.commit(row, { from: 0n, idleTimeout }, Effect.as(sql`EXECUTE nothing`, 1n))
      )
      assert.strictEqual(failure._tag, "HandlerFailure")
    }))

  it.effect("using the connection of a batch that has ended is the handler's failure", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("outlived")
      const go = yield* Deferred.make<void>()
      const fibers: Array<Fiber.Fiber<unknown, unknown>> = []
      const detach = Effect.map(
        Effect.forkDetach(Effect.andThen(Deferred.await(go), sql`SELECT 1`)),
        (fiber) => void fibers.push(fiber)
      )
      yield* store.commit(row, { from: 0n, idleTimeout }, Effect.as(detach, 5n))
      yield* Deferred.succeed(go, undefined)
      const failure = yield* Effect.flip(
        store.commit(row, { from: 5n, idleTimeout }, Effect.as(Effect.asVoid(Fiber.join(fibers[0]!)), 6n))
      )
      assert(failure._tag === "HandlerFailure")
      assert.include(messagesOf(failure.cause), "outlived its batch")
    }))

  it.effect("fibers that the handler forks end before its batch does", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const row = yield* CoordinationStores.held("children")
      let interrupted = false
      const child = Effect.onInterrupt(Effect.never, () =>
        Effect.andThen(
          record("children"),
          Effect.sync(() => {
            interrupted = true
          })
        ).pipe(Effect.ignore))
      yield* store.commit(
        row,
        { from: 0n, idleTimeout },
        Effect.as(Effect.asVoid(Effect.forkChild(child, { startImmediately: true })), 5n)
      )
      assert.isTrue(interrupted)
      // What the fiber writes while it is interrupted is part of the batch.
      assert.strictEqual(yield* count("children"), 1)
    }))

  for (
    const [what, code, kind] of [
      ["deadlock", "40P01", "conflict"],
      ["serialization failure", "40001", "conflict"],
      ["lock timeout", "55P03", "conflict"],
      ["statement timeout", "57014", "refusal"],
      ["full disk", "53100", "refusal"],
      ["lack of memory", "53200", "refusal"]
    ] as const
  ) {
    it.effect(`a ${what} is a transient failure, even inside an error of the handler's own`, () =>
      Effect.gen(function*() {
        const store = yield* CheckpointStore
        const sql = yield* SqlClient.SqlClient
        const row = yield* CoordinationStores.held(what)
        const raise = sql.unsafe(`DO $$ BEGIN RAISE EXCEPTION 'lost' USING ERRCODE = '${code}'; END $$`)
        const own = Effect.mapError(raise, (cause) => new OwnError({ cause }))
        const works: ReadonlyArray<Effect.Effect<unknown, unknown>> = [raise, own, Effect.orDie(raise)]
        for (const work of works) {
          const failure = yield* Effect.flip(
            store.commit(row, { from: 0n, idleTimeout }, Effect.as(work, 5n))
          )
          assert(failure._tag === "TransientFailure")
          assert.strictEqual(failure.kind, kind)
        }
      }))
  }

  it.effect("a constraint that is violated at COMMIT is the handler's failure", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const sql = yield* SqlClient.SqlClient
      const row = yield* CoordinationStores.held("deferred constraint")
      yield* sql`CREATE TABLE deferred (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)`
      const work = Effect.asVoid(sql`INSERT INTO deferred VALUES (1), (1)`)
      const failure = yield* Effect.flip(store.commit(row, { from: 0n, idleTimeout }, Effect.as(work, 5n)))
      assert.strictEqual(failure._tag, "HandlerFailure")
      assert.strictEqual(yield* position(row), 0n)
    }))

  it.effect("a halt records the hash that the database computes for the key, and shortens the error", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const row = yield* CoordinationStores.held("halt")
      yield* store.halt(row, {
        at: 0n,
        error: `\u0000${"x".repeat(10_000)}`,
        position: 1n,
        eventId: "0b6cf0a0-5f5c-4d5b-9a63-1f6f2d0c9e77",
        key: "user-1"
      })
      const [stored] = yield* store.rows("halt")
      assert.strictEqual(stored?.halt?.hash, 3736142208)
      assert.isAtMost(stored!.halt!.error.length, 2000)
    }))

  it.effect("handlers that would write through another client are refused", () =>
    Effect.gen(function*() {
      const store = yield* CheckpointStore
      const { url } = yield* PostgresTest.TestDatabase
      const pg = yield* PgClient.PgClient
      const other = yield* PgClient.make({ url: Redacted.make(url) }).pipe(Effect.provide(Reactivity.layer))
      yield* store.checkClient(Context.empty(), "set")
      yield* store.checkClient(
        Context.make(SqlClient.SqlClient, pg.withoutTransforms()) as Context.Context<never>,
        "set"
      )
      for (
        const context of [Context.make(SqlClient.SqlClient, other), Context.make(PgClient.PgClient, other)]
      ) {
        const error = yield* Effect.flip(store.checkClient(context as Context.Context<never>, "set"))
        assert.strictEqual(error._tag, "ForeignSqlClient")
      }
    }))
})
