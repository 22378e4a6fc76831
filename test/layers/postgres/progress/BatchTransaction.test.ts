import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import type * as SqlError from "effect/sql/SqlError"
import { describe } from "vitest"
import { sqlErrorIn } from "../../../../src/layers/postgres/connection/SqlErrors.ts"
import * as BatchTransaction from "../../../../src/layers/postgres/progress/BatchTransaction.ts"
import type { Held } from "../../../../src/schema/Checkpoint.ts"
import { CheckpointStore } from "../../../../src/services/CheckpointStore.ts"
import * as PostgresTest from "../../../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as CoordinationStores from "../../../support/CoordinationStores.ts"
import * as Proxy from "../../../support/Proxy.ts"
import { reasonOf } from "../../../support/StoreErrors.ts"
import * as Tests from "../../../support/Tests.ts"

/**
 * What `BatchTransaction` requires of Effect SQL and the driver, beyond their documented interfaces.
 * If one of these tests fails after an upgrade, adapt `interceptEnd`: otherwise a COMMIT without an answer blocks the pool.
 */
it.layer(PostgresTest.layerWith({ client: { maxConnections: 1 } }), { excludeTestServices: true })(
  "the contract of the driver",
  (it) => {
    const sqlClient = Effect.map(PgClient.PgClient, (pg) => pg.withoutTransforms())

    /** Runs `self` in a transaction; returns its connection, the statements that end it, and its exit. */
    const transact = <A, E>(self: (sql: SqlClient.SqlClient) => Effect.Effect<A, E>) =>
      Effect.gen(function*() {
        const sql = yield* sqlClient
        const sent: Array<string> = []
        let connection: Connection | undefined
        const spy = Effect.map(Effect.serviceOption(sql.transactionService), (transaction) => {
          connection = Option.getOrThrow(transaction)[0]
          const { execute, executeRaw } = connection
          const note = (how: string, text: string) => {
            if (/^(COMMIT|ROLLBACK)/.test(text)) sent.push(`${how} ${text}`)
          }
          Object.assign(connection, {
            execute: (...args: Parameters<typeof execute>) => {
              note("execute", args[0])
              return execute.apply(connection, args)
            },
            executeRaw: (...args: Parameters<typeof executeRaw>) => {
              note("executeRaw", args[0])
              return executeRaw.apply(connection, args)
            }
          })
        })
        const exit = yield* Effect.exit(sql.withTransaction(Effect.andThen(spy, self(sql))))
        return { connection: connection!, exit, sent }
      })

    it.effect("a transaction is committed and rolled back through the methods of its connection", () =>
      Effect.gen(function*() {
        assert.deepStrictEqual((yield* transact((sql) => sql`SELECT 1`)).sent, ["executeRaw COMMIT"])
        assert.deepStrictEqual((yield* transact(() => Effect.fail("no"))).sent, ["execute ROLLBACK"])
        const savepoint = yield* transact((sql) => Effect.exit(sql.withTransaction(Effect.fail("no"))))
        assert.deepStrictEqual(
          savepoint.sent.filter((statement) => !statement.includes("TO SAVEPOINT")),
          ["executeRaw COMMIT"]
        )
      }))

    it.effect("each transaction has a connection object of its own, so that changes to it end with the transaction", () =>
      Effect.gen(function*() {
        const first = yield* transact((sql) => sql`SELECT 1`)
        const second = yield* transact((sql) => sql`SELECT 1`)
        assert.notStrictEqual(first.connection, second.connection)
        assert.lengthOf(first.sent, 1)
      }))

    it.effect("the driver's connection sends a statement unprepared, and returns the command that was executed", () =>
      Effect.gen(function*() {
        const commands: Array<string> = []
        const end = (text: string) => (sql: SqlClient.SqlClient) =>
          Effect.gen(function*() {
            const [connection] = Option.getOrThrow(yield* Effect.serviceOption(sql.transactionService))
            const driver = BatchTransaction.driverConnection(connection)
            assert.isDefined(driver)
            commands.push((yield* driver!.query(text, [], false)).command)
          })
        yield* transact(end("COMMIT"))
        yield* transact((sql) => Effect.andThen(Effect.ignore(sql`SELECT 1 / 0`), end("COMMIT")(sql)))
        assert.deepStrictEqual(commands, ["COMMIT", "ROLLBACK"], "an aborted transaction is rolled back")
      }))

    it.effect("Effect SQL reports a COMMIT that was answered with ROLLBACK, with this message", () =>
      Effect.gen(function*() {
        const { exit } = yield* transact((sql) => Effect.ignore(sql`SELECT 1 / 0`))
        const error = Exit.isFailure(exit) ? sqlErrorIn(exit.cause) : undefined
        assert.include(String(error?.reason.cause), "COMMIT rolled back an aborted transaction")
      }))

    it.effect("a statement of a fiber that outlives its transaction fails with this message", () =>
      Effect.gen(function*() {
        const go = yield* Deferred.make<void>()
        let late: Fiber.Fiber<unknown, SqlError.SqlError> | undefined
        yield* transact((sql) =>
          Effect.map(Effect.forkDetach(Effect.andThen(Deferred.await(go), sql`SELECT 1`)), (fiber) => {
            late = fiber
          })
        )
        yield* Deferred.succeed(go, undefined)
        const error = yield* Effect.flip(Fiber.join(late!))
        assert.include(String(error.reason.cause), "Pinned connection was released")
      }))
  }
)

describe("batches", { concurrent: true }, () => {
  /** Stores over a pool of this many connections. */
  const pooled = (maxConnections: number) =>
    CoordinationStores.over().pipe(Layer.provideMerge(PostgresTest.layerWith({ client: { maxConnections } })))

  it.live("that get no connection of the pool fail, and the error states why", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const checkpoints = yield* CheckpointStore
      const held = yield* CoordinationStores.held("p")
      const [taken, done] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
      const busy = yield* Effect.forkScoped(
        sql.withTransaction(Effect.andThen(Deferred.succeed(taken, undefined), Deferred.await(done)))
      )
      yield* Tests.reached(taken, busy)
      const commit = checkpoints.commit(held, { from: 0n, idleTimeout: Duration.seconds(30) }, Effect.succeed(1n))
      const failure = yield* Effect.flip(commit)
      assert(failure._tag === "StoreError" && failure.reason._tag === "DatabaseUnavailable")
      assert.include(failure.message, "No connection of the application's pool became free")
      yield* Deferred.succeed(done, undefined)
      yield* Fiber.join(busy)
      yield* commit
    }).pipe(Effect.scoped, Effect.provide(pooled(1))), { tags: ["long"] })

  it.live(
    "whose first statement waits for a table lock fail, and the error names locks, not the pool",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient.PgClient
        const checkpoints = yield* CheckpointStore
        const held = yield* CoordinationStores.held("p")
        const [locked, done] = [yield* Deferred.make<void>(), yield* Deferred.make<void>()]
        const migration = yield* Effect.forkScoped(sql.withTransaction(
          sql`LOCK TABLE orchestrator_checkpoints`.pipe(
            Effect.andThen(Deferred.succeed(locked, undefined)),
            Effect.andThen(Deferred.await(done))
          )
        ))
        yield* Tests.reached(locked, migration)
        const commit = checkpoints.commit(held, { from: 0n, idleTimeout: Duration.seconds(30) }, Effect.succeed(1n))
        const failure = yield* Effect.flip(commit)
        assert(failure._tag === "StoreError" && failure.reason._tag === "DatabaseUnavailable")
        assert.include(failure.message, "Check its load, locks and network")
        yield* Deferred.succeed(done, undefined)
        yield* Fiber.join(migration)
        yield* commit
      }).pipe(Effect.scoped, Effect.provide(pooled(3))),
    { tags: ["long"] }
  )

  it.live(
    "are top-level transactions: savepoints nest in them, and after-commit effects have a connection",
    () =>
      Effect.gen(function*() {
        const sql = yield* PgClient.PgClient
        const checkpoints = yield* CheckpointStore
        const held = yield* CoordinationStores.held("p")
        yield* sql`CREATE TABLE handled (id int)`
        const counts: Array<unknown> = []
        const count = Effect.map(sql`SELECT id FROM handled ORDER BY id`.values, (rows) => {
          counts.push(rows.flat())
        })
        yield* checkpoints.commit(
          held,
          { from: 0n, idleTimeout: Duration.seconds(30) },
          Effect.gen(function*() {
            yield* sql`INSERT INTO handled VALUES (1)`
            yield* Effect.exit(
              sql.withTransaction(Effect.andThen(sql`INSERT INTO handled VALUES (2)`, Effect.fail("undone")))
            )
            yield* sql.withTransaction(sql`INSERT INTO handled VALUES (3)`)
            // Effects that run after the commit must not fail; a defect in one is logged, and the count is not updated.
            yield* sql.afterCommit(Effect.orDie(count))
            return 1n
          })
        )
        assert.deepStrictEqual(counts, [[1, 3]])
      }).pipe(Effect.scoped, Effect.provide(pooled(1)))
  )

  it.live("leave the application a connection of its pool", () =>
    Effect.gen(function*() {
      const sql = yield* PgClient.PgClient
      const checkpoints = yield* CheckpointStore
      const done = yield* Deferred.make<void>()
      let begun = 0
      const all = yield* Deferred.make<void>()
      const batches = yield* Effect.forEach(["p", "q"], (name) =>
        Effect.flatMap(CoordinationStores.held(name), (held) =>
          Effect.forkScoped(checkpoints.commit(
            held,
            { from: 0n, idleTimeout: Duration.seconds(30) },
            Effect.andThen(
              Effect.suspend(() =>
                ++begun === 2 ? Deferred.succeed(all, undefined) : Effect.void
              ),
              Effect.as(Deferred.await(done), 1n)
            )
          ))))
      // This does not wait for a condition: the test asserts that the batches do not all run at once.
      yield* Effect.timeoutOption(Deferred.await(all), "500 millis")
      // Without a free connection this would wait for a batch to end, and none ends before it.
      yield* TimeLimits.within("60 seconds")(sql`SELECT 1`)
      yield* Deferred.succeed(done, undefined)
      yield* Effect.forEach(batches, Fiber.join)
    }).pipe(
      Effect.scoped,
      Effect.provide(
        pooled(2)
      )
    ))
})

// Concurrent, because these tests mostly wait.
describe("batches whose connection goes silent", { concurrent: true, tags: ["long"] }, () => {
  /** A test of a range whose process reaches the database through a proxy that can go silent. */
  const behind = (
    title: string,
    test: (
      range: {
        readonly proxy: Proxy.Proxy
        readonly checkpoints: CheckpointStore
        readonly held: Held
        /** Reads the row without the proxy. */
        readonly position: Effect.Effect<bigint | undefined, unknown>
      }
    ) => Effect.Effect<unknown, unknown, CoordinationStores.Services | PgClient.PgClient | Scope.Scope>
  ) =>
    it.live(title, () =>
      Effect.gen(function*() {
        const { url: direct } = yield* PostgresTest.TestDatabase
        const position = PostgresTest.withConnection(
          direct,
          SqlClient.SqlClient.use((sql) => sql<{ position: bigint }>`SELECT position FROM orchestrator_checkpoints`)
        ).pipe(Effect.map(([row]) => row?.position))
        const url = new URL(direct)
        const proxy = yield* Proxy.make({ host: url.hostname, port: Number(url.port) })
        url.host = `127.0.0.1:${proxy.port}`
        yield* Effect.gen(function*() {
          yield* test({
            proxy,
            position,
            checkpoints: yield* CheckpointStore,
            held: yield* CoordinationStores.held("p")
          })
        }).pipe(
          // The client's pool closes after this; a connection left behind must not delay it.
          Effect.scoped,
          Effect.provide(
            CoordinationStores.over().pipe(Layer.provideMerge(PgClient.layer({ url: Redacted.make(url.href) })))
          )
        )
      }).pipe(Effect.scoped, Effect.provide(PostgresTest.layer)))

  const idleTimeout = Duration.seconds(1)

  behind(
    "end when the connection goes silent in a handler, even while the process keeps running",
    ({ proxy, checkpoints, held }) =>
      Effect.gen(function*() {
        const sql = yield* PgClient.PgClient
        const failure = yield* checkpoints.commit(
          held,
          { from: 0n, idleTimeout },
          Effect.andThen(proxy.silence, Effect.as(sql`SELECT 1`, 1n))
        ).pipe(Effect.flip, TimeLimits.within("60 seconds"))
        assert.strictEqual(failure._tag, "TransientFailure")
        yield* checkpoints.commit(held, { from: 0n, idleTimeout }, Effect.succeed(1n))
      })
  )

  behind(
    "fail instead of waiting forever in BEGIN on a connection that went silent while idle",
    ({ proxy, position, checkpoints, held }) =>
      Effect.gen(function*() {
        const sql = yield* PgClient.PgClient
        yield* sql`SELECT 1`
        yield* proxy.silence
        const commit = checkpoints.commit(held, { from: 0n, idleTimeout }, Effect.succeed(1n))
        const failure = yield* commit.pipe(Effect.flip, TimeLimits.within("60 seconds"))
        assert.strictEqual(reasonOf(failure)._tag, "DatabaseUnavailable")
        // More than one connection of the pool may have been open when all of them went silent.
        yield* Effect.retry(commit, { times: 9 })
        assert.strictEqual(yield* position, 1n)
        // A connection that is silent in BEGIN stays with the pool until TCP gives it up.
      }).pipe(Effect.ensuring(proxy.giveUp))
  )

  behind(
    "are committed when only the answer to their COMMIT is lost",
    ({ proxy, checkpoints, held }) =>
      Effect.gen(function*() {
        const batch = yield* Effect.forkScoped(
          checkpoints.commit(held, { from: 0n, idleTimeout }, Effect.as(proxy.silenceAtEnd, 1n))
        )
        yield* TimeLimits.within("60 seconds")(Fiber.join(batch))
        assert.strictEqual((yield* checkpoints.rows("p"))[0]?.position, 1n)
      })
  )

  behind(
    "can be interrupted while the answer to their COMMIT is missing, so that the range can be closed",
    ({ proxy, position, checkpoints, held }) =>
      Effect.gen(function*() {
        const handled = yield* Deferred.make<void>()
        const batch = yield* Effect.forkScoped(checkpoints.commit(
          held,
          // Much longer than the time in which a range has to be closed.
          { from: 0n, idleTimeout: Duration.minutes(1) },
          proxy.silenceAtEnd.pipe(Effect.andThen(Deferred.succeed(handled, undefined)), Effect.as(1n))
        ))
        yield* Tests.reached(handled, batch)
        yield* TimeLimits.waitUntil("the batch is committed", position, (position) => position === 1n)
        yield* TimeLimits.within("60 seconds")(Fiber.interrupt(batch))
      })
  )

  behind(
    "can be interrupted while their ROLLBACK gets no answer",
    ({ proxy, checkpoints, held }) =>
      Effect.gen(function*() {
        const silent = yield* Deferred.make<void>()
        const batch = yield* Effect.forkScoped(checkpoints.commit(
          held,
          { from: 0n, idleTimeout: Duration.minutes(1) },
          proxy.silence.pipe(Effect.andThen(Deferred.succeed(silent, undefined)), Effect.andThen(Effect.never))
        ))
        yield* Tests.reached(silent, batch)
        yield* TimeLimits.within("60 seconds")(Fiber.interrupt(batch))
      })
  )
})
