/**
 * Writes the progress of ranges in which no event matched. Ranges that advance at the same time share one statement.
 */
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Request from "effect/Request"
import * as RequestResolver from "effect/RequestResolver"
import type * as SqlError from "effect/sql/SqlError"
import type { Held } from "../../../schema/Checkpoint.ts"
import type { StoreError } from "../../../schema/Errors.ts"
import { type CheckpointStore, EpochEnded, Fenced, TransientFailure } from "../../../services/CheckpointStore.ts"
import type { ServerEpoch } from "../../../services/EventStore.ts"
import { isTrue } from "../connection/Codecs.ts"
import { inTime, quietly } from "../connection/PoolStatement.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import { isConflict, isConnectionLoss, isTransient, toStoreError } from "../connection/SqlErrors.ts"
import * as Rows from "../coordination/Rows.ts"
import type { Database } from "../Database.ts"
import * as BatchFailure from "./BatchFailure.ts"
import * as FencedWrite from "./FencedWrite.ts"

/** Advances one range. */
class Advance extends Request.Class<
  {
    readonly held: Held
    readonly options: { readonly from: bigint; readonly to: bigint; readonly epoch?: ServerEpoch | undefined }
    /** Completed when the caller has been interrupted. */
    readonly abandoned: Deferred.Deferred<void>
    /** Closed while the statement is in flight. */
    readonly ended: Latch.Latch
  },
  void,
  EpochEnded | Fenced | StoreError | TransientFailure
> {}

type Entries = ReadonlyArray<Request.Entry<Advance>>

export const make = (database: Database["Service"]): CheckpointStore["advance"] => {
  const resolver = RequestResolver.makeGrouped({
    key: ({ request }: Request.Entry<Advance>) => request.options.epoch,
    resolver: (entries) => advanceUnlessAbandoned(database, entries)
  })
  return (held, options) =>
    Effect.suspend(() => {
      const request = new Advance({ held, options, abandoned: Deferred.makeUnsafe(), ended: Latch.makeUnsafe(true) })
      // A caller that is interrupted waits for the statement. Otherwise its range could be opened again from the row as
      // it was before, and would then be fenced.
      return Effect.onInterrupt(
        Effect.request(request, resolver),
        () => Effect.andThen(Deferred.succeed(request.abandoned, undefined), request.ended.await)
      )
    })
}

/**
 * Interrupting a caller does not interrupt the shared statement. When the last caller is interrupted, the statement is
 * cancelled; otherwise it would keep a connection, and the pool could not close.
 */
const advanceUnlessAbandoned = (database: Database["Service"], entries: Entries): Effect.Effect<void> =>
  Effect.suspend(() => {
    for (const { request } of entries) request.ended.closeUnsafe()
    return Effect.raceFirst(
      advanceTogether(database, entries),
      Effect.forEach(entries, ({ request }) => Deferred.await(request.abandoned), { discard: true })
    )
  }).pipe(Effect.ensuring(Effect.sync(() => {
    for (const { request } of entries) request.ended.openUnsafe()
  })))

const advanceTogether = Effect.fnUntraced(function*(
  database: Database["Service"],
  entries: Entries
): Effect.fn.Return<void> {
  const result = yield* Effect.result(inTime(advanceRows(database, entries)))
  if (result._tag === "Failure") return yield* completeFailed(database, entries, result.failure)
  for (const [index, row] of result.success.entries()) yield* complete(entries[index]!, row)
})

/** The result for one request. */
interface AdvanceRow {
  readonly alive: string
  readonly moved: string
  /** Whether the row matched the fence when the statement began. */
  readonly held: string
}

/**
 * Advances several ranges, and returns a row for each, in their order. Skips rows that another transaction has locked,
 * because one locked row must not delay the progress of all other ranges.
 */
const advanceRows = ({ sql, table }: Database["Service"], entries: Entries) => {
  const wanted = entries.map(({ request: { held, options } }, place) => ({
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
  const checkpoints = table("checkpoints")
  const isHeld = sql`${FencedWrite.isHeldAsWanted(sql)} AND c.position = w."from"`
  return quietly(sql<AdvanceRow>`
    WITH wanted AS MATERIALIZED (
      SELECT * FROM json_to_recordset(${JSON.stringify(wanted)}::json) AS w (place int, projection_name text,
        range_start bigint, range_end bigint, worker_id text, incarnation bigint, generation_id bigint, "from" bigint,
        "to" bigint)
    ), alive AS MATERIALIZED (
      SELECT ${ServerEpochSql.isCurrent(sql, entries[0]!.request.options.epoch)} AS alive
    ), locked AS MATERIALIZED (
      SELECT w.place, w.projection_name, w.range_start, w."to" FROM ${checkpoints} AS c JOIN wanted AS w ON ${isHeld}
      WHERE (SELECT alive FROM alive)
      ${sql.literal(Rows.lockInKeyOrder)}
    ), moved AS (
      UPDATE ${checkpoints} AS c SET position = l."to", ${sql.literal(FencedWrite.alsoAdvanced)} FROM locked AS l
      WHERE c.projection_name = l.projection_name AND c.range_start = l.range_start RETURNING l.place
    )
    SELECT (SELECT alive FROM alive)::text AS alive, (m.place IS NOT NULL)::text AS moved,
      EXISTS (SELECT FROM ${checkpoints} AS c WHERE ${isHeld})::text AS held
    FROM wanted AS w LEFT JOIN moved AS m ON m.place = w.place ORDER BY w.place`)
}

const complete = (entry: Request.Entry<Advance>, { alive, held, moved }: AdvanceRow): Effect.Effect<void> => {
  if (isTrue(moved)) return Request.succeed(entry, undefined)
  const { projection } = entry.request.held
  return Request.fail(
    entry,
    !isTrue(alive)
      ? new EpochEnded()
      : isTrue(held)
      ? rowLocked
      : new Fenced({ projection })
  )
}

const rowLocked = new TransientFailure({
  kind: "conflict",
  cause: new Error(
    "another transaction has locked the checkpoint's row, or row-level security or a trigger keeps this role from changing it"
  )
})

const completeFailed = (
  database: Database["Service"],
  entries: Entries,
  error: SqlError.SqlError
): Effect.Effect<void> => {
  const wasSent = !BatchFailure.neverConnected(error)
  // A conflict or an error of one row must not block the progress of all other ranges.
  const isOfOneRow = isConflict(error) ? error.reason._tag !== "LockTimeoutError" : !isTransient(error)
  if (entries.length > 1 && isOfOneRow && !isConnectionLoss(error) && wasSent) {
    return Effect.forEach(entries, (entry) => advanceTogether(database, [entry]), { discard: true })
  }
  const fail = (failure: StoreError | TransientFailure) =>
    Effect.forEach(entries, Request.fail<Advance>(failure), { discard: true })
  if (isTransient(error)) return fail(BatchFailure.transient(error))
  if (!BatchFailure.wasLost(error) || !wasSent) {
    return fail(toStoreError(database.server, "advance a checkpoint")(error))
  }
  return Effect.forEach(
    entries,
    (entry) => {
      const { held, options } = entry.request
      return Request.completeEffect(entry, FencedWrite.resolveUnknownCommit(database, held, options, error))
    },
    { concurrency: "unbounded", discard: true }
  )
}
