/**
 * The checkpoint store on PostgreSQL. A batch is one transaction of the application's client: its first statement
 * checks the fence (`begin`), its last one advances the position under the fence (`advanceInBatch`).
 *
 * COMMIT is sent by `BatchTransaction`. If its answer is lost, `FencedWrite.resolveUnknownCommit` looks up the outcome.
 *
 * Lock order: the read model first, then the checkpoint row.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Boolean from "effect/Boolean"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Option from "effect/Option"
import * as Semaphore from "effect/Semaphore"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import { haltError, type Held } from "../../../schema/Checkpoint.ts"
import { ForeignSqlClient, type StoreError } from "../../../schema/Errors.ts"
import { textProblem } from "../../../schema/Text.ts"
import {
  type BatchOptions,
  CheckpointStore,
  EpochEnded,
  Fenced,
  type HandlerFailure,
  TransientFailure
} from "../../../services/CheckpointStore.ts"
import { isTrue } from "../connection/Codecs.ts"
import { isUnstorable, writing } from "../connection/Encoding.ts"
import { inTime, quietly } from "../connection/PoolStatement.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import { isTransient, readOnly, toStoreError } from "../connection/SqlErrors.ts"
import * as Rows from "../coordination/Rows.ts"
import { Database } from "../Database.ts"
import { hashOf } from "../HashSql.ts"
import * as BatchFailure from "./BatchFailure.ts"
import * as BatchTransaction from "./BatchTransaction.ts"
import * as EmptyProgress from "./EmptyProgress.ts"
import { alsoAdvanced, explainZeroRows, isAt, isHeldAs, resolveUnknownCommit } from "./FencedWrite.ts"

type Store = CheckpointStore

/** The driver's default pool size. */
const defaultConnections = 10

export const make: Effect.Effect<Store, never, Database> = Effect.gen(function*() {
  const database = yield* Database
  // Batches never take the pool's last connection, unless it is the only one: the application and the statements that
  // monitor a batch need it. The client's `config` contains the pool's options, although its type lacks them.
  const { maxConnections = defaultConnections }: PgClient.PgPoolConfig = database.pg.config
  const batches = Semaphore.makeUnsafe(Math.max(1, maxConnections - 1))
  return CheckpointStore.of({
    commit: (held, options, work) =>
      batches.withPermit(commit(database, held, options, work)).pipe(database.namingPrivileges("worker")),
    advance: EmptyProgress.make(database),
    classifyHandler: (cause) => BatchFailure.classifyOutside(database.server, cause),
    halt: (held, options) => halt(database, held, options).pipe(database.namingPrivileges("worker")),
    rows: (projection) => rows(database, projection),
    unstorable: (texts) => unstorable(database, texts),
    checkClient: (context, replicaSet) => checkClient(database, context, replicaSet)
  })
})

/** A batch, and how far it has come. */
interface Batch {
  readonly held: Held
  readonly options: BatchOptions
  /** Set when the first statement has been answered. */
  transaction: BatchTransaction.Transaction | undefined
  /** The position that the handler has reached; set when the handler has returned. */
  to: bigint | undefined
  /** Whether the last statement has advanced the position, so that only COMMIT remains. */
  hasAdvanced: boolean
  rollBackReason: BatchFailure.RollBackReason | undefined
}

const commit = <E, R>(
  database: Database["Service"],
  held: Held,
  options: BatchOptions,
  work: Effect.Effect<bigint, E, R>
): Effect.Effect<void, EpochEnded | Fenced | HandlerFailure | StoreError | TransientFailure, R> =>
  Effect.suspend(() => {
    const { idleTimeout, isolation } = options
    const batch: Batch = {
      held,
      options,
      transaction: undefined,
      to: undefined,
      hasAdvanced: false,
      rollBackReason: undefined
    }
    // No generator function is made for each batch: see docs/adr/0023-short-lived-events.md.
    const steps = Effect.flatMap(
      begin(database, batch),
      (transaction) =>
        Effect.flatMap(handle(database, batch, work), (to) => advanceInBatch(database, batch, transaction, to))
    )
    return Effect.catchCause(
      // Its `withTransaction` sends COMMIT after `advanceInBatch`, so the steps contain no COMMIT.
      BatchTransaction.run(database, { idleTimeout, isolation, transaction: () => batch.transaction }, steps),
      (cause) =>
        BatchFailure.match(BatchFailure.classify(database.server, cause, batch), {
          UnknownCommit: ({ error }) => resolve(database, batch, error),
          Failed: ({ failure }) => Effect.fail(failure),
          Interrupted: ({ cause }) => Effect.failCause(cause),
          Died: ({ defect }) => Effect.die(defect)
        })
    )
  })

/**
 * Looks up by the position whether a batch with an unknown commit outcome has committed. A batch that does not move the
 * position fails once its transaction has ended, even if it has committed.
 */
const resolve = (database: Database["Service"], { held, options: { from }, to }: Batch, error: SqlError.SqlError) => {
  const lookUp = resolveUnknownCommit(database, held, { from, to }, error)
  return to === from
    ? Effect.andThen(lookUp, Effect.fail(new TransientFailure({ kind: "connection", cause: error })))
    : lookUp
}

/**
 * The first statement of a batch: reads whether the server epoch, the access mode and the fence permit it. Bounds idle
 * transactions and lock waits, so that transactions orphaned by a dead process release their locks instead of acquiring
 * them one after another. A stricter `lock_timeout` of the application is kept.
 */
const begin = Effect.fnUntraced(function*(database: Database["Service"], batch: Batch) {
  const { held, options: { epoch, from, idleTimeout } } = batch
  const { sql } = database
  const millis = String(Math.ceil(Duration.toMillis(idleTimeout)))
  const [start] = yield* quietly(sql<BatchTransaction.Transaction & Record<"alive" | "held" | "reads_only", string>>`
    SELECT pg_backend_pid()::text AS pid, extract(epoch FROM now())::text AS begun,
      ${limitIdleTime(sql, millis)},
      CASE WHEN current_setting('lock_timeout') = '0'
          OR current_setting('lock_timeout')::interval > ${millis}::int * interval '1 millisecond'
        THEN set_config('lock_timeout', ${millis}, true) END,
      (${ServerEpochSql.isCurrent(sql, epoch)})::text AS alive,
      current_setting('transaction_read_only')::bool::text AS reads_only,
      EXISTS (
        SELECT FROM ${database.table("checkpoints")} AS c
        WHERE ${isHeldAs(sql, held)} AND ${isAt(sql, from)}
      )::text AS held`)
  batch.transaction = start
  // First, because a standby does not have the reading session. Later, the write's failure would be the handler's.
  if (isTrue(start?.reads_only)) return yield* rollBack(batch, readOnly(database.server))
  if (start?.alive === "false") return yield* rollBack(batch, new EpochEnded())
  if (start === undefined || !isTrue(start.held)) {
    return yield* rollBack(batch, new Fenced({ projection: held.projection }))
  }
  return start
})

/** SQL: the server ends the transaction once its client has been silent for this long. */
export const limitIdleTime = (sql: Statement.Constructor, millis: string) =>
  sql`set_config('idle_in_transaction_session_timeout', ${millis}, true)`

const handle = Effect.fnUntraced(function*<E, R>(
  { server, sql }: Database["Service"],
  batch: Batch,
  work: Effect.Effect<bigint, E, R>
) {
  const exit = yield* BatchTransaction.runHandler(sql, batch.options.idleTimeout, work)
  if (Exit.isFailure(exit)) return yield* rollBack(batch, BatchFailure.classifyHandler(server, exit.cause))
  batch.to = exit.value
  return exit.value
})

/** The last statement of a batch: advances the position under the fence, in the transaction of the first statement. */
const advanceInBatch = Effect.fnUntraced(function*(
  { sql, table }: Database["Service"],
  batch: Batch,
  transaction: BatchTransaction.Transaction,
  to: bigint
) {
  const { held, options: { from } } = batch
  const isSameTransaction = sql`extract(epoch FROM now())::text = ${transaction.begun}`
  const advanced = yield* Effect.catchIf(
    quietly(sql`
      UPDATE ${table("checkpoints")} AS c SET position = ${String(to)}::bigint, ${sql.literal(alsoAdvanced)}
      WHERE ${isHeldAs(sql, held)} AND ${isAt(sql, from)} AND ${isSameTransaction}
      RETURNING 'advanced'`),
    BatchFailure.isChangedTransaction,
    (error) => rollBack(batch, BatchFailure.changedTransaction(error))
  )
  batch.hasAdvanced = advanced.length > 0
  if (batch.hasAdvanced) return
  const [now] = yield* quietly(sql<{ readonly same: string }>`SELECT (${isSameTransaction})::text AS same`)
  return yield* rollBack(
    batch,
    now?.same === "false" ? BatchFailure.endedTransaction() : new Fenced({ projection: held.projection })
  )
})

const rollBack = (batch: Batch, reason: BatchFailure.RollBackReason) =>
  Effect.suspend(() => {
    batch.rollBackReason = reason
    return Effect.fail(new BatchFailure.RollBack())
  })

const halt = Effect.fnUntraced(function*(
  database: Database["Service"],
  held: Held,
  { at, epoch, error, eventId, key, position }: Parameters<Store["halt"]>[1]
): Effect.fn.Return<void, EpochEnded | Fenced | StoreError | TransientFailure> {
  const { sql } = database
  const rows = yield* writing(error, (error) =>
    inTime(quietly(sql`
      UPDATE ${database.table("checkpoints")} AS c SET halted_since = clock_timestamp(),
        halted_error = ${haltError(error)}, halted_position = ${String(position)}::bigint,
        halted_event_id = ${eventId}, halted_hash = coalesce(${sql.literal(hashOf("event.key"))}, c.range_start),
        halted_incarnation = c.incarnation, halted_request = CASE
          WHEN c.halted_event_id = ${eventId} AND c.halted_position = ${String(position)}::bigint
            AND c.halted_request = 'skip' THEN 'skip' END,
        updated_at = clock_timestamp()
      FROM (SELECT ${key ?? null}::text AS key) AS event
      WHERE ${isHeldAs(sql, held)} AND ${isAt(sql, at)} AND ${ServerEpochSql.isCurrent(sql, epoch)}
      RETURNING 'halted'`))).pipe(
      Effect.catch((failure): Effect.Effect<never, StoreError | TransientFailure> =>
        Effect.fail(toHaltFailure(database, failure))
      )
    )
  if (rows.length === 0) return yield* explainZeroRows(database, held, epoch)
})

const toHaltFailure = ({ server }: Database["Service"], error: SqlError.SqlError): StoreError | TransientFailure => {
  if (isTransient(error)) return BatchFailure.transient(error)
  // Recording a halt twice is harmless, so the outcome is not looked up.
  return BatchFailure.wasLost(error) && !BatchFailure.neverConnected(error)
    ? new TransientFailure({ kind: "connection", cause: error })
    : toStoreError(server, "halt a range")(error)
}

const rows = ({ refail, sql, table }: Database["Service"], projection: string) =>
  quietly(sql<{ readonly row: string }>`
    SELECT ${sql.literal(Rows.checkpointJson)}::text AS row FROM ${table("checkpoints")} AS c
    WHERE c.projection_name = ${projection} ORDER BY c.range_start`).pipe(
    inTime,
    Effect.map((found) => found.map(({ row }) => Rows.toCheckpoint(JSON.parse(row)))),
    refail("read checkpoints")
  )

const unstorable = (database: Database["Service"], texts: ReadonlyArray<string>) =>
  Effect.flatMap(areStorable(database, texts), (all) =>
    all
      ? Effect.succeed([])
      : Effect.filter(texts, (text) => Effect.map(areStorable(database, [text]), Boolean.not)))

const areStorable = ({ refail, sql }: Database["Service"], texts: ReadonlyArray<string>) =>
  texts.some((text) => textProblem(text) !== undefined)
    ? Effect.succeed(false)
    // The server converts parameters to its encoding before it evaluates the query.
    : quietly(sql`SELECT octet_length(${texts.join(" ")}::text)`).pipe(
      inTime,
      Effect.as(true),
      Effect.catchIf(isUnstorable, () => Effect.succeed(false)),
      refail("check names")
    )

const checkClient = ({ sql }: Database["Service"], context: Context.Context<never>, replicaSet: string) => {
  const isForeign = (client: Option.Option<SqlClient.SqlClient>) =>
    Option.isSome(client) && client.value.transactionService.key !== sql.transactionService.key
  return isForeign(Context.getOption(context, SqlClient.SqlClient)) ||
      isForeign(Context.getOption(context, PgClient.PgClient))
    ? Effect.fail(new ForeignSqlClient({ replicaSet }))
    : Effect.void
}
