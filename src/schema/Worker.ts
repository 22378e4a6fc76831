/**
 * Workers: their registrations, and the rule that determines whether a worker is alive.
 *
 * @since 0.1.0
 */
import * as Duration from "effect/Duration"
import * as Generation from "./Generation.ts"
import type { Settings } from "./Settings.ts"

/**
 * The state of a worker: registered (`pending`), a member of a generation (`ready`), running all of its assignment
 * (`running`), finishing its batches before it leaves (`stopping`), or unregistered or evicted (`stopped`).
 *
 * @category models
 * @since 0.1.0
 */
export type WorkerState = "pending" | "ready" | "running" | "stopping" | "stopped"

/**
 * A worker's registration: its identity in the database from `join` until it leaves or is evicted.
 *
 * @category models
 * @since 0.1.0
 */
export interface Registration {
  readonly replicaSet: string
  /** Unique among the live workers of the replica set; a later registration may have the same id. */
  readonly workerId: string
  /**
   * Drawn from the database at each registration. It only grows, so it distinguishes successive registrations under one
   * id.
   */
  readonly incarnation: bigint
  /** By the database's clock. */
  readonly startedAt: Date
  /** Names of the projections that this worker carries. */
  readonly projections: ReadonlyArray<string>
}

/**
 * What operators read about a worker in the table of workers. No decision depends on it.
 *
 * @category models
 * @since 0.1.0
 */
export interface Displayed {
  readonly state: WorkerState
  /** The generation in which the worker has that state; undefined before its first one. */
  readonly generationId: bigint | undefined
  /** The worker's partition of that generation; -1 if it has none. */
  readonly partitionKey: number
}

/**
 * Returns what operators read about a worker that has the state in the generation.
 *
 * @category constructors
 * @since 0.1.0
 */
export const display = (
  worker: Pick<Registration, "incarnation" | "workerId">,
  state: WorkerState,
  generation: Generation.Generation | undefined
): Displayed => ({
  state,
  generationId: generation?.generationId,
  partitionKey: generation === undefined ? -1 : Generation.partitionKey(generation, worker)
})

/**
 * The signs of life that an observing session has read of a worker.
 *
 * @category models
 * @since 0.1.0
 */
export interface SignsOfLife {
  /** Milliseconds since its last heartbeat. Changes of the database's clock do not affect it. */
  readonly silentForMillis: number
  /**
   * Milliseconds for which the observing session has found the presence missing, if that is evidence of death. Absent
   * while the worker is present, or if nothing can be concluded.
   */
  readonly absentForMillis?: number | undefined
}

/**
 * A worker that has not stopped, as a decision reads it.
 *
 * @category models
 * @since 0.1.0
 */
export interface WorkerView extends SignsOfLife {
  readonly workerId: string
  readonly incarnation: bigint
  readonly startedAt: Date
  readonly projections: ReadonlyArray<string>
}

/**
 * The limits that determine whether a worker is alive, in milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface LivenessRules {
  /** A worker without a heartbeat for this long is dead. */
  readonly staleWorkerTimeoutMillis: number
  readonly heartbeatIntervalMillis: number
  /** A worker with neither a presence nor a heartbeat for this long is dead. */
  readonly presenceGraceMillis: number
}

/**
 * A registration under the same id replaces a worker that has had neither a presence nor a heartbeat for this long. It
 * is longer than the grace before an eviction, because an evicted worker registers again, but a replaced one ends.
 */
const replacementGraceMillis = 2000

/**
 * Milliseconds after which a worker counts as dead if its heartbeat and presence do not change, as far as a session that
 * has been open for `observerAgeMillis` can determine. Zero or less if it is dead.
 *
 * Missed heartbeats count only once that session is two heartbeat intervals old: during a database outage no worker can
 * renew its heartbeat, and none may be evicted for it. A missing presence counts only if there has been no heartbeat
 * within the grace period either: a live process that has lost its session still renews its heartbeat.
 *
 * @category utils
 * @since 0.1.0
 */
export const millisToLive = (
  { absentForMillis, silentForMillis }: SignsOfLife,
  observerAgeMillis: number,
  rules: LivenessRules
): number => {
  const untilStale = Math.max(
    rules.staleWorkerTimeoutMillis - silentForMillis,
    2 * rules.heartbeatIntervalMillis - observerAgeMillis
  )
  if (absentForMillis === undefined) return untilStale
  return Math.min(untilStale, rules.presenceGraceMillis - Math.min(absentForMillis, silentForMillis))
}

/**
 * Whether a worker is alive. A worker that is not alive is evicted, and its ranges are claimed.
 *
 * @category guards
 * @since 0.1.0
 */
export const isAlive = (worker: SignsOfLife, observerAgeMillis: number, rules: LivenessRules): boolean =>
  millisToLive(worker, observerAgeMillis, rules) > 0

/**
 * Whether a worker has been without a heartbeat for too long. A young session may not evict it for that yet.
 *
 * @category guards
 * @since 0.1.0
 */
export const isStale = ({ silentForMillis }: SignsOfLife, rules: LivenessRules): boolean =>
  silentForMillis >= rules.staleWorkerTimeoutMillis

/**
 * Milliseconds after which a registration under the same id may replace the worker if its heartbeat and presence do not
 * change. Zero or less if it may replace the worker now.
 *
 * Missed heartbeats count at any age of the observing session, which is always young here: waiting would only delay the
 * restart of a worker. An outage makes no difference, because one of two processes with the same id has to end anyway.
 *
 * @category utils
 * @since 0.1.0
 */
export const millisUntilReplaceable = (worker: SignsOfLife, rules: LivenessRules): number =>
  millisToLive(worker, Infinity, { ...rules, presenceGraceMillis: replacementGraceMillis })

/**
 * Whether a registration under the same id may replace the worker.
 *
 * @category guards
 * @since 0.1.0
 */
export const isReplaceable = (worker: SignsOfLife, rules: LivenessRules): boolean =>
  millisUntilReplaceable(worker, rules) <= 0

/**
 * How long a worker may be without presence and heartbeat before it counts as dead. A presence lock that is lost with
 * its connection is acquired again within this time.
 */
const presenceGraceMillis = 100

/**
 * The liveness rules of a worker with these settings.
 *
 * @category constructors
 * @since 0.1.0
 */
export const livenessRules = (
  { heartbeatInterval, staleWorkerTimeout }: Pick<Settings, "heartbeatInterval" | "staleWorkerTimeout">
): LivenessRules => ({
  staleWorkerTimeoutMillis: Duration.toMillis(staleWorkerTimeout),
  heartbeatIntervalMillis: Duration.toMillis(heartbeatInterval),
  presenceGraceMillis
})
