/**
 * The event store: appends events, and reads them up to the settled position.
 *
 * Applications use `append` and `readStream`. The other members serve projections: positions of different aggregates
 * are comparable only up to the settled position, because a transaction that is still open may commit an event below
 * positions that are already visible.
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
import type { PartitionKey } from "../schema/PartitionKey.ts"

/**
 * Identifies a server epoch: one uninterrupted run of the database server, as observed by the session that read. After
 * a crash or failover recent commits may be lost and their positions reissued, so positions from an earlier epoch are
 * invalid. Opaque; compare for equality.
 *
 * @category models
 * @since 0.1.0
 */
export type ServerEpoch = string

/**
 * The condition of an append, and what happens if it repeats an earlier one.
 *
 * @category options
 * @since 0.1.0
 */
export interface AppendOptions {
  /** The version that the aggregate must have. Default `"any"`. */
  readonly expectedVersion?: ExpectedVersion | undefined
  /**
   * What an append returns whose events are already stored. With `"return"`, it returns the original `Appended` if the
   * aggregate contains all events of the batch in the given order, without events between them, whatever
   * `expectedVersion` is; ids that are stored otherwise still fail with `DuplicateEvent`. Every event must have an
   * `eventId`. Only ids are compared, not payloads. Default `"fail"`.
   */
  readonly onDuplicate?: "fail" | "return" | undefined
}

/**
 * Which events a read returns, and how many at most.
 *
 * @category options
 * @since 0.1.0
 */
export interface ReadOptions {
  /** Reads events above this position. */
  readonly after: bigint
  /**
   * Reads events up to this position, which must be settled (returned by `settledBeyond` or `settledPosition`).
   * Default: the present settled position.
   */
  readonly upTo?: bigint | undefined
  /** Reads the events whose key is in this range. Default: the whole hash space. */
  readonly range?: HashRange | undefined
  /** What the key of an event is. Default `"aggregateId"`. */
  readonly partitionBy?: PartitionKey | undefined
  /** Reads the events that match. Default: all. */
  readonly filter?: EventFilter | undefined
  /** Maximum number of events. Default 1000. */
  readonly limit?: number | undefined
  /** Maximum total size in bytes; the limit never excludes the first event. Default 4 MiB. */
  readonly bytes?: number | undefined
  /** Whether to return the hashes of the events' keys. Default false. */
  readonly hashes?: boolean | undefined
}

/**
 * The result of one read: matching events in position order.
 *
 * @category models
 * @since 0.1.0
 */
export interface Page {
  readonly events: ReadonlyArray<Event>
  /** The hash of each event's key, in the order of `events`. Present if the read asked for `hashes`. */
  readonly hashes?: ReadonlyArray<number> | undefined
  /** The page is complete up to this position: no matching event lies between its last event and this position. */
  readonly position: bigint
  /**
   * The server epoch in which the page was read. If it differs from that of the previous page, positions that were kept
   * only in memory may be invalid: read again from a position that is stored with its effects.
   */
  readonly epoch: ServerEpoch
}

/**
 * A transaction that may still commit an event below positions that other transactions have already committed. Readers
 * wait until it ends.
 *
 * @category models
 * @since 0.1.0
 */
export interface OpenWriter {
  /** Process id of the session; absent for a prepared transaction. */
  readonly pid: number | undefined
  /** The session's `application_name`, or the name of the prepared transaction; absent if neither is known. */
  readonly application: string | undefined
  /** Time since it was first observed to hold back the settled position. */
  readonly openFor: Duration.Duration
}

/**
 * Appends events and reads them.
 *
 * @category services
 * @since 0.1.0
 */
export class EventStore extends Context.Service<EventStore, {
  /**
   * Appends events to one aggregate, all or none, in one round trip, and returns their versions and positions.
   *
   * - `ConcurrencyConflict`: the aggregate is not at `expectedVersion` (default `"any"`). Read the stream again and
   *   decide again.
   * - `DuplicateEvent`: one of the event ids is already stored. Reported in preference to a conflict. With
   *   `onDuplicate: "return"`, an append that repeats an earlier one returns the result of that one instead.
   * - `InvalidEvents`: the list is empty, contains several aggregates, or a value cannot be stored.
   *
   * Inside a transaction of the caller, the append is part of that transaction. Outside, an append that conflicts with
   * another transaction (deadlock, serialization failure) is retried.
   *
   * Events without a `traceId` get the id of the current trace. In a handler, events without a `correlationId` or
   * `causationId` get them from the handled event.
   *
   * **Gotchas**
   *
   * If the answer is lost, the commit outcome is unknown and the `StoreError` has `mayHaveCommitted: true`. The
   * outcome is also unknown after an interruption or a timeout around the append. Retry it only with the same
   * `eventId`s and `onDuplicate: "return"`: the retry appends the events, or returns what the first append has
   * returned. Without ids of your own, a retry may store the events twice, or report your own events as a
   * `ConcurrencyConflict`.
   *
   * In a transaction of the caller, retry the whole transaction, never the append alone: an append whose answer is lost
   * is rolled back with the transaction, and if the answer to COMMIT is lost, the whole transaction may have been
   * committed. The transaction can continue after `InvalidEvents`, after `DuplicateEvent` for an id that was committed
   * before the append, and after a `ConcurrencyConflict` that has an `actual` version; other errors may abort it. It
   * holds readers of all later events back until it ends, so append late and commit soon. With `onDuplicate: "return"`
   * the append runs in a savepoint, so that the transaction can also continue after an id that was committed during the
   * append. A transaction with isolation repeatable read or higher does not read what was committed after it began, and
   * fails with `DuplicateEvent` or a serialization failure in that case.
   *
   * **Example** (Append an event once, however often it is retried)
   *
   * ```ts
   * import { Effect } from "effect"
   * import { EventStore } from "pupsourcing-orchestrator"
   *
   * const register = Effect.fn("register")(function*(aggregateId: string) {
   *   const store = yield* EventStore.EventStore
   *   const event = {
   *     // Generated once, so that a retry appends the same event.
   *     eventId: globalThis.crypto.randomUUID(),
   *     boundedContext: "identity",
   *     aggregateType: "User",
   *     aggregateId,
   *     eventType: "UserRegistered",
   *     payload: { aggregateId }
   *   }
   *   return yield* store.append([event], { expectedVersion: "none", onDuplicate: "return" }).pipe(
   *     Effect.retry({ times: 3, while: (error) => error._tag === "StoreError" && error.isRetryable })
   *   )
   * })
   * ```
   */
  readonly append: (
    events: ReadonlyArray<NewEvent>,
    options?: AppendOptions
  ) => Effect.Effect<Appended, ConcurrencyConflict | DuplicateEvent | InvalidEvents | StoreError>

  /**
   * Returns the events of one aggregate in version order, from version `from` (default 1) to `to` (default the last),
   * at most `limit` (default all). Inside a transaction of the caller, this includes the events that it has appended.
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
   * Returns settled events in position order. The page ends before an event that cannot be received or read; if that
   * event is the next matching one, the read fails with `EventTooLarge` or `EventUnreadable`. A position that the
   * sequence has not issued yet fails with `CheckpointAheadOfEvents`, as after a restore of an older backup.
   */
  readonly read: (options: ReadOptions) => Effect.Effect<Page, CheckpointAheadOfEvents | EventError | StoreError>

  /**
   * Reports that a write has found this server epoch ended. If the connection that reads is still in it, it leads to
   * another server than the one that is written to, and is replaced before the next read. Otherwise nothing happens.
   */
  readonly endEpoch: (epoch: ServerEpoch) => Effect.Effect<void>

  /**
   * The settled position: no transaction can still commit an event at or below it, so the events there never change. 0
   * in an empty store.
   */
  readonly settledPosition: Effect.Effect<bigint, StoreError>

  /**
   * Waits until the settled position is above `position`, which must itself be settled, and returns the new settled
   * position. Appends of this library trigger a check at once; events without a notification are found within
   * `pollInterval`.
   *
   * With `range`, the caller waits for the events of aggregates whose hashes lie in it. Appends of this library to other
   * aggregates need not trigger a check at once, but within one second.
   */
  readonly settledBeyond: (
    position: bigint,
    pollInterval: Duration.Duration,
    range?: HashRange
  ) => Effect.Effect<bigint, CheckpointAheadOfEvents | StoreError>

  /**
   * The position after which a projection starts that is to handle the events from a time on: directly before the first
   * event whose `createdAtMicros` is `fromMicros` or later, or the settled position if no settled event is. Positions
   * do not follow `createdAt`, so the events after it may contain earlier ones; all events before it are earlier. The
   * time must be one that an event can have.
   *
   * **Gotchas**
   *
   * Reads the events in position order until one is found, so that it takes as long as reading them once.
   */
  readonly positionBefore: (fromMicros: bigint) => Effect.Effect<bigint, StoreError>

  /** The head: the highest position that is visible now. Events below it may still commit. */
  readonly headPosition: Effect.Effect<bigint, StoreError>

  /**
   * The writers that hold back the settled position. Never fails: while the database is unreachable, it returns the
   * writers that were observed last.
   */
  readonly openWriters: Effect.Effect<ReadonlyArray<OpenWriter>>
}>()("pupsourcing-orchestrator/services/EventStore") {}
