/**
 * What membership and decisions share: one session beside the application's pool, the lock that serializes decisions,
 * and the session's observations of the workers' heartbeats and presence.
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
import { DatabaseUnavailable, type StoreError } from "../../../schema/Errors.ts"
import type * as Worker from "../../../schema/Worker.ts"
import * as Notifications from "../connection/Notifications.ts"
import type { Opened, Session } from "../connection/Session.ts"
import { isConflict } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import * as Presence from "./Presence.ts"
import type { WorkerRow } from "./Rows.ts"

/**
 * The observations made through one connection. They are discarded with the connection, so that an outage of the
 * database does not count as a worker's absence.
 *
 * @category models
 * @since 0.1.0
 */
export interface Observations {
  /** Since when (`Clock.monotonicTimeNanos`) this process has been observed present without interruption. */
  ownSince: bigint | undefined
  /** Keyed by incarnation. */
  readonly workers: Map<string, {
    /** The database's time of the last heartbeat that was read, as text. */
    readonly beat: string
    /** When that heartbeat was sent, and when the worker was last read, by this process's monotonic clock. */
    readonly beatAt: bigint
    readonly readAt: bigint
    readonly seenPresent: boolean
    readonly missingSince: bigint | undefined
  }>
}

/**
 * A worker as the coordination session observes it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Observed extends Worker.WorkerView {
  readonly replicaSet: string
  readonly row: WorkerRow
  /** Whether it was a worker of this process and has ended. */
  readonly ended: boolean
  /** Milliseconds since this session first found it absent; undefined if it is present or presence is not used. */
  readonly missingForMillis: number | undefined
}

/**
 * The coordination session and the operations on it that membership and decisions share.
 *
 * @category services
 * @since 0.1.0
 */
export class CoordinationSession extends Context.Service<CoordinationSession, {
  /** Runs `f` on the session, one call at a time; the deadline starts when the call gets its turn. */
  readonly use: Session<Observations>["use"]

  /**
   * Runs `f` in one short `READ COMMITTED` transaction that holds the replica set's decision lock. Lock timeouts and
   * other conflicts are retried.
   */
  readonly exclusively: <A, E, R>(
    operation: string,
    replicaSet: string,
    f: (opened: Opened<Observations>) => Effect.Effect<A, E | SqlError.SqlError, R>
  ) => Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R>

  /**
   * Wakes the workers of the replica set, this process's own included. Returns when the notification was sent or could
   * not be sent; never fails. Use it after a commit, never inside a transaction that must succeed.
   */
  readonly wake: (replicaSet: string) => Effect.Effect<void>

  /**
   * SQL: a `WorkerRow` as JSON, from the aliases in `workersFrom`: worker `w`, heartbeat `h` and presence `p`.
   */
  readonly workerJson: string
  readonly workersFrom: string

  /** SQL: whether the database lists this process as present. */
  readonly ownPresent: () => string

  /** Records the rows that the session has just read, and returns the workers with their silence and absence. */
  readonly observe: (
    opened: Opened<Observations>,
    seen: {
      /**
       * `Clock.monotonicTimeNanos` before the query was sent. Silence and absence are measured up to this time, because
       * a process whose event loop is blocked reads the answer much later than the database sent it.
       */
      readonly askedAt: bigint
      readonly workers: ReadonlyArray<WorkerRow>
      readonly ownPresent: boolean
    }
  ) => Effect.Effect<ReadonlyArray<Observed>>

  /**
   * Incarnations of this process's running workers. The process's presence outlives its workers, so a registration
   * that has the process's key but is not in this set has ended.
   */
  readonly members: Set<bigint>
}>()("pupsourcing-orchestrator/layers/postgres/CoordinationSession") {}

/** Limits of a lock wait (including the wait for another decision), of a statement, and of an idle transaction. */
const lockTimeoutMillis = 1000
const statementTimeoutMillis = 3000
const idleTimeoutMillis = 2000

/** Longer than any decision takes while the database answers. */
const deadline = Duration.seconds(4)

/** The server ends a hanging holder after `idleTimeoutMillis`; this many waits of `lockTimeoutMillis` are longer. */
const attempts = 8

/**
 * For a worker that this session has never observed present: how long it must have been absent, and this process
 * present, before the absence counts.
 */
const unseenMillis = 3000

/** Limit of the recorded observations; discarding them only causes a delay. */
const maximumWorkers = 10_000

/**
 * Nanoseconds since a heartbeat that is read for the first time. The database's clock may have been changed since it
 * was sent, so the result is bounded: at least 0, and at most the time since the previous reading, which did not
 * contain this heartbeat.
 */
const sinceBeat = (row: WorkerRow, sinceReading: bigint | undefined): bigint => {
  const silent = BigInt(Math.max(0, Math.floor(row.silent * 1e6)))
  return sinceReading !== undefined && sinceReading < silent ? sinceReading : silent
}

/** Milliseconds from `from` to `to`; 0 if `to` is earlier. */
const millisBetween = (from: bigint, to: bigint): number => Math.max(0, Number(to - from) / 1e6)

/**
 * @category constructors
 * @since 0.1.0
 */
export const make: Effect.Effect<
  CoordinationSession["Service"],
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

  const exclusively = <A, E, R>(
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
        // Each statement must read what was committed during the wait for the lock.
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
    { askedAt, ...seen }: Parameters<CoordinationSession["Service"]["observe"]>[1]
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

  return CoordinationSession.of({
    use,
    exclusively,
    wake,
    workerJson: `json_build_object(
      'replica_set', w.replica_set, 'worker_id', w.worker_id, 'incarnation', w.incarnation::text,
      'started_at', floor(extract(epoch FROM w.started_at) * 1000), 'projections', w.projections,
      'silent', extract(epoch FROM clock_timestamp() - coalesce(h.heartbeat_at, w.started_at)) * 1000,
      'beat', extract(epoch FROM coalesce(h.heartbeat_at, w.started_at))::text,
      'presence_key', w.presence_key, 'host', w.host, 'pid', w.pid, 'present', p.key IS NOT NULL)`,
    workersFrom: `${database.qualified("workers")} w
      LEFT JOIN ${database.qualified("heartbeats")} h
        ON h.replica_set = w.replica_set AND h.worker_id = w.worker_id AND h.incarnation = w.incarnation
      LEFT JOIN (${presence.presentKeys}) AS p ON p.key = w.presence_key`,
    ownPresent: () => {
      const own = presence.own()
      return own === undefined ? "false" : `EXISTS (SELECT FROM (${presence.presentKeys}) AS k WHERE k.key = ${own})`
    },
    observe,
    members
  })
})

class LockedOut extends Error {}
