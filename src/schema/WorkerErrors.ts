/** The errors of a worker: its settings, its registration and its coordination with others. */
import * as Schema from "effect/Schema"
import { id } from "./ErrorId.ts"

/**
 * A setting is missing, is not valid, or does not fit the database; `problem` states what is expected. A retry does not
 * help. The configuration has to change.
 *
 * @category errors
 * @since 0.1.0
 */
export class InvalidSettings extends Schema.TaggedError<InvalidSettings>(id("InvalidSettings"))("InvalidSettings", {
  setting: Schema.String,
  problem: Schema.String
}) {
  override get message(): string {
    return `Setting "${this.setting}": ${this.problem}`
  }
}

/**
 * The worker id belongs to another live worker. The library waits until an earlier registration is stale, and fails
 * once the other worker sends a heartbeat. A retry helps only after that worker has ended. The operator stops it, or
 * the configuration has to contain a different id for each worker, or none.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkerIdInUse extends Schema.TaggedError<WorkerIdInUse>(id("WorkerIdInUse"))("WorkerIdInUse", {
  replicaSet: Schema.String,
  workerId: Schema.String,
  host: Schema.String,
  pid: Schema.Int,
  since: Schema.Date
}) {
  override get message(): string {
    return `Worker id "${this.workerId}" of replica set "${this.replicaSet}" is in use by process ${this.pid} on ${this.host} since ${this.since.toISOString()}. Stop that process, or choose another workerId (without one, an id is generated).`
  }
}

/**
 * Another process has registered under this worker's id, and this worker ends. A restart does not help while the other
 * process runs. Nothing has to be fixed if the other process is the successor; otherwise the configuration has to
 * contain a different id for each worker.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkerReplaced extends Schema.TaggedError<WorkerReplaced>(id("WorkerReplaced"))("WorkerReplaced", {
  replicaSet: Schema.String,
  workerId: Schema.String
}) {
  override get message(): string {
    return `Another process has registered as worker "${this.workerId}" of replica set "${this.replicaSet}" and replaced this one. If both are meant to run, give them different ids.`
  }
}

/**
 * The worker has lost its registration: it was evicted, or its row is missing. It registers again by itself, so that
 * this error appears only in activities and the log. Nothing has to be fixed, unless it recurs: handlers that block the
 * event loop are the caller's to fix, lost connections the operator's.
 *
 * @category errors
 * @since 0.1.0
 */
export class WorkerEvicted extends Schema.TaggedError<WorkerEvicted>(id("WorkerEvicted"))("WorkerEvicted", {
  replicaSet: Schema.String,
  workerId: Schema.String,
  /**
   * `evicted`: another worker has detected missed heartbeats or a missing presence, and has stopped this registration.
   * `missing`: the row was deleted, or the server has lost its latest commits.
   */
  reason: Schema.Literals(["evicted", "missing"])
}) {
  override get message(): string {
    const worker = `worker "${this.workerId}" of replica set "${this.replicaSet}"`
    return this.reason === "missing"
      ? `The registration of ${worker} is no longer in the table of workers: its row was deleted, or the server has lost its latest commits. The worker registers again.`
      : `Another worker has evicted ${worker}, because its heartbeats or its database session had been missing for too long. It registers again.`
  }
}

/**
 * The worker did not reach its assignment in time and ends; time without a database does not count. A restart helps
 * once the handler or the other worker in `waitingFor` has stopped. The caller bounds the handler, or raises
 * `coordinationTimeout` in the configuration.
 *
 * @category errors
 * @since 0.1.0
 */
export class CoordinationTimeout extends Schema.TaggedError<CoordinationTimeout>(id("CoordinationTimeout"))(
  "CoordinationTimeout",
  {
    replicaSet: Schema.String,
    workerId: Schema.String,
    generationId: Schema.BigInt,
    timeout: Schema.String,
    waitingFor: Schema.String
  }
) {
  override get message(): string {
    return `Worker "${this.workerId}" of replica set "${this.replicaSet}" did not reach its assignment of generation ${this.generationId} within ${this.timeout}: ${this.waitingFor}. Look for a handler that does not end, or raise coordinationTimeout.`
  }
}

/**
 * The same orchestrator is already running. A retry helps only after that run has ended. The caller runs it once, or
 * builds one layer for each worker.
 *
 * @category errors
 * @since 0.1.0
 */
export class AlreadyRunning extends Schema.TaggedError<AlreadyRunning>(id("AlreadyRunning"))("AlreadyRunning", {
  replicaSet: Schema.String
}) {
  override get message(): string {
    return `This orchestrator of replica set "${this.replicaSet}" is already running. Run it once; to run several workers in one process, build the layer several times.`
  }
}
