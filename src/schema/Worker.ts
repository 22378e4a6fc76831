/**
 * Workers: one running orchestrator of one replica set.
 *
 * @since 0.1.0
 */

/**
 * Where a worker is in its life: registered (`pending`), counted in a generation (`ready`), working on all of its
 * assignment (`running`), leaving (`stopping`), gone (`stopped`).
 *
 * @category models
 * @since 0.1.0
 */
export type WorkerState = "pending" | "ready" | "running" | "stopping" | "stopped"

/**
 * A registration that stands: who this worker is in the eyes of the database.
 *
 * @category models
 * @since 0.1.0
 */
export interface Registration {
  readonly replicaSet: string
  readonly workerId: string
  /** Drawn from the database at each registration; it only grows, so it tells two lives under one id apart. */
  readonly incarnation: bigint
  /** By the database's clock. */
  readonly startedAt: Date
  /** Names of the projections that this worker carries. */
  readonly projections: ReadonlyArray<string>
}

/**
 * What a worker's row says of it, for people to read.
 *
 * @category models
 * @since 0.1.0
 */
export interface Recorded {
  readonly state: WorkerState
  /** The generation in which it is in that state. */
  readonly generationId: bigint | undefined
}

/**
 * A worker that has not stopped, as a decision sees it.
 *
 * @category models
 * @since 0.1.0
 */
export interface WorkerView {
  readonly workerId: string
  readonly incarnation: bigint
  readonly startedAt: Date
  readonly projections: ReadonlyArray<string>
  /** Milliseconds since its last heartbeat; a change of the database's clock does not change it. */
  readonly silentForMillis: number
  /**
   * Milliseconds for which its presence has been missing in the eyes of the observing session, where that is
   * evidence of death (see `isAlive`); absent when it is present or nothing can be concluded.
   */
  readonly absentForMillis?: number | undefined
  /** Nothing is decided by it; it is compared with what is, and mended. */
  readonly recorded: Recorded
}

/**
 * What is needed to judge whether a worker lives. All in milliseconds.
 *
 * @category models
 * @since 0.1.0
 */
export interface LivenessRules {
  /** A worker silent for longer is dead. */
  readonly staleWorkerTimeoutMillis: number
  readonly heartbeatIntervalMillis: number
  /** A worker whose presence is missing, and that has not been heard of, for longer is dead. */
  readonly presenceGraceMillis: number
}

/**
 * Whether a worker lives, in the eyes of a session that has been open for `observerAgeMillis`. Silence is held against
 * nobody while that session is younger than two heartbeats: after an outage of the database everybody was silent, and
 * nobody may be evicted for it. Absence is held against who is silent too: a process that lives and has lost its session
 * says so by its heartbeat.
 *
 * @category guards
 * @since 0.1.0
 */
export const isAlive = (worker: WorkerView, observerAgeMillis: number, rules: LivenessRules): boolean =>
  !(observerAgeMillis >= 2 * rules.heartbeatIntervalMillis &&
    worker.silentForMillis > rules.staleWorkerTimeoutMillis) &&
  !(missedForMillis(worker) >= rules.presenceGraceMillis)

/** Milliseconds for which neither presence nor heartbeat has said that it lives; below zero while it is present. */
const missedForMillis = (worker: WorkerView): number =>
  Math.min(worker.absentForMillis ?? -Infinity, worker.silentForMillis)

/**
 * Milliseconds until a worker that lives would be dead, if nothing but time changed.
 *
 * @category utils
 * @since 0.1.0
 */
export const millisToLive = (worker: WorkerView, observerAgeMillis: number, rules: LivenessRules): number =>
  Math.min(
    // One more than the timeout: a worker is dead only when it has been silent for longer.
    Math.max(
      2 * rules.heartbeatIntervalMillis - observerAgeMillis,
      rules.staleWorkerTimeoutMillis - worker.silentForMillis + 1
    ),
    rules.presenceGraceMillis - missedForMillis(worker)
  )
