/**
 * What membership and decisions share: one session beside the application's pool, the lock under which decisions are
 * made, and what the session has seen of the others' presence.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import * as SqlClient from "effect/sql/SqlClient"
import * as SqlError from "effect/sql/SqlError"
import { DatabaseUnavailable, type StoreError } from "../../schema/Errors.ts"
import type * as Worker from "../../schema/Worker.ts"
import { Database } from "./Database.ts"
import { isConflict } from "./DatabaseErrors.ts"
import * as Notifications from "./Notifications.ts"
import * as Presence from "./Presence.ts"
import type { WorkerRow } from "./Rows.ts"
import type { Opened, Session } from "./Session.ts"

/**
 * What one connection has seen. It dies with the connection, so that after an outage of the database nobody's absence
 * is held against it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Observations {
  /** Since when (`Clock.monotonicTimeNanos`) this process' own presence has stood. */
  ownSince: bigint | undefined
  /** By incarnation. */
  readonly workers: Map<string, {
    /** The time of the last heartbeat that was read, and when it was sent by this process's monotonic clock. */
    readonly beat: string
    readonly beatAt: bigint
    readonly readAt: bigint
    readonly seenPresent: boolean
    readonly missingSince: bigint | undefined
  }>
}

/**
 * @category models
 * @since 0.1.0
 */
export interface Observed extends Worker.WorkerView {
  readonly replicaSet: string
  readonly row: WorkerRow
  /** It was a worker of this process and is no more. */
  readonly ended: boolean
  /** Milliseconds since this session first saw it absent; absent when it is present or absence says nothing. */
  readonly missingForMillis: number | undefined
}

/**
 * @category services
 * @since 0.1.0
 */
export class Coordination extends Context.Service<Coordination, {
  /** Runs `f` on the session; one at a time, so that the deadline counts from its turn. */
  readonly use: Session<Observations>["use"]

  /**
   * Runs `f` alone among the workers of the replica set, in one short transaction that reads what is committed.
   */
  readonly alone: <A, E, R>(
    operation: string,
    replicaSet: string,
    f: (opened: Opened<Observations>) => Effect.Effect<A, E | SqlError.SqlError, R>
  ) => Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R>

  /**
   * Wakes the workers of the replica set, this process' own included. Returns when the notification was sent or cannot
   * be sent; never fails. Used after a commit, never inside a transaction that must succeed.
   */
  readonly wake: (replicaSet: string) => Effect.Effect<void>

  /**
   * SQL: a `WorkerRow` as JSON from a worker `w`, its heartbeat `h` and `present`, as `workersFrom` names them.
   */
  readonly workerJson: string
  readonly workersFrom: string

  /** SQL: whether the database sees this process present. */
  readonly ownPresent: () => string

  /** Records what the session has just read, and returns what follows from it. */
  readonly observe: (
    opened: Opened<Observations>,
    seen: {
      /**
       * `Clock.monotonicTimeNanos` before the query was sent. Silence and absence end there, because a process that is
       * blocked reads the answer much later than the database gave it.
       */
      readonly askedAt: bigint
      readonly workers: ReadonlyArray<WorkerRow>
      readonly ownPresent: boolean
    }
  ) => Effect.Effect<ReadonlyArray<Observed>>

  /** Incarnations of the workers of this process: their presence ends with them, though the process' key stays. */
  readonly members: Set<bigint>
}>()("pupsourcing-orchestrator/layers/postgres/Coordination") {}

/** How long a statement waits for a lock, another decision's included, how long it may take, and how long a decision may stand idle. */
const lockTimeoutMillis = 1000
const statementTimeoutMillis = 3000
const idleTimeoutMillis = 2000

/** More than a decision can take while the database answers. */
const deadline = Duration.seconds(4)

/** A decision's holder that hangs is ended after `idleTimeoutMillis`; that many waits of `lockTimeoutMillis` outlast it. */
const attempts = 8

/** How long absence must have been seen, and own presence stood, before it counts for a key that was never seen held. */
const unseenMillis = 3000

/** Dropping an entry only causes a delay. */
const maximumWorkers = 10_000

/**
 * Nanoseconds since the worker's last heartbeat. The database's clock may have been changed since then, so it is used
 * only for the time before this session read the worker: a heartbeat that is read for the first time is younger than
 * the previous reading, and never lies in the future after the clock was set back.
 */
const sinceBeat = (row: WorkerRow, sinceReading: bigint | undefined): bigint => {
  const silent = BigInt(Math.max(0, Math.floor(row.silent * 1e6)))
  return sinceReading !== undefined && sinceReading < silent ? sinceReading : silent
}

/** 0 when `to` is the earlier one. */
const millisBetween = (from: bigint, to: bigint): number => Math.max(0, Number(to - from) / 1e6)

/**
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<
  Coordination["Service"],
  never,
  Database | Presence.Presence | Scope.Scope
> = Effect.gen(function*() {
  const database = yield* Database
  const presence = yield* Presence.Presence
  const session = yield* database.openSession<Observations>({
    name: "pupsourcing-orchestrator coordination",
    deadline,
    settings: {
      lock_timeout: String(lockTimeoutMillis),
      statement_timeout: String(statementTimeoutMillis),
      idle_in_transaction_session_timeout: String(idleTimeoutMillis)
    },
    state: () => ({ ownSince: undefined, workers: new Map() })
  })
  const turn = Semaphore.makeUnsafe(1)
  const members = new Set<bigint>()

  const use: Session<Observations>["use"] = (operation, f) => turn.withPermit(session.use(operation, f))

  const alone = <A, E, R>(
    operation: string,
    replicaSet: string,
    f: (opened: Opened<Observations>) => Effect.Effect<A, E | SqlError.SqlError, R>
  ): Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R> =>
    use(operation, (opened) => {
      const { sql } = opened
      const lock = sql`
        SELECT pg_advisory_xact_lock(${database.qualified("generations")}::text::regclass::oid::int4,
          pg_catalog.hashtext(${replicaSet}::text))`
      return Effect.andThen(lock, f(opened)).pipe(
        sql.withTransaction,
        // Each statement must see what was committed while the lock was waited for.
        Effect.provideService(SqlClient.BeginTransaction, "BEGIN ISOLATION LEVEL READ COMMITTED"),
        Effect.asSome,
        Effect.catchIf(
          (error) => SqlError.isSqlError(error) && isConflict(error),
          () => Effect.succeedNone
        )
      )
    }).pipe(
      Effect.flatMap(Effect.fromOption),
      Effect.catchTag("NoSuchElementError", () =>
        Effect.fail(
          new DatabaseUnavailable({
            ...database.server,
            reason: "no answer in time",
            cause: new LockedOut(`${operation}: another decision of replica set "${replicaSet}" did not end`)
          })
        )),
      Effect.retry({
        while: (error) => error instanceof DatabaseUnavailable && error.cause instanceof LockedOut,
        times: attempts - 1,
        schedule: Schedule.jittered(Schedule.spaced("20 millis"))
      })
    )

  const send = Notifications.makeSender()
  const wake = (replicaSet: string) =>
    use(
      "wake the other workers",
      ({ sql }) => send((text, params) => sql.unsafe(text, params), [[database.channels.control, replicaSet]])
    ).pipe(
      Effect.ignoreCause
    )

  const observe = Effect.fnUntraced(function*(
    opened: Opened<Observations>,
    { askedAt, ...seen }: Parameters<Coordination["Service"]["observe"]>[1]
  ) {
    const { state } = opened
    const now = yield* Clock.monotonicTimeNanos
    state.ownSince = seen.ownPresent ? state.ownSince ?? now : undefined
    const ownFor = state.ownSince === undefined ? 0 : millisBetween(state.ownSince, askedAt)
    if (state.workers.size > maximumWorkers) state.workers.clear()
    return seen.workers.map((row): Observed => {
      const incarnation = BigInt(row.incarnation)
      const ended = row.presence_key !== null && row.presence_key === presence.own() && !members.has(incarnation)
      const present = row.present && !ended
      const before = state.workers.get(row.incarnation)
      const beatAt = before !== undefined && before.beat === row.beat
        ? before.beatAt
        : now - sinceBeat(row, before === undefined ? undefined : now - before.readAt)
      const seen = { beat: row.beat, beatAt, readAt: now }
      const view = {
        workerId: row.worker_id,
        incarnation,
        startedAt: new Date(row.started_at),
        projections: row.projections,
        silentForMillis: millisBetween(beatAt, askedAt),
        recorded: {
          state: row.state,
          generationId: row.generation_id === null ? undefined : BigInt(row.generation_id)
        },
        replicaSet: row.replica_set,
        row,
        ended
      }
      if (!database.presence || row.presence_key === null || present) {
        state.workers.set(row.incarnation, { ...seen, seenPresent: present, missingSince: undefined })
        return { ...view, missingForMillis: undefined }
      }
      const missingSince = before?.missingSince ?? now
      const seenPresent = before?.seenPresent ?? ended
      state.workers.set(row.incarnation, { ...seen, seenPresent, missingSince })
      const missingFor = millisBetween(missingSince, askedAt)
      return {
        ...view,
        missingForMillis: missingFor,
        ...(seenPresent || (missingFor >= unseenMillis && ownFor >= unseenMillis)
          ? { absentForMillis: missingFor }
          : {})
      }
    })
  })

  return Coordination.of({
    use,
    alone,
    wake,
    workerJson: `json_build_object(
      'replica_set', w.replica_set, 'worker_id', w.worker_id, 'incarnation', w.incarnation::text,
      'started_at', floor(extract(epoch FROM w.started_at) * 1000), 'projections', w.projections,
      'silent', extract(epoch FROM clock_timestamp() - coalesce(h.heartbeat_at, w.started_at)) * 1000,
      'beat', extract(epoch FROM coalesce(h.heartbeat_at, w.started_at))::text,
      'presence_key', w.presence_key, 'host', w.host, 'pid', w.pid, 'present', p.key IS NOT NULL,
      'state', w.state, 'generation_id', w.generation_id::text)`,
    workersFrom: `${database.qualified("workers")} w
      LEFT JOIN ${database.qualified("heartbeats")} h
        ON h.replica_set = w.replica_set AND h.worker_id = w.worker_id AND h.incarnation = w.incarnation
      LEFT JOIN (SELECT DISTINCT k.key FROM (${presence.presentKeys}) AS k) AS p ON p.key = w.presence_key`,
    ownPresent: () => {
      const own = presence.own()
      return own === undefined ? "false" : `EXISTS (SELECT FROM (${presence.presentKeys}) AS k WHERE k.key = ${own})`
    },
    observe,
    members
  })
})

class LockedOut extends Error {}
