/**
 * The typed errors that a caller can distinguish. Each message states what is wrong and what to do.
 *
 * @since 0.1.0
 */
import type { CheckpointAheadOfEvents, EventVersionTooNew } from "./EventErrors.ts"
import type {
  FilterChanged,
  OrderingChanged,
  PartitionKeyChanged,
  ProjectionHalted,
  ProjectionInOtherReplicaSet
} from "./ProjectionErrors.ts"
import type { SchemaVersionMismatch, StoreError, TablesMissing } from "./StoreErrors.ts"
import type {
  AlreadyRunning,
  CoordinationTimeout,
  InvalidSettings,
  WorkerIdInUse,
  WorkerReplaced
} from "./WorkerErrors.ts"

export * from "./EventErrors.ts"
export * from "./OperationErrors.ts"
export * from "./ProjectionErrors.ts"
export * from "./StoreErrors.ts"
export * from "./WorkerErrors.ts"

/**
 * The errors with which opening the stores can fail. Those with `isRetryable` have been retried for five seconds; the
 * others need the change that each of them states.
 *
 * @category errors
 * @since 0.1.0
 */
export type StoresError = StoreError | TablesMissing | SchemaVersionMismatch | InvalidSettings

/**
 * The errors with which running an orchestrator can fail. Everything that a retry by the worker can help has been
 * retried. A restart alone helps after a retryable `StoreError` of the start and after `CoordinationTimeout`; the other
 * errors need the change that each of them states.
 *
 * @category errors
 * @since 0.1.0
 */
export type OrchestratorError =
  | StoreError
  | AlreadyRunning
  | CheckpointAheadOfEvents
  | CoordinationTimeout
  | EventVersionTooNew
  | FilterChanged
  | InvalidSettings
  | OrderingChanged
  | PartitionKeyChanged
  | ProjectionHalted
  | ProjectionInOtherReplicaSet
  | WorkerIdInUse
  | WorkerReplaced
