/**
 * The transaction of a batch: begins in bounded time, stays alive while its handler runs, and ends in bounded time even
 * if its connection never answers again.
 */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Semaphore from "effect/Semaphore"
import * as SqlClient from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import type * as SqlError from "effect/sql/SqlError"
import type { StoreError } from "../../../schema/Errors.ts"
import * as Abandonable from "../../../services/Abandonable.ts"
import type { Isolation } from "../../../services/CheckpointStore.ts"
import { isTrue } from "../connection/Codecs.ts"
import { quietly, quietlyAround } from "../connection/PoolStatement.ts"
import { connectionLost, unavailable } from "../connection/SqlErrors.ts"
import type { Database } from "../Database.ts"

/** Identifies a transaction on the server. */
export interface Transaction {
  readonly pid: string
  /** When it began, in seconds since 1970. */
  readonly begun: string
}

export interface Options {
  /** Returns the transaction once the first statement of the batch has been answered. */
  readonly transaction: () => Transaction | undefined
  readonly idleTimeout: Duration.Duration
  readonly isolation?: Isolation | undefined
}

/** SQL: how a transaction of each isolation level begins. */
const beginOf: Record<Isolation, string> = {
  "read committed": "BEGIN ISOLATION LEVEL READ COMMITTED",
  "repeatable read": "BEGIN ISOLATION LEVEL REPEATABLE READ",
  serializable: "BEGIN ISOLATION LEVEL SERIALIZABLE"
}

/**
 * Time limit for the start of a batch (acquiring a connection, BEGIN, the first statement): 20 steps of 250 ms. None of
 * them waits for a row lock, so a connection that needs longer counts as dead.
 */
const beginStep = Duration.millis(250)
const beginSteps = 20

/** Time limit for asking the server whether a transaction has ended, and for the ROLLBACK of an abandoned one. */
const answerLimit = Duration.seconds(5)

/** How long a batch waits for a keep-alive statement in flight before it interrupts the statement. */
const aliveGrace = Duration.seconds(2)

/**
 * How long an interrupted handler may take to stop. After that its transaction is rolled back while the handler still
 * runs, because the application's pool cannot close while a connection is checked out; the handler's later writes are
 * refused.
 */
const interruptionGrace = Duration.seconds(4)

/** How long an interrupted transaction may take to end before it is abandoned. */
const endGrace = Duration.sum(interruptionGrace, Duration.seconds(2))

/**
 * Runs `batch` in a transaction: BEGIN, `batch`, COMMIT or ROLLBACK. If the connection never answers again, the
 * transaction is abandoned: this fails with `DatabaseUnavailable` if it has not begun, otherwise with a connection error
 * and an unknown outcome.
 */
export const run = <E, R>(database: Database["Service"], options: Options, batch: Effect.Effect<void, E, R>) =>
  Effect.suspend(() => {
    const { sql } = database
    const end: End = { isAbandoned: false, statement: undefined, connection: undefined }
    const interception = Effect.flatMap(
      Effect.serviceOption(sql.transactionService),
      (transaction) =>
        Effect.sync(() => {
          if (Option.isSome(transaction)) interceptEnd(end, transaction.value[0])
        })
    )
    const transaction = Effect.ensuring(
      // This sends BEGIN, then COMMIT if `batch` succeeds, otherwise ROLLBACK: see `interceptEnd`.
      isolated<SqlError.SqlError>(options.isolation, quietlyAround<SqlError.SqlError>(sql.withTransaction))(
        Effect.andThen(interception, batch)
      ),
      Effect.sync(() => restoreConnection(end))
    )
    return Abandonable.run(transaction, {
      limit: Effect.andThen(untilBegun(database, end, options), untilLost(sql, options)),
      grace: endGrace,
      onAbandoned: () => Effect.sync(() => abandon(end))
    })
  })

/** Begins the transaction with the isolation level; transactions that the batch itself begins are not changed. */
const isolated = <E>(
  isolation: Isolation | undefined,
  transact: <A, E1, R>(self: Effect.Effect<A, E1, R>) => Effect.Effect<A, E | E1, R>
) =>
<A, E1, R>(self: Effect.Effect<A, E1, R>): Effect.Effect<A, E | E1, R> =>
  isolation === undefined
    ? transact(self)
    : Effect.flatMap(SqlClient.BeginTransaction, (statement) =>
      Effect.provideService(
        transact(Effect.provideService(self, SqlClient.BeginTransaction, statement)),
        SqlClient.BeginTransaction,
        beginOf[isolation]
      ))

// How COMMIT and ROLLBACK are sent.

/** The statement that ends a transaction. */
interface End {
  isAbandoned: boolean
  /** Sends COMMIT or ROLLBACK. */
  statement: Fiber.Fiber<unknown, unknown> | undefined
  /** The connection of the transaction once it has begun, and its own methods. */
  connection: { readonly intercepted: Connection; readonly own: Pick<Connection, "execute" | "executeRaw"> } | undefined
}

/**
 * Sends COMMIT and ROLLBACK of a connection in such a way that a connection that does not answer them can be abandoned.
 *
 * Effect SQL waits for COMMIT and ROLLBACK uninterruptibly. If the answer never arrives, the pool waits as well and
 * cannot be closed. Here the statement runs in a fiber of its own and can be interrupted: the driver then cancels it,
 * and closes the connection if the cancellation is not answered either. A COMMIT that waits for a synchronous standby
 * has already committed locally; cancelling it ends only that wait.
 *
 * The statements are not prepared, because the driver repeats a prepared statement that fails with the code of a stale
 * plan: after a COMMIT that was refused with such a code there is no transaction left, so the second COMMIT would
 * succeed. They use the driver's own connection, because the complete result is needed: the server answers the COMMIT
 * of an aborted transaction with ROLLBACK.
 *
 * `BatchTransaction.test.ts` verifies what this requires of Effect SQL and the driver.
 */
const interceptEnd = (end: End, connection: Connection): void => {
  const { execute, executeRaw } = connection
  const driver = driverConnection(connection)
  const isEnd = (text: string) => text === "COMMIT" || text === "ROLLBACK"
  const send = (text: string) =>
    sendEnd(
      end,
      driver === undefined ? executeRaw.call(connection, text, []) : driver.query(text, [], false)
    )
  const replacement: Pick<Connection, "execute" | "executeRaw"> = {
    execute: (text, ...rest) => isEnd(text) ? Effect.as(send(text), []) : execute.call(connection, text, ...rest),
    executeRaw: (text, ...rest) => isEnd(text) ? send(text) : executeRaw.call(connection, text, ...rest)
  }
  end.connection = { intercepted: Object.assign(connection, replacement), own: { execute, executeRaw } }
}

/** The driver creates a connection object for each checkout, but another driver may reuse it. */
const restoreConnection = ({ connection }: End): void => {
  if (connection !== undefined) Object.assign(connection.intercepted, connection.own)
}

/** The driver's connection below a connection of Effect SQL; undefined for another driver. */
export const driverConnection = (connection: Connection): PgConnection.PgConnection | undefined =>
  Predicate.hasProperty(connection, "connection") && Predicate.hasProperty(connection.connection, PgConnection.TypeId)
    ? connection.connection as PgConnection.PgConnection
    : undefined

/** Sends COMMIT or ROLLBACK. If its answer is lost, `CheckpointStorePostgres.commit` looks up the outcome. */
const sendEnd = <A>(end: End, statement: Effect.Effect<A, SqlError.SqlError>): Effect.Effect<A, SqlError.SqlError> =>
  Effect.flatMap(Abandonable.start(statement), (fiber) => {
    end.statement = fiber
    // A transaction that was abandoned while its handler ran still has to roll back.
    const bounded = end.isAbandoned
      ? Effect.andThen(Abandonable.end(fiber, answerLimit), Fiber.interrupt(fiber))
      : Effect.void
    return Effect.andThen(bounded, Fiber.join(fiber))
  })

const abandon = (end: End): void => {
  end.isAbandoned = true
  end.statement?.interruptUnsafe()
}

// When a transaction is abandoned.

/** Completes when the transaction has begun; fails if it has not within the time limit. */
const untilBegun = Effect.fnUntraced(function*(
  { server }: Database["Service"],
  end: End,
  { transaction }: Options
): Effect.fn.Return<void, StoreError> {
  // Waits in steps, so that a pause of the whole process counts as one step at most.
  for (let step = 1; step <= beginSteps; step++) {
    yield* step < beginSteps ? Effect.sleep(beginStep) : Abandonable.elapsed(beginStep)
    if (transaction() !== undefined) return
  }
  // After BEGIN, the first statement may wait for a table lock, for example that of a migration.
  const condition = end.connection === undefined ? "no connection in time" : "no answer in time"
  return yield* unavailable(server, condition, new Error("the transaction has not begun"))
})

/**
 * Fails when the server reports that the transaction has ended. If its result has not arrived then, it never will: TCP
 * may take a quarter of an hour to detect a dead connection, and never does while there is nothing to send.
 */
const untilLost = Effect.fnUntraced(function*(
  sql: SqlClient.SqlClient,
  { idleTimeout, transaction }: Options
): Effect.fn.Return<never, SqlError.SqlError> {
  const known = transaction()!
  // Requires two reports in a row, because after the first one the result may still be in transit. If the role may
  // not read when a session began (NULL), any session with this pid counts as the batch's.
  for (let reports = 0; reports < 2;) {
    yield* Effect.sleep(Duration.times(idleTimeout, 0.5))
    // A question that fails or is not answered proves nothing, so it is asked again.
    const answer = yield* quietly(sql<{ readonly over: string }>`
      SELECT (current_setting('track_activities')::bool AND NOT EXISTS (
        SELECT FROM pg_catalog.pg_stat_activity
        WHERE pid = ${known.pid}::int4 AND (backend_start IS NULL OR extract(epoch FROM xact_start)::text = ${known.begun})
      ))::text AS over`).pipe(Effect.timeoutOption(answerLimit), Effect.orElseSucceed(Option.none))
    if (Option.isSome(answer)) reports = isTrue(answer.value[0]?.over) ? reports + 1 : 0
  }
  return yield* connectionLost("the transaction has ended, but the connection did not report it")
})

// What keeps a transaction alive.

/**
 * Runs the handler inside the transaction, and keeps the transaction alive. Its child fibers end with it; if it is
 * interrupted, it is left behind after `interruptionGrace`.
 */
export const runHandler = <A, E, R>(
  sql: SqlClient.SqlClient,
  idleTimeout: Duration.Duration,
  handler: Effect.Effect<A, E, R>
): Effect.Effect<Exit.Exit<A, E>, never, R> =>
  Effect.acquireUseRelease(
    keepAlive(sql, idleTimeout),
    () => Effect.exit(Abandonable.run(handler, { grace: interruptionGrace })),
    ({ stop }) => stop
  )

/**
 * Sends a statement every third of `idleTimeout`, so that the server does not end the transaction of a handler that
 * executes none. `stop` waits up to `aliveGrace` for a statement in flight, because cancelling it might hit the
 * statement after it.
 */
const keepAlive = Effect.fnUntraced(function*(sql: SqlClient.SqlClient, idleTimeout: Duration.Duration) {
  const sending = Semaphore.makeUnsafe(1)
  const fiber = yield* Effect.sleep(Duration.times(idleTimeout, 1 / 3)).pipe(
    Effect.andThen(sending.withPermit(quietly(sql`SELECT 1`))),
    // In an aborted transaction the statement fails, but keeps the transaction alive, too. The batch itself detects a
    // lost connection.
    Effect.ignoreCause,
    Effect.forever,
    Effect.forkChild
  )
  const stop = Effect.timeoutOption(sending.withPermit(Fiber.interrupt(fiber)), aliveGrace).pipe(
    Effect.andThen(Fiber.interrupt(fiber))
  )
  return { stop }
})
