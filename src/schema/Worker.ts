/**
 * Workers: one running orchestrator of one replica set.
 *
 * @since 0.1.0
 */

/**
 * The state of a worker: registered (`pending`), a member of a generation (`ready`), running all of its assignment
 * (`running`), leaving (`stopping`), or stopped (`stopped`).
 *
 * @category models
 * @since 0.1.0
 */
export type WorkerState = "pending" | "ready" | "running" | "stopping" | "stopped"

/**
 * A worker's registration: its identity in the database.
 *
 * @category models
 * @since 0.1.0
 */
export interface Registration {
  readonly replicaSet: string
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
 * The state that a worker's row records, for operators to read.
 *
 * @category models
 * @since 0.1.0
 */
export interface Recorded {
  readonly state: WorkerState
  /** The generation in which the worker has that state. */
  readonly generationId: bigint | undefined
}

/**
 * A worker that has not stopped, as a decision reads it.
 *
 * @category models
 * @since 0.1.0
 */
export interface WorkerView {
  readonly workerId: string
  readonly incarnation: bigint
  readonly startedAt: Date
  readonly projections: ReadonlyArray<string>
  /** Milliseconds since its last heartbeat. Changes of the database's clock do not affect it. */
  readonly silentForMillis: number
  /**
   * Milliseconds for which the observing session has found the presence missing, if that is evidence of death (see
   * `isAlive`). Absent while the worker is present, or if nothing can be concluded.
   */
  readonly absentForMillis?: number | undefined
  /** Not used in any decision. It is corrected when it differs from the actual state. */
  readonly recorded: Recorded
}

/**
 * The limits that determine whether a worker is alive, in milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface LivenessRules {
  /** A worker without a heartbeat for longer than this is dead. */
  readonly staleWorkerTimeoutMillis: number
  readonly heartbeatIntervalMillis: number
  /** A worker with neither a presence nor a heartbeat for this long is dead. */
  readonly presenceGraceMillis: number
}

/**
 * Whether a worker is alive, as far as a session that has been open for `observerAgeMillis` can determine.
 *
 * Missed heartbeats count only once that session is two heartbeat intervals old: during a database outage no worker can
 * renew its heartbeat, and none may be evicted for it. A missing presence counts only if there has been no heartbeat
 * within the grace period either: a live process that has lost its session still renews its heartbeat.
 *
 * @category guards
 * @since 0.1.0
 */
export const isAlive = (worker: WorkerView, observerAgeMillis: number, rules: LivenessRules): boolean =>
  !(observerAgeMillis >= 2 * rules.heartbeatIntervalMillis &&
    worker.silentForMillis > rules.staleWorkerTimeoutMillis) &&
  !(missedForMillis(worker) >= rules.presenceGraceMillis)

/**
 * Milliseconds for which both presence and heartbeat have been missing; negative infinity while the worker is present.
 */
const missedForMillis = (worker: WorkerView): number =>
  Math.min(worker.absentForMillis ?? -Infinity, worker.silentForMillis)

/**
 * Milliseconds after which a live worker counts as dead if its heartbeat and presence do not change.
 *
 * @category utils
 * @since 0.1.0
 */
export const millisToLive = (worker: WorkerView, observerAgeMillis: number, rules: LivenessRules): number =>
  Math.min(
    // One more than the timeout: a worker is dead only when the time without a heartbeat exceeds it.
    Math.max(
      2 * rules.heartbeatIntervalMillis - observerAgeMillis,
      rules.staleWorkerTimeoutMillis - worker.silentForMillis + 1
    ),
    rules.presenceGraceMillis - missedForMillis(worker)
  )
