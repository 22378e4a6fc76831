/**
 * What one session has observed of the workers: for how long each has been without a heartbeat and without presence.
 * `Worker.isAlive` decides from these signs of life whether a worker is dead.
 */
import type * as SqlClient from "effect/sql/SqlClient"
import type * as Statement from "effect/sql/Statement"
import type * as Worker from "../../../schema/Worker.ts"
import type { Database } from "../Database.ts"
import type { Presence } from "./Presence.ts"
import type { WorkerRow } from "./Rows.ts"

/**
 * The observations made through one connection. They are discarded with the connection, so that an outage of the
 * database does not count as a worker's absence.
 */
export interface Observations {
  /** Since when (`Clock.monotonicTimeNanos`) this process has been observed present without interruption. */
  ownSince: bigint | undefined
  /** Keyed by incarnation. */
  readonly workers: Map<string, {
    /** The database's time of the last heartbeat that was read, as text. */
    readonly beat: string
    /** When that heartbeat was sent, by this process's monotonic clock. */
    readonly beatAt: bigint
    /** When the worker was last read, by the same clock. */
    readonly readAt: bigint
    /** Whether this session has observed the worker's lock, or the worker belonged to this process and has ended. */
    readonly wasPresent: boolean
    /** Since when the worker has been missing: it should hold its lock, but the lock was not found. */
    readonly missingSince: bigint | undefined
  }>
}

/**
 * A worker as the coordination session observes it. *Missing* means that its lock was not found; *absent* means that it
 * is missing and that this counts as evidence of its death.
 */
export interface Observed extends Worker.WorkerView {
  readonly replicaSet: string
  readonly row: WorkerRow
  /** Whether it was a worker of this process and has ended. */
  readonly ended: boolean
  /** Milliseconds since this session first found it missing; undefined if it is present or presence is not used. */
  readonly missingForMillis: number | undefined
}

/** Workers as the database returns them. */
export interface Reading {
  readonly workers: ReadonlyArray<WorkerRow>
  /** Whether the database lists this process as present. */
  readonly own_present: boolean
}

/**
 * For a worker that this session has never observed present: how long it must have been missing before it counts as
 * absent. This process must have been present for as long: after a restart of the server, all locks are lost, and live
 * workers need time to acquire theirs again.
 */
const unseenMillis = 3000

/** Limit of the recorded observations; discarding them only causes a delay. */
const maximumWorkers = 10_000

export const make = (): Observations => ({ ownSince: undefined, workers: new Map() })

/** SQL: a `Reading` of the workers `w` that meet the condition, as JSON. */
export const reading = (
  sql: SqlClient.SqlClient,
  { table }: Database["Service"],
  { own, presentKeys }: Presence["Service"],
  condition: Statement.Fragment
): Statement.Fragment => {
  const ownKey = own()
  // Reading the locks costs more than the rest, so they are read once.
  return sql`(SELECT json_build_object(
    'own_present', ${ownKey === undefined ? sql`false` : sql`coalesce(${ownKey} = ANY (locks.keys), false)`},
    'workers', (
      SELECT coalesce(json_agg(json_build_object(
        'replica_set', w.replica_set, 'worker_id', w.worker_id, 'incarnation', w.incarnation::text,
        'started_at', floor(extract(epoch FROM w.started_at) * 1000), 'projections', w.projections,
        'silent', extract(epoch FROM clock_timestamp() - coalesce(h.heartbeat_at, w.started_at)) * 1000,
        'beat', extract(epoch FROM coalesce(h.heartbeat_at, w.started_at))::text,
        'presence_key', w.presence_key, 'host', w.host, 'pid', w.pid,
        'present', coalesce(w.presence_key::int8 = ANY (locks.keys), false))
        ORDER BY w.incarnation), '[]')
      FROM ${table("workers")} w
      LEFT JOIN ${table("heartbeats")} h
        ON h.replica_set = w.replica_set AND h.worker_id = w.worker_id AND h.incarnation = w.incarnation
      WHERE ${condition}))
    FROM (SELECT array_agg(k.key) AS keys FROM (${sql.literal(presentKeys)}) AS k) AS locks)`
}

interface Circumstances {
  /**
   * `Clock.monotonicTimeNanos` before the query was sent. Silence and absence are measured up to this time, because a
   * process whose event loop is blocked reads the answer much later than the database sent it.
   */
  readonly askedAt: bigint
  /** The time at which the answer is recorded. */
  readonly now: bigint
  readonly usesPresence: boolean
  /** Whether the row belongs to a worker of this process that has ended. */
  readonly hasEnded: (row: WorkerRow) => boolean
}

/** Records what was read, and returns the workers with their silence and absence. */
export const observe = (
  observations: Observations,
  { own_present: isOwnPresent, workers }: Reading,
  circumstances: Circumstances
): ReadonlyArray<Observed> => {
  observations.ownSince = isOwnPresent ? observations.ownSince ?? circumstances.now : undefined
  if (observations.workers.size > maximumWorkers) observations.workers.clear()
  return workers.map((row) => observeWorker(observations, row, circumstances))
}

const observeWorker = (
  { ownSince, workers }: Observations,
  row: WorkerRow,
  { askedAt, hasEnded, now, usesPresence }: Circumstances
): Observed => {
  const before = workers.get(row.incarnation)
  const ended = hasEnded(row)
  const isPresent = row.present && !ended
  const isMissing = usesPresence && row.presence_key !== null && !isPresent
  const sinceReading = before === undefined ? undefined : now - before.readAt
  const beatAt = before !== undefined && before.beat === row.beat
    ? before.beatAt
    : now - sinceBeat(row, sinceReading)
  const missingSince = isMissing ? before?.missingSince ?? now : undefined
  // A worker of this process that has ended was present until then, even if this session has not observed it.
  const wasPresent = isMissing ? before?.wasPresent ?? ended : isPresent
  workers.set(row.incarnation, { beat: row.beat, beatAt, readAt: now, wasPresent, missingSince })
  const missingForMillis = missingSince === undefined ? undefined : millisBetween(missingSince, askedAt)
  const ownForMillis = ownSince === undefined ? 0 : millisBetween(ownSince, askedAt)
  const isEvidence = missingForMillis !== undefined &&
    (wasPresent || (missingForMillis >= unseenMillis && ownForMillis >= unseenMillis))
  return {
    replicaSet: row.replica_set,
    workerId: row.worker_id,
    incarnation: BigInt(row.incarnation),
    startedAt: new Date(row.started_at),
    projections: row.projections,
    silentForMillis: millisBetween(beatAt, askedAt),
    absentForMillis: isEvidence ? missingForMillis : undefined,
    missingForMillis,
    row,
    ended
  }
}

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
