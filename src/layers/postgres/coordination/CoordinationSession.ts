/**
 * What membership and decisions share: one session beside the application's pool, the lock that serializes decisions,
 * and the session's observations of the workers.
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
import type * as Statement from "effect/sql/Statement"
import { StoreError } from "../../../schema/Errors.ts"
import type { Registration } from "../../../schema/Worker.ts"
import * as Notifications from "../connection/Notifications.ts"
import type { Opened, Session } from "../connection/Session.ts"
import { isConflict, unavailable } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import * as Observations from "./Observations.ts"
import * as Presence from "./Presence.ts"
import type { WorkerRow } from "./Rows.ts"

/** The session and its current connection. */
export type OpenedSession = Opened<Observations.Observations>

/** The coordination session and the operations on it that membership and decisions share. */
export class CoordinationSession extends Context.Service<CoordinationSession, {
  /** Runs `f` on the session, one call at a time; the deadline starts when the call gets its turn. */
  readonly use: Session<Observations.Observations>["use"]

  /**
   * Runs `f` in one short `READ COMMITTED` transaction that holds the replica set's decision lock, and `afterCommit` on
   * the same session, even if the caller is interrupted meanwhile. Lock timeouts and other conflicts are retried.
   */
  readonly exclusively: <A, E, R>(
    operation: string,
    replicaSet: string,
    f: (opened: OpenedSession) => Effect.Effect<A, E | SqlError.SqlError, R>,
    afterCommit?: (opened: OpenedSession, value: A) => Effect.Effect<void>
  ) => Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R>

  /**
   * Wakes all workers of the replica set, this process's own included, or those with the given incarnations. Returns
   * when the notification was sent or could not be sent; never fails. Call it in the `use` that has committed the
   * change, which continues if its caller is interrupted, but not inside the transaction.
   */
  readonly wake: (
    opened: OpenedSession,
    replicaSet: string,
    workers: "all" | ReadonlySet<bigint>
  ) => Effect.Effect<void>

  /** SQL: an `Observations.Reading` of the workers `w` that meet the condition, as JSON. */
  readonly reading: (condition: Statement.Fragment) => Statement.Fragment

  /**
   * Records what was read, and returns the workers with their silence and absence. `askedAt` is
   * `Clock.monotonicTimeNanos` before the query was sent.
   */
  readonly observe: (
    opened: OpenedSession,
    reading: Observations.Reading,
    askedAt: bigint
  ) => Effect.Effect<ReadonlyArray<Observations.Observed>>

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

export const make: Effect.Effect<
  CoordinationSession["Service"],
  never,
  Database | Presence.Presence | Scope.Scope
> = Effect.gen(function*() {
  const database = yield* Database
  const presence = yield* Presence.Presence
  const session = yield* database.openSession<Observations.Observations>({
    name: "pupsourcing-orchestrator coordination",
    deadline,
    settings: {
      lock_timeout: String(lockTimeoutMillis),
      statement_timeout: String(statementTimeoutMillis),
      idle_in_transaction_session_timeout: String(idleTimeoutMillis)
    },
    state: Observations.make
  })
  const turn = Semaphore.makeUnsafe(1)
  const use: CoordinationSession["Service"]["use"] = (operation, f) => turn.withPermit(session.use(operation, f))
  const members = new Set<bigint>()
  const hasEnded = (row: WorkerRow) =>
    row.presence_key !== null && row.presence_key === presence.own() && !members.has(BigInt(row.incarnation))
  const send = Notifications.makeSender()
  return CoordinationSession.of({
    use,
    exclusively: (operation, replicaSet, f, afterCommit = () => Effect.void) =>
      exclusively(database, use, operation, replicaSet, f, afterCommit),
    wake: ({ sql }, replicaSet, workers) =>
      workers !== "all" && workers.size === 0 ? Effect.void : send(
        (text, params) => sql.unsafe(text, params),
        wakeUps(replicaSet, workers).map((payload) => [database.channels.control, payload])
        // The change is committed already. A worker that is not woken finds it at its next poll.
      ).pipe(Effect.ignoreCause),
    reading: (condition) => Observations.reading(database.sql, database, presence, condition),
    observe: ({ state }, reading, askedAt) =>
      Effect.map(
        Clock.monotonicTimeNanos,
        (now) => Observations.observe(state, reading, { askedAt, now, usesPresence: database.presence, hasEnded })
      ),
    members
  })
})

/** The payloads on the control channel that wake workers. */
const wakeUps = (replicaSet: string, workers: "all" | ReadonlySet<bigint>): ReadonlyArray<string> =>
  workers === "all" ? [replicaSet] : [...workers].map((incarnation) => wakeUp({ replicaSet, incarnation }))

const wakeUp = ({ incarnation, replicaSet }: Pick<Registration, "incarnation" | "replicaSet">): string =>
  `${replicaSet}/${incarnation}`

/** Whether a payload wakes the worker. */
export const isWakeUp = (payload: string, worker: Pick<Registration, "incarnation" | "replicaSet">): boolean =>
  payload === worker.replicaSet || payload === wakeUp(worker)

const exclusively = <A, E, R>(
  database: Database["Service"],
  use: CoordinationSession["Service"]["use"],
  operation: string,
  replicaSet: string,
  f: (opened: OpenedSession) => Effect.Effect<A, E | SqlError.SqlError, R>,
  afterCommit: (opened: OpenedSession, value: A) => Effect.Effect<void>
): Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R> =>
  use(operation, (opened) =>
    Effect.andThen(
      opened.sql`SELECT ${decisionLock(opened.sql, database.qualified("generations"), replicaSet)}`,
      f(opened)
    ).pipe(
      opened.sql.withTransaction,
      // Each statement must read what was committed during the wait for the lock.
      Effect.provideService(SqlClient.BeginTransaction, "BEGIN ISOLATION LEVEL READ COMMITTED"),
      Effect.tap((value) => afterCommit(opened, value)),
      Effect.catchIf(
        (error): error is SqlError.SqlError => SqlError.isSqlError(error) && isConflict(error),
        (conflict) =>
          Effect.fail(
            unavailable(
              database.sessionServer,
              "no answer in time",
              new LockedOut(`${operation}: another decision of replica set "${replicaSet}" did not end`, {
                cause: conflict
              })
            )
          )
      )
    )).pipe(
      Effect.retry({
        while: (error) => error instanceof StoreError && error.reason.cause instanceof LockedOut,
        times: attempts - 1,
        schedule: Schedule.jittered(Schedule.spaced("20 millis"))
      })
    )

/**
 * SQL: acquires the decision lock until the end of the transaction. It is an advisory lock: locking the newest
 * generation's row would not exclude other decisions, because the next generation is a new row, which no transaction
 * has locked.
 */
export const decisionLock = (sql: Statement.Constructor, generations: string, replicaSet: string) =>
  sql`pg_advisory_xact_lock(${generations}::text::regclass::oid::int4, pg_catalog.hashtext(${replicaSet}::text))`

class LockedOut extends Error {}
