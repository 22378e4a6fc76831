/**
 * Writes to the row of a checkpoint under its fence: the SQL that compares the fence, and what it means if a write
 * matched no row or its answer was lost.
 */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as SqlError from "effect/sql/SqlError"
import type * as Statement from "effect/sql/Statement"
import type { Held } from "../../../schema/Checkpoint.ts"
import type { StoreError } from "../../../schema/Errors.ts"
import { EpochEnded, Fenced, TransientFailure } from "../../../services/CheckpointStore.ts"
import type { ServerEpoch } from "../../../services/EventStore.ts"
import { inTime, quietly } from "../connection/PoolStatement.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import { isConnectionLoss, isTransient } from "../connection/SqlErrors.ts"
import type { Database } from "../Database.ts"

/** The columns that identify a range and its fence. */
const columns = ["projection_name", "range_start", "range_end", "worker_id", "incarnation", "generation_id"] as const
export type Column = typeof columns[number]

/** SQL: whether a column of row `c` of the checkpoints has the wanted value. */
export const isEqual = (sql: Statement.Constructor, column: Column, wanted: Statement.Fragment) =>
  sql`${sql.literal(`c.${column}`)} = ${wanted}`

/**
 * SQL: whether row `c` of the checkpoints has the wanted range and fence. This is the only SQL that compares a fence;
 * `Checkpoint.isHeldAs` does the same in memory.
 */
const isHeldWith = (sql: Statement.Constructor, wanted: (column: Column) => Statement.Fragment) =>
  sql.and(columns.map((column) => isEqual(sql, column, wanted(column))))

/** SQL: the range and the fence of `held`, by column. */
export const valuesOf = (
  sql: Statement.Constructor,
  { fence, projection, range }: Held
): Readonly<Record<Column, Statement.Fragment>> => ({
  projection_name: sql`${projection}`,
  range_start: sql`${String(range.start)}::bigint`,
  range_end: sql`${String(range.end)}::bigint`,
  worker_id: sql`${fence.workerId}`,
  incarnation: sql`${String(fence.incarnation)}::bigint`,
  generation_id: sql`${String(fence.generationId)}::bigint`
})

/** SQL: whether row `c` of the checkpoints has the range and the fence of `held`. */
export const isHeldAs = (sql: Statement.Constructor, held: Held) => {
  const values = valuesOf(sql, held)
  return isHeldWith(sql, (column) => values[column])
}

/** SQL: whether row `c` of the checkpoints has the range and the fence in the columns of `w`. */
export const isHeldAsWanted = (sql: Statement.Constructor) => isHeldWith(sql, (column) => sql.literal(`w.${column}`))

/** SQL: whether row `c` of the checkpoints is at the position. */
export const isAt = (sql: Statement.Constructor, position: bigint) => sql`c.position = ${String(position)}::bigint`

/** SQL: finds and locks the row of `held`, after the transaction that has locked it has ended. */
export const lockHeldAs = (sql: Statement.Constructor, held: Held) => sql`${isHeldAs(sql, held)} FOR UPDATE`

/** SQL: what an advance sets besides the position. Also clears a halt whose acknowledgement was lost. */
export const alsoAdvanced = `updated_at = clock_timestamp(), halted_since = NULL, halted_error = NULL,
  halted_position = NULL, halted_event_id = NULL, halted_hash = NULL, halted_incarnation = NULL,
  halted_request = NULL`

const whileUnreachable = Schedule.jittered(
  Schedule.min([Schedule.exponential("50 millis"), Schedule.spaced("2 seconds")])
)

/**
 * Looks up whether a write whose answer was lost has committed: succeeds if it has, fails otherwise. The row lock waits
 * until the transaction has ended. Retries until the database is reachable, because nothing is known before.
 */
export const resolveUnknownCommit = Effect.fnUntraced(function*(
  { refail, sql, table }: Database["Service"],
  held: Held,
  { from, to }: { readonly from: bigint; readonly to: bigint | undefined },
  error: SqlError.SqlError
): Effect.fn.Return<void, Fenced | StoreError | TransientFailure> {
  const [row] = yield* quietly(sql<{ readonly position: string }>`
    SELECT c.position::text AS position FROM ${table("checkpoints")} AS c WHERE ${lockHeldAs(sql, held)}`)
    .pipe(
      inTime,
      Effect.retry({
        while: (failure) => isConnectionLoss(failure) || isTransient(failure),
        schedule: whileUnreachable
      }),
      refail("look up the outcome of a batch")
    )
  const position = row === undefined ? undefined : BigInt(row.position)
  if (position !== undefined && position === to) return
  if (position === from) return yield* new TransientFailure({ kind: "connection", cause: error })
  return yield* new Fenced({ projection: held.projection })
})

/** Fails with the reason why a write matched no row: another server epoch, or a lost fence. */
export const explainZeroRows = Effect.fnUntraced(function*(
  { refail, sql }: Database["Service"],
  held: Held,
  epoch: ServerEpoch | undefined
): Effect.fn.Return<never, EpochEnded | Fenced | StoreError> {
  const [row] = yield* quietly(
    sql<{ readonly alive: string }>`SELECT (${ServerEpochSql.isCurrent(sql, epoch)})::text AS alive`
  ).pipe(inTime, refail("check why a row was not written"))
  return yield* row?.alive === "false" ? new EpochEnded() : new Fenced({ projection: held.projection })
})
