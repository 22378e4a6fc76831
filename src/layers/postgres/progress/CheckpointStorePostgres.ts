/**
 * The checkpoint store on PostgreSQL. A batch is one transaction of the application's client; its last statement is the
 * fenced advance.
 *
 * Lock order: the read model first, then the checkpoint row.
 *
 * @since 0.1.0
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Boolean from "effect/Boolean"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Option from "effect/Option"
import * as Predicate from "effect/Predicate"
import * as Request from "effect/Request"
import * as RequestResolver from "effect/RequestResolver"
import * as Schedule from "effect/Schedule"
import * as Semaphore from "effect/Semaphore"
import * as SqlClient from "effect/sql/SqlClient"
import type { Connection } from "effect/sql/SqlConnection"
import * as SqlError from "effect/sql/SqlError"
import { haltError, type Held } from "../../../schema/Checkpoint.ts"
import { DatabaseUnavailable, ForeignSqlClient, ReadOnlyReplica, type StoreError } from "../../../schema/Errors.ts"
import { textProblem } from "../../../schema/Text.ts"
import * as Abandonable from "../../../services/Abandonable.ts"
import {
  type BatchOptions,
  CheckpointStore,
  Fenced,
  HandlerFailure,
  TransientFailure
} from "../../../services/CheckpointStore.ts"
import { tryRead } from "../../../services/ErrorText.ts"
import type { ServerEpoch } from "../../../services/EventStore.ts"
import { isUnstorable, writing } from "../connection/Encoding.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import { codeOf, isConflict, isConnectionLoss, isPassing, sqlErrorIn, toStoreError } from "../connection/SqlErrors.ts"
import * as Rows from "../coordination/Rows.ts"
import { Database } from "../Database.ts"

/** The driver's default pool size. */
const defaultConnections = 10

/** How long a batch waits for a keep-alive statement in flight before it interrupts the statement. */
const aliveGrace = Duration.seconds(2)

/** Time limit for asking the server whether a transaction has ended, and for the ROLLBACK of an abandoned one. */
const overDeadline = Duration.seconds(5)

/**
 * Time limit for the start of a batch (acquiring a connection, BEGIN, the first statement): 20 steps of 250 ms. Neither
 * statement waits for row locks, so a connection that needs longer counts as dead.
 */
const beginStep = Duration.millis(250)
const beginSteps = 20

/** Time limit for a statement outside of batches; it may have to wait for a lock that a dead process left behind. */
const statementDeadline = Duration.seconds(10)

const awayBackoff = Schedule.jittered(
  Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("2 seconds")])
)

type Failure = Fenced | HandlerFailure | StoreError | TransientFailure

interface AdvanceOptions {
  readonly from: bigint
  readonly to: bigint
  readonly epoch?: ServerEpoch | undefined
}

/** Advances one range without handled events. Requests that arrive at the same time are executed by one statement. */
class Advance extends Request.Class<
  {
    readonly held: Held
    readonly options: AdvanceOptions
    /** Completed when the caller has been interrupted. */
    readonly abandoned: Deferred.Deferred<void>
  },
  void,
  Fenced | StoreError | TransientFailure
> {}

/** The result of the statement that advances several ranges: one row for each request, in their order. */
interface AdvanceRow {
  readonly alive: string
  readonly moved: string
  /** Whether the row matched the fence when the statement began. */
  readonly held: string
}

/** Identifies a batch's transaction on the server. */
interface Transaction {
  readonly pid: string
  /** When the transaction began, in seconds since 1970. */
  readonly begun: string
}

const silent = (message: string) =>
  new SqlError.SqlError({
    reason: new SqlError.ConnectionError({ cause: new Error(message), message, operation: "query" })
  })

const unheard = silent("the transaction has ended, but the connection did not report it")
const unanswered = silent("no answer in time, or no connection to ask on")

const advancing = "advance a checkpoint"

const rowLocked = new TransientFailure({
  kind: "conflict",
  cause: new Error(
    "another transaction has locked the checkpoint's row, or row-level security or a trigger keeps this role from changing it"
  )
})

/**
 * Fails with `unanswered` after `statementDeadline`. The statement is then interrupted: the driver cancels it, and
 * closes the connection if the cancellation is not answered either.
 */
const answered = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E | SqlError.SqlError, R> =>
  Effect.timeoutOrElse(self, { duration: statementDeadline, orElse: () => Effect.fail(unanswered) })

/** The transient failure for an error that `isPassing` accepts. */
const passing = (cause: SqlError.SqlError): TransientFailure =>
  new TransientFailure({ kind: isConflict(cause) ? "conflict" : "refusal", cause })

/** Raised to roll the transaction back. The reason is recorded separately, because a failing ROLLBACK would hide it. */
class RollBack {
  readonly _tag = "RollBack"
}

// `Cause.combine` is not used, because it would call equality methods of the value that the handler failed with.
const handlerFailure = (message: string, cause: Cause.Cause<unknown>): HandlerFailure =>
  new HandlerFailure({ cause: Cause.fromReasons([...Cause.die(new Error(message)).reasons, ...cause.reasons]) })

const ignoredStatement =
  "A statement of the handler failed and its error was ignored, so that PostgreSQL aborted the whole transaction. Let the error through, or run the statement inside sql.withTransaction, which isolates it in a savepoint."

const releasedConnection =
  "A statement ran on the connection of a transaction that had ended: something that the handler started outlived its batch. Start it with Effect.forkChild, or wait for it before the handler ends."

const changedTransaction =
  "The progress could not be written, because the handler changed the role or the access mode of the transaction. Restore them before the handler ends (RESET ROLE)."

const endedTransaction =
  "The handler has ended the transaction that it runs in, so that what it wrote and its progress did not commit together. Leave COMMIT and ROLLBACK to the batch: to undo a part, fail inside sql.withTransaction."

const ownInterruption =
  "The handler was interrupted, but not because its range was closed: it interrupted itself, or joined a fiber that was interrupted."

/**
 * The `SqlError` inside a handler's failure. Handlers wrap database errors in errors of their own; whether the batch
 * can be retried depends on the inner error.
 */
const sqlErrorWithin = (cause: Cause.Cause<unknown>): SqlError.SqlError | undefined => {
  const direct = sqlErrorIn(cause)
  if (direct !== undefined) return direct
  for (const reason of cause.reasons) {
    let error: unknown = Cause.isFailReason(reason)
      ? reason.error
      : Cause.isDieReason(reason)
      ? reason.defect
      : undefined
    for (let depth = 0; depth < 8 && typeof error === "object" && error !== null; depth++) {
      if (SqlError.isSqlError(error)) return error
      error = "cause" in error ? error.cause : undefined
    }
  }
  return undefined
}

const detailOf = (error: SqlError.SqlError): string => {
  const cause: unknown = error.reason.cause
  return cause instanceof Error ? cause.message : ""
}

const isReleasedConnection = (error: SqlError.SqlError): boolean => detailOf(error) === "Pinned connection was released"

const isAbortedTransaction = (error: SqlError.SqlError): boolean =>
  codeOf(error) === "25P02" || detailOf(error) === "COMMIT rolled back an aborted transaction"

/**
 * The session is lost or could not be opened. Excludes the error of a statement on a released pinned connection, which
 * the handler caused.
 */
const wasLost = (error: SqlError.SqlError): boolean => isConnectionLoss(error) && !isReleasedConnection(error)

/**
 * The error is due to the server's state, not to the statement: a timeout, exhausted resources, an operator, or a
 * system or internal error.
 */
const isServersOwn = (error: SqlError.SqlError): boolean =>
  error.reason._tag === "StatementTimeoutError" || /^(53|57|58|XX)/.test(codeOf(error) ?? "")

/**
 * SQLSTATEs for a disk that could not be read or written. Most other errors of the server recur when the statement is
 * repeated; even a missing file is mostly one that the statement refers to.
 */
const systemErrors = new Set(["58000", "58030"])
const isSystemError = (error: SqlError.SqlError): boolean => systemErrors.has(codeOf(error) ?? "")

/**
 * SQLSTATEs of an advance that fails although the batch's first statement succeeded: the table is no longer visible, or
 * may no longer be written.
 */
const changed = new Set(["42P01", "42501", "25006"])

/** No statement was sent, because no connection could be opened. */
const neverConnected = (error: SqlError.SqlError): boolean => error.reason.operation === "connect"

/**
 * How long an interrupted handler may take to stop. After that its transaction is rolled back while the handler still
 * runs, because the application's pool cannot close while a connection is checked out; the handler's later writes are
 * refused.
 */
const interruptionGrace = Duration.seconds(4)

/** How long an interrupted transaction may take to end before it is abandoned. */
const endGrace = Duration.sum(interruptionGrace, Duration.seconds(2))

/** The driver's connection below a connection of Effect SQL; undefined for another driver. */
const driversOwn = (connection: Connection): PgConnection.PgConnection | undefined =>
  Predicate.hasProperty(connection, "connection") && Predicate.hasProperty(connection.connection, PgConnection.TypeId)
    ? connection.connection as PgConnection.PgConnection
    : undefined

/**
 * Sends COMMIT and ROLLBACK in such a way that a connection that does not answer them can be abandoned.
 *
 * Effect SQL has to wait for COMMIT and ROLLBACK uninterruptibly. If the answer never arrives, the pool waits as well
 * and cannot be closed. Here the statement runs in a fiber of its own and can be interrupted: the driver then cancels
 * it, and closes the connection if the cancellation is not answered either. A COMMIT that waits for a synchronous
 * standby has already committed locally; cancelling it ends only that wait.
 *
 * The statements are not prepared, because the driver repeats a prepared statement that fails with the code of a stale
 * plan: after a COMMIT that was refused with such a code there is no transaction left, so the second COMMIT would
 * succeed. They use the driver's own connection, because the complete result is needed: the server answers the COMMIT
 * of an aborted transaction with ROLLBACK.
 */
const makeEnding = () => {
  const isEnd = (text: string) => text === "COMMIT" || text === "ROLLBACK"
  let givenUp = false
  let statement: Fiber.Fiber<unknown, unknown> | undefined
  let restore = () => {}
  const apart = <A>(sent: Effect.Effect<A, SqlError.SqlError>): Effect.Effect<A, SqlError.SqlError> =>
    Effect.flatMap(
      Abandonable.start(sent),
      (fiber) => {
        statement = fiber
        // A transaction that was abandoned while its handler ran still has to roll back.
        const answer = givenUp
          ? Effect.andThen(Abandonable.end(fiber, overDeadline), Fiber.interrupt(fiber))
          : Effect.void
        return Effect.andThen(answer, Fiber.join(fiber))
      }
    )
  return {
    watch: (connection: Connection) =>
      Effect.sync(() => {
        const { execute, executeRaw } = connection
        const own = driversOwn(connection)
        const send = (text: string) =>
          own === undefined ? executeRaw.call(connection, text, []) : own.query(text, [], false)
        // The driver creates an object for each checkout. Restored in case another driver reuses the object.
        restore = () => Object.assign(connection, { execute, executeRaw })
        const watched: Pick<Connection, "execute" | "executeRaw"> = {
          execute: (text, ...rest) =>
            isEnd(text) ? Effect.as(apart(send(text)), []) : execute.call(connection, text, ...rest),
          executeRaw: (text, ...rest) => isEnd(text) ? apart(send(text)) : executeRaw.call(connection, text, ...rest)
        }
        Object.assign(connection, watched)
      }),
    unwatch: Effect.sync(() => restore()),
    giveUp: Effect.sync(() => {
      givenUp = true
      statement?.interruptUnsafe()
    })
  }
}

/**
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<CheckpointStore["Service"], never, Database> = Effect.gen(function*() {
  const database = yield* Database
  const { sql } = database
  const checkpoints = database.table("checkpoints")
  // Batches never take the pool's last connection, unless it is the only one: the application and the statements here
  // that monitor a batch need it. The client's `config` contains the pool's options, although its type lacks them.
  const { maxConnections = defaultConnections }: PgClient.PgPoolConfig = database.pg.config
  const batches = Semaphore.makeUnsafe(Math.max(1, maxConnections - 1))

  /** SQL: matches the range's row while it has the fence of `held`. */
  const fenced = (held: Held) =>
    sql`projection_name = ${held.projection} AND range_start = ${String(held.range.start)}::bigint
      AND range_end = ${String(held.range.end)}::bigint AND worker_id = ${held.fence.workerId}
      AND incarnation = ${String(held.fence.incarnation)}::bigint
      AND generation_id = ${String(held.fence.generationId)}::bigint`

  const quietly = Effect.withTracerEnabled(false)

  /**
   * The first statement of a batch: reads whether the server epoch, the access mode and the fence permit it. Bounds
   * idle transactions and lock waits, so that transactions orphaned by a dead process release their locks instead of
   * acquiring them one after another. A stricter `lock_timeout` of the application is kept.
   */
  const begin = (held: Held, { from, idleTimeout, epoch }: BatchOptions) => {
    const millis = String(Math.ceil(Duration.toMillis(idleTimeout)))
    return quietly(sql<Transaction & { readonly alive: string; readonly held: string; readonly reads_only: string }>`
      SELECT pg_backend_pid()::text AS pid, extract(epoch FROM now())::text AS begun,
        set_config('idle_in_transaction_session_timeout', ${millis}, true),
        CASE WHEN current_setting('lock_timeout') = '0'
            OR current_setting('lock_timeout')::interval > ${millis}::int * interval '1 millisecond'
          THEN set_config('lock_timeout', ${millis}, true) END,
        (${
      ServerEpochSql.goesOn(sql, epoch)
    })::text AS alive, current_setting('transaction_read_only')::bool::text AS reads_only,
        EXISTS (
          SELECT FROM ${checkpoints} WHERE ${fenced(held)} AND position = ${String(from)}::bigint
        )::text AS held`)
  }

  /** SQL: whether the current transaction is the one that began at `begun`. */
  const goesOn = (begun: string) => sql`extract(epoch FROM now())::text = ${begun}`

  /** Also clears a halt whose acknowledgement was lost: advancing supersedes it. */
  const progressed = sql.literal(`updated_at = clock_timestamp(), halted_since = NULL, halted_error = NULL,
    halted_position = NULL, halted_event_id = NULL, halted_hash = NULL, halted_incarnation = NULL`)

  const move = (
    held: Held,
    { begun, from, epoch, to }: {
      readonly from: bigint
      readonly to: bigint
      readonly epoch?: ServerEpoch | undefined
      readonly begun: string
    }
  ) =>
    Effect.map(
      quietly(sql`
        UPDATE ${checkpoints} SET position = ${String(to)}::bigint, ${progressed}
        WHERE ${fenced(held)} AND position = ${String(from)}::bigint AND ${ServerEpochSql.goesOn(sql, epoch)} AND ${
        goesOn(begun)
      }
        RETURNING 'moved'`),
      (rows) => rows.length > 0
    )

  const elsewhere = (epoch: ServerEpoch | undefined): TransientFailure => {
    if (epoch !== undefined) database.refuse(epoch)
    return new TransientFailure({
      kind: "connection",
      cause: new Error("The database server came back, or another took its place, since the events were read")
    })
  }

  /** Fails with the reason why a write matched no row: another server epoch, or a lost fence. */
  const refused = Effect.fnUntraced(function*(
    held: Held,
    epoch: ServerEpoch | undefined
  ): Effect.fn.Return<never, Fenced | StoreError | TransientFailure> {
    const [row] = yield* quietly(
      sql<{ readonly alive: string }>`SELECT (${ServerEpochSql.goesOn(sql, epoch)})::text AS alive`
    )
      .pipe(
        answered,
        database.refail("check why a row was not written")
      )
    return yield* row?.alive === "false" ? elsewhere(epoch) : new Fenced({ projection: held.projection })
  })

  /**
   * Looks up an unknown commit outcome: succeeds if the batch was committed, fails otherwise. The row lock waits until
   * the old transaction has ended. Retries until the database is reachable, because nothing can be determined before.
   */
  const settle = Effect.fnUntraced(function*(
    held: Held,
    { from, to }: { readonly from: bigint; readonly to: bigint | undefined },
    error: SqlError.SqlError
  ): Effect.fn.Return<void, Fenced | StoreError | TransientFailure> {
    const rows = yield* quietly(
      sql<{ readonly position: string }>`SELECT position::text AS position FROM ${checkpoints} WHERE ${
        fenced(held)
      } FOR UPDATE`
    ).pipe(
      answered,
      Effect.retry({ while: (failure) => isConnectionLoss(failure) || isPassing(failure), schedule: awayBackoff }),
      database.refail("look up the outcome of a batch")
    )
    const position = rows[0] === undefined ? undefined : BigInt(rows[0].position)
    if (position !== undefined && position === to) return
    if (position === from) return yield* new TransientFailure({ kind: "connection", cause: error })
    return yield* new Fenced({ projection: held.projection })
  })

  /**
   * Sends a statement every third of `idleTimeout`, so that the server does not end the transaction of a handler that
   * executes none. `stop` waits up to `aliveGrace` for a statement in flight, because cancelling it might hit the
   * statement after it.
   */
  const keepAlive = Effect.fnUntraced(function*(idleTimeout: Duration.Duration) {
    const speaking = Semaphore.makeUnsafe(1)
    const fiber = yield* Effect.sleep(Duration.millis(Duration.toMillis(idleTimeout) / 3)).pipe(
      Effect.andThen(speaking.withPermit(quietly(sql`SELECT 1`))),
      // In an aborted transaction the statement fails, but keeps the transaction alive, too. The batch itself detects a
      // lost connection.
      Effect.ignoreCause,
      Effect.forever,
      Effect.forkChild
    )
    const stop = Effect.timeoutOption(speaking.withPermit(Fiber.interrupt(fiber)), aliveGrace).pipe(
      Effect.andThen(Fiber.interrupt(fiber)),
      Effect.ignoreCause
    )
    return { stop }
  })

  /**
   * Completes when the server reports that the transaction has ended. If its result has not arrived then, it never
   * will: TCP may take a quarter of an hour to give up a connection, and never does while there is nothing to send.
   */
  const untilOver = Effect.fnUntraced(function*(transaction: () => Transaction | undefined, every: Duration.Duration) {
    // Requires two reports in a row, because after the first one the result may still be in transit. If the role may
    // not read when a session began (NULL), any session with this pid counts as the batch's.
    for (let seen = 0; seen < 2;) {
      yield* Effect.sleep(every)
      const known = transaction()
      if (known === undefined) continue
      const answer = yield* quietly(sql<{ readonly over: string }>`
        SELECT (current_setting('track_activities')::bool AND NOT EXISTS (
          SELECT FROM pg_catalog.pg_stat_activity
          WHERE pid = ${known.pid}::int4 AND (backend_start IS NULL OR extract(epoch FROM xact_start)::text = ${known.begun})
        ))::text AS over`).pipe(Effect.timeoutOption(overDeadline), Effect.orElseSucceed(Option.none))
      if (Option.isSome(answer)) seen = Rows.isTrue(answer.value[0]?.over) ? seen + 1 : 0
    }
  })

  /** Completes when a transaction has not begun in time; `untilOver` cannot look it up before BEGIN is answered. */
  const untilLate = (transaction: () => Transaction | undefined) =>
    // Waits in steps, so that a pause of the whole process counts as one step at most.
    Effect.sleep(beginStep).pipe(
      Effect.repeat({ times: beginSteps - 2 }),
      Effect.andThen(Abandonable.elapsed(beginStep)),
      Effect.andThen(Effect.suspend(() => transaction() === undefined ? Effect.void : Effect.never))
    )

  /** Runs a batch in a transaction, in a fiber of its own that is abandoned if its connection never answers again. */
  const transact = <E, R>(
    batch: Effect.Effect<void, E, R>,
    transaction: () => Transaction | undefined,
    every: Duration.Duration
  ) =>
    Effect.suspend(() => {
      const ending = makeEnding()
      const watched = Effect.flatMap(
        Effect.serviceOption(sql.transactionService),
        Option.match({ onNone: () => Effect.void, onSome: ([connection]) => ending.watch(connection) })
      )
      return Abandonable.run(Effect.ensuring(sql.withTransaction(Effect.andThen(watched, batch)), ending.unwatch), {
        limit: Effect.raceFirst(
          Effect.andThen(untilOver(transaction, every), Effect.fail(unheard)),
          Effect.andThen(untilLate(transaction), Effect.fail(unanswered))
        ),
        grace: endGrace,
        onAbandoned: () => ending.giveUp
      })
    })

  /**
   * Classifies a handler's failure, before the state of the connection is determined. A failure that throws when it is
   * inspected is attributed to the handler.
   */
  const judge = (cause: Cause.Cause<unknown>): HandlerFailure | SqlError.SqlError | StoreError | TransientFailure =>
    tryRead(() => inspect(cause)) ?? new HandlerFailure({ cause })

  const inspect = (cause: Cause.Cause<unknown>): HandlerFailure | SqlError.SqlError | StoreError | TransientFailure => {
    if (Cause.hasInterrupts(cause)) return handlerFailure(ownInterruption, cause)
    const error = sqlErrorWithin(cause)
    if (error === undefined) return new HandlerFailure({ cause })
    if (isReleasedConnection(error)) return handlerFailure(releasedConnection, cause)
    if (isAbortedTransaction(error)) return handlerFailure(ignoredStatement, cause)
    if (isPassing(error)) return passing(error)
    if (isSystemError(error)) return toStoreError(database.server, "handle a batch")(error)
    return wasLost(error) ? error : new HandlerFailure({ cause })
  }

  const commit = <E, R>(
    held: Held,
    options: BatchOptions,
    work: Effect.Effect<bigint, E, R>
  ): Effect.Effect<void, Failure, R> =>
    batches.withPermit(Effect.suspend(() => {
      let began: Transaction | undefined
      let moved = false
      let to: bigint | undefined
      let failure: Fenced | HandlerFailure | SqlError.SqlError | StoreError | TransientFailure | undefined

      const rollBack = (reason: NonNullable<typeof failure>) =>
        Effect.suspend(() => {
          failure = reason
          return Effect.fail(new RollBack())
        })

      const batch = Effect.gen(function*() {
        const [start] = yield* begin(held, options)
        began = start
        if (start?.alive === "false") return yield* rollBack(elsewhere(options.epoch))
        // Otherwise the failure of the write would be attributed to the handler.
        if (Rows.isTrue(start?.reads_only)) {
          return yield* rollBack(new ReadOnlyReplica({ server: database.server.server }))
        }
        if (start === undefined || !Rows.isTrue(start.held)) {
          return yield* rollBack(new Fenced({ projection: held.projection }))
        }
        const exit = yield* Effect.acquireUseRelease(
          keepAlive(options.idleTimeout),
          () => Effect.exit(Abandonable.run(work, { grace: interruptionGrace })),
          ({ stop }) => stop
        )
        if (Exit.isFailure(exit)) return yield* rollBack(judge(exit.cause))
        to = exit.value
        moved = yield* Effect.catchIf(
          move(held, { from: options.from, to, begun: start.begun }),
          (error) => changed.has(codeOf(error) ?? ""),
          (error) => rollBack(handlerFailure(changedTransaction, Cause.fail(error)))
        )
        if (moved) return
        const [now] = yield* quietly(sql<{ readonly same: string }>`SELECT (${goesOn(start.begun)})::text AS same`)
        return yield* rollBack(
          now?.same === "false"
            ? handlerFailure(endedTransaction, Cause.empty)
            : new Fenced({ projection: held.projection })
        )
      })

      const every = Duration.times(options.idleTimeout, 0.5)
      return Effect.catchCause(transact(batch, () => began, every), (cause): Effect.Effect<void, Failure> => {
        // Ignores the error of a failed ROLLBACK, because a transaction without COMMIT is undone in any case.
        if (Cause.hasInterrupts(cause)) {
          return Effect.failCause(Cause.fromReasons(cause.reasons.filter(Cause.isInterruptReason)))
        }
        // If a failure is recorded, an error in the cause can only be that of the ROLLBACK. A lost connection takes
        // precedence over the recorded failure.
        const raised = sqlErrorIn(cause)
        const lost = [failure, raised].find((error): error is SqlError.SqlError =>
          SqlError.isSqlError(error) && wasLost(error)
        )
        if (lost !== undefined && began !== undefined) return settle(held, { from: options.from, to }, lost)
        if (failure !== undefined && !SqlError.isSqlError(failure)) return Effect.fail(failure)
        if (raised === undefined) return Effect.die(Cause.squash(cause))
        if (raised === unanswered) {
          return Effect.fail(
            new DatabaseUnavailable({ ...database.server, reason: "no connection in time", cause: raised })
          )
        }
        if (isPassing(raised)) return Effect.fail(passing(raised))
        if (isAbortedTransaction(raised)) {
          return Effect.fail(handlerFailure(ignoredStatement, Cause.fail(raised)))
        }
        // COMMIT fails because of what the handler wrote, for example a violated deferred constraint.
        if (moved && !isServersOwn(raised)) {
          return Effect.fail(new HandlerFailure({ cause: Cause.fail(raised) }))
        }
        return database.refail("handle a batch")(Effect.fail(raised))
      })
    }))

  /**
   * Advances several ranges in one statement. Skips rows that another transaction has locked, because one locked row
   * must not delay the progress of all other ranges. Locks the rows in key order, as decisions do.
   */
  const moveAll = (advances: ReadonlyArray<Advance>, epoch: ServerEpoch | undefined) => {
    const wanted = advances.map(({ held, options }, place) => ({
      place,
      projection_name: held.projection,
      range_start: String(held.range.start),
      range_end: String(held.range.end),
      worker_id: held.fence.workerId,
      incarnation: String(held.fence.incarnation),
      generation_id: String(held.fence.generationId),
      from: String(options.from),
      to: String(options.to)
    }))
    const isFenced = sql.literal(`c.projection_name = w.projection_name AND c.range_start = w.range_start
      AND c.range_end = w.range_end AND c.worker_id = w.worker_id AND c.incarnation = w.incarnation
      AND c.generation_id = w.generation_id AND c.position = w."from"`)
    return quietly(sql<AdvanceRow>`
      WITH wanted AS MATERIALIZED (
        SELECT * FROM json_to_recordset(${JSON.stringify(wanted)}::json) AS w (place int, projection_name text,
          range_start bigint, range_end bigint, worker_id text, incarnation bigint, generation_id bigint, "from" bigint,
          "to" bigint)
      ), alive AS MATERIALIZED (
        SELECT ${ServerEpochSql.goesOn(sql, epoch)} AS alive
      ), locked AS MATERIALIZED (
        SELECT w.place, w.projection_name, w.range_start, w."to" FROM ${checkpoints} AS c JOIN wanted AS w ON ${isFenced}
        WHERE (SELECT alive FROM alive)
        ORDER BY c.projection_name COLLATE "C", c.range_start
        FOR UPDATE OF c SKIP LOCKED
      ), moved AS (
        UPDATE ${checkpoints} AS c SET position = l."to", ${progressed} FROM locked AS l
        WHERE c.projection_name = l.projection_name AND c.range_start = l.range_start RETURNING l.place
      )
      SELECT (SELECT alive FROM alive)::text AS alive, (m.place IS NOT NULL)::text AS moved,
        EXISTS (SELECT FROM ${checkpoints} AS c WHERE ${isFenced})::text AS held
      FROM wanted AS w LEFT JOIN moved AS m ON m.place = w.place ORDER BY w.place`)
  }

  const advanceEach = Effect.fnUntraced(function*(
    entries: ReadonlyArray<Request.Entry<Advance>>
  ): Effect.fn.Return<void> {
    const epoch = entries[0]!.request.options.epoch
    const result = yield* Effect.result(answered(moveAll(entries.map(({ request }) => request), epoch)))
    if (result._tag === "Failure") {
      const error = result.failure
      // A conflict or an error of one row must not block the progress of all other ranges.
      const isOfOneRow = isConflict(error) ? error.reason._tag !== "LockTimeoutError" : !isPassing(error)
      if (entries.length > 1 && isOfOneRow && !isConnectionLoss(error) && !neverConnected(error)) {
        return yield* Effect.forEach(entries, (entry) => advanceEach([entry]), { discard: true })
      }
      const fail = (failure: StoreError | TransientFailure) =>
        Effect.forEach(entries, Request.fail(failure), { discard: true })
      if (isPassing(error)) return yield* fail(passing(error))
      if (!wasLost(error) || neverConnected(error)) return yield* fail(toStoreError(database.server, advancing)(error))
      return yield* Effect.forEach(
        entries,
        (entry) => Request.completeEffect(entry, settle(entry.request.held, entry.request.options, error)),
        { concurrency: "unbounded", discard: true }
      )
    }
    for (const [index, { alive, held, moved }] of result.success.entries()) {
      const entry = entries[index]!
      yield* Rows.isTrue(moved)
        ? Request.succeed(entry, undefined)
        : Request.fail(
          entry,
          !Rows.isTrue(alive)
            ? elsewhere(epoch)
            : Rows.isTrue(held)
            ? rowLocked
            : new Fenced({ projection: entry.request.held.projection })
        )
    }
  })

  const advances = RequestResolver.makeGrouped({
    key: ({ request }: Request.Entry<Advance>) => request.options.epoch,
    // Interrupting a caller does not interrupt the shared statement. When the last caller is interrupted, the statement
    // ends too; otherwise it would keep a connection, and the pool could not close.
    resolver: (entries) =>
      Effect.raceFirst(
        advanceEach(entries),
        Effect.forEach(entries, ({ request }) => Deferred.await(request.abandoned), { discard: true })
      )
  })

  const advance: CheckpointStore["Service"]["advance"] = (held, options) =>
    Effect.suspend(() => {
      const abandoned = Deferred.makeUnsafe<void>()
      return Effect.onInterrupt(
        Effect.request(new Advance({ held, options, abandoned }), advances),
        () => Deferred.succeed(abandoned, undefined)
      )
    })

  const halt: CheckpointStore["Service"]["halt"] = Effect.fnUntraced(function*(held, options) {
    const rows = yield* writing(options.error, (error) =>
      answered(quietly(sql`
        UPDATE ${checkpoints} SET halted_since = clock_timestamp(), halted_error = ${haltError(error)},
          halted_position = ${String(options.position)}::bigint, halted_event_id = ${options.eventId},
          halted_hash = coalesce(pg_catalog.hashtext(${
        options.aggregateId ?? null
      }::text COLLATE "C")::int8 & 4294967295, range_start),
          halted_incarnation = incarnation,
          updated_at = clock_timestamp()
        WHERE ${fenced(held)} AND position = ${String(options.at)}::bigint AND ${
        ServerEpochSql.goesOn(sql, options.epoch)
      }
        RETURNING 'halted'`)))
      .pipe(
        Effect.catch((error): Effect.Effect<never, StoreError | TransientFailure> =>
          isPassing(error)
            ? Effect.fail(passing(error))
            // Recording a halt twice is harmless, so the outcome is not looked up.
            : wasLost(error) && !neverConnected(error)
            ? Effect.fail(new TransientFailure({ kind: "connection", cause: error }))
            : database.refail("halt a range")(Effect.fail(error))
        )
      )
    if (rows.length === 0) return yield* refused(held, options.epoch)
  })

  const rows: CheckpointStore["Service"]["rows"] = (projection) =>
    quietly(sql<{ readonly row: string }>`
      SELECT ${sql.literal(Rows.checkpointJson)}::text AS row FROM ${checkpoints} c
      WHERE c.projection_name = ${projection} ORDER BY c.range_start`).pipe(
      answered,
      Effect.map((found) => found.map(({ row }) => Rows.toCheckpoint(JSON.parse(row)))),
      database.refail("read checkpoints")
    )

  const areStorable = (texts: ReadonlyArray<string>) =>
    texts.some((text) => textProblem(text) !== undefined)
      ? Effect.succeed(false)
      // The server converts parameters to its encoding before it evaluates the query.
      : quietly(sql`SELECT octet_length(${texts.join(" ")}::text)`).pipe(
        answered,
        Effect.as(true),
        Effect.catchIf(isUnstorable, () => Effect.succeed(false)),
        database.refail("check names")
      )

  const unstorable: CheckpointStore["Service"]["unstorable"] = (texts) =>
    Effect.flatMap(
      areStorable(texts),
      (all) => all ? Effect.succeed([]) : Effect.filter(texts, (text) => Effect.map(areStorable([text]), Boolean.not))
    )

  const checkClient: CheckpointStore["Service"]["checkClient"] = (context, replicaSet) => {
    const isForeign = (client: Option.Option<SqlClient.SqlClient>) =>
      Option.isSome(client) && client.value.transactionService.key !== sql.transactionService.key
    return isForeign(Context.getOption(context, SqlClient.SqlClient)) ||
        isForeign(Context.getOption(context, PgClient.PgClient))
      ? Effect.fail(new ForeignSqlClient({ replicaSet }))
      : Effect.void
  }

  return CheckpointStore.of({ commit, advance, halt, rows, unstorable, checkClient })
})
