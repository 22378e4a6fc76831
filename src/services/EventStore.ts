/**
 * The event store: what was appended, and how far it may be read.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Duration from "effect/Duration"
import type * as Effect from "effect/Effect"
import type {
  CheckpointAheadOfEvents,
  ConcurrencyConflict,
  DuplicateEvent,
  EventError,
  InvalidEvents,
  StoreError
} from "../schema/Errors.ts"
import type { Appended, Event, ExpectedVersion, NewEvent, StreamId } from "../schema/Event.ts"
import type { EventFilter } from "../schema/EventFilter.ts"
import type { HashRange } from "../schema/HashRange.ts"

/**
 * The life of the server that something was read in. A server that comes back from a crash, and another that takes its
 * place, may have lost the last commits, and give their positions out again: what was read before is not true of it.
 * Only to be handed on and compared.
 *
 * @category models
 * @since 0.1.0
 */
export type ServerLife = string

/**
 * @category options
 * @since 0.1.0
 */
export interface ReadOptions {
  /** Events above this position. */
  readonly after: bigint
  /**
   * In which life of the server `after` was seen, where no checkpoint holds it. In another life the read fails with
   * `DatabaseUnavailable`.
   */
  readonly life?: ServerLife | undefined
  /**
   * Events up to this position, which must be settled (it came from `settledBeyond` or `settledPosition`). The present
   * settled position when absent.
   */
  readonly upTo?: bigint | undefined
  /** The whole space when absent. */
  readonly range?: HashRange | undefined
  readonly filter?: EventFilter | undefined
  /** Events at most. Default 1000. */
  readonly limit?: number | undefined
  /** Bytes at most, but never below one event. Default 4 MiB. */
  readonly bytes?: number | undefined
}

/**
 * A part of the stream, in position order.
 *
 * @category models
 * @since 0.1.0
 */
export interface Page {
  readonly events: ReadonlyArray<Event>
  /** No event that matches lies between the last one of the page and this position. */
  readonly position: bigint
  readonly life: ServerLife
}

/**
 * A transaction that may still commit an event at a position that others have passed.
 *
 * @category models
 * @since 0.1.0
 */
export interface OpenWriter {
  /** Process id of the session; absent for a prepared transaction. */
  readonly pid: number | undefined
  readonly application: string | undefined
  /** Milliseconds since it was first seen to hold readers back. */
  readonly seenForMillis: number
}

/**
 * @category services
 * @since 0.1.0
 */
export class EventStore extends Context.Service<EventStore, {
  /**
   * Appends events to one aggregate, all or none, in one round trip. Inside the caller's transaction it joins it.
   * Fails with `ConcurrencyConflict` when the aggregate is not at the expected version (default `"any"`).
   *
   * Outside a transaction, an append that conflicts with another transaction is retried (deadlock, serialization
   * failure).
   *
   * **Gotchas**
   *
   * When the answer is lost, the append may have been committed: the error then has `mayHaveCommitted: true`. The
   * outcome is also unknown after an interruption or a timeout around the append. Repeat it only with the same
   * `eventId`s: it succeeds, or fails with `DuplicateEvent`, which means that the first one was committed. Without ids
   * of your own, a repeated append may store the events twice, or report your own events as a `ConcurrencyConflict`.
   * Inside a transaction of the caller, an append whose answer is lost is rolled back with the transaction; if the
   * answer to COMMIT is lost, the whole transaction may have been committed.
   *
   * The caller's transaction can continue after `InvalidEvents`, after `DuplicateEvent` for an id that was committed
   * before the append, and after a `ConcurrencyConflict` that has an `actual` version; other errors may abort it.
   */
  readonly append: (
    events: ReadonlyArray<NewEvent>,
    options?: { readonly expectedVersion?: ExpectedVersion | undefined }
  ) => Effect.Effect<Appended, ConcurrencyConflict | DuplicateEvent | InvalidEvents | StoreError>

  /**
   * The events of one aggregate in version order, from version `from` (default 1) to `to` (default the last), at most
   * `limit` (default all).
   */
  readonly readStream: (
    stream: StreamId,
    options?: {
      readonly from?: bigint | undefined
      readonly to?: bigint | undefined
      readonly limit?: number | undefined
    }
  ) => Effect.Effect<ReadonlyArray<Event>, StoreError>

  /**
   * Settled events in position order. Returns the events before one that cannot be received or read; when that event is
   * the next matching one, fails with `EventTooLarge` or `EventUnreadable`.
   */
  readonly read: (options: ReadOptions) => Effect.Effect<Page, CheckpointAheadOfEvents | EventError | StoreError>

  /**
   * The position at or below which no transaction can still commit an event, 0 in an empty store. What lies at or
   * below it will never change.
   */
  readonly settledPosition: Effect.Effect<bigint, StoreError>

  /**
   * Waits until the settled position is beyond `position`, which must itself be settled, and returns it. Woken by
   * appends of this library; what nothing announces is found within `pollInterval`.
   */
  readonly settledBeyond: (
    position: bigint,
    pollInterval: Duration.Duration
  ) => Effect.Effect<bigint, CheckpointAheadOfEvents | StoreError>

  /** The highest position that is visible now; events below it may still commit. */
  readonly headPosition: Effect.Effect<bigint, StoreError>

  /** Writers that hold the settled position back at this moment. */
  readonly openWriters: Effect.Effect<ReadonlyArray<OpenWriter>>
}>()("pupsourcing-orchestrator/services/EventStore") {}
