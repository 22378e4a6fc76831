/** The options of a projection, with their defaults and gotchas. */
import type * as Array from "effect/Array"
import type * as DateTime from "effect/DateTime"
import type * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import type { BatchWindow } from "../schema/BatchWindow.ts"
import type { EventUndecodable } from "../schema/Errors.ts"
import type { Event } from "../schema/Event.ts"
import type { EventFilter } from "../schema/EventFilter.ts"
import type * as EventSet from "../schema/EventSet.ts"
import type { OnFailure } from "../schema/FailurePolicy.ts"
import type { Ordering } from "../schema/Ordering.ts"
import type { PartitionKey } from "../schema/PartitionKey.ts"
import type { Isolation } from "./CheckpointStore.ts"
import type { EffectOf, OnlyTags } from "./TypedHandler.ts"

/**
 * Where a projection without progress starts: at the first event, at the events that are appended from now on, after a
 * position, or at the first event whose `createdAt` is a date or later. The start is used once and recorded; a
 * projection with progress continues from its checkpoint.
 *
 * **Gotchas**
 *
 * - Changing `startFrom` of a projection that has progress has no effect. To build it again, give it another name.
 * - `"now"` is the settled position: while a transaction that appends is open, events that were committed after it began
 *   are handled, too.
 * - The worker waits until a position is settled, and fails with `InvalidSettings` if it was never issued.
 * - A date is converted to a position before which all events have an earlier `createdAt`. Positions do not follow
 *   `createdAt`, so the projection also receives earlier events that were appended after that position.
 * - If no settled event has that date or a later one, for example if it is in the future, it means the same as `"now"`.
 * - The search for a date reads the events in position order until one is found. A worker does this once, before it
 *   registers.
 *
 * @category models
 * @since 0.1.0
 */
export type StartFrom = "beginning" | "now" | bigint | Date | DateTime.DateTime

/**
 * The options of every projection: its start, and the filter that selects its events. An omitted list of the filter
 * matches every event.
 *
 * @category options
 * @since 0.1.0
 */
export interface CommonOptions<in E = unknown> extends EventFilter {
  /**
   * What determines the order and the distribution of the events: those with the same key arrive in position order, and
   * one worker at a time handles them. Events without the key are partitioned by their aggregate id. Default
   * `"aggregateId"`.
   *
   * The key cannot be changed while the projection has progress: a worker with another one fails with
   * `PartitionKeyChanged`. To change it, give the projection another name.
   */
  readonly partitionBy?: PartitionKey | undefined
  /** Where the projection starts when it has no progress. Default `"beginning"`. */
  readonly startFrom?: StartFrom | undefined
  /**
   * The filter, or filters, that this one replaces: the projection continues from the progress made under them,
   * although past events that only the new filter selects are missing. The filter of an event set is its `filter`; the
   * filter of a projection without one is `{}`. Progress under any other filter fails with `FilterChanged`, whose
   * message contains the value to set. Default: none.
   *
   * **Gotchas**
   *
   * - Past events are not handled again. If they must be, give the projection another name.
   * - In a rolling deploy, workers of the previous version give up the projection. The option can remain set afterwards.
   * - Two running versions must not replace each other's filter. See docs/changing-a-projection.md.
   */
  readonly replacesFilter?: EventFilter | ReadonlyArray<EventFilter> | undefined
  /**
   * The number of ranges into which a worker divides its share of the projection, so that as many batches run at the
   * same time: for handlers that wait, for example for another service. An integer from 1 to 100. Default 1.
   *
   * **Gotchas**
   *
   * - Each batch occupies a connection of the application's pool. The stores run at most one batch fewer than the pool
   *   has connections; further batches wait. Handlers that only execute SQL gain little.
   * - The order of the events of one aggregate does not change.
   */
  readonly concurrency?: number | undefined
  /**
   * `"aggregate"`: each aggregate's events arrive in version order, and the workers divide the projection. `"global"`:
   * all events arrive in position order, one at a time; one worker owns the whole projection, and another one takes
   * over when it ends. Default `"aggregate"`.
   *
   * **Gotchas**
   *
   * - More workers do not make a projection with global order faster, and `concurrency` must be 1.
   * - A change to `"global"` requires that all ranges are at the same position and that no worker runs the former
   *   version: otherwise the worker fails with `OrderingChanged`. See docs/ordering-and-delivery.md.
   */
  readonly ordering?: Ordering | undefined
  /**
   * The isolation level of the transaction in which the handler runs. Default: that of the client's sessions, which is
   * `"read committed"` unless the role or the database sets another one. A batch that PostgreSQL refuses because of a
   * concurrent transaction is repeated.
   *
   * **When to use**
   *
   * `"serializable"` for a handler that reads rows of several aggregates and writes a result that depends on them, when
   * neither SQL arithmetic nor a row lock can do it.
   *
   * **Gotchas**
   *
   * - Transactions of other isolation levels that write the same rows are not serialized with those of the handler.
   * - In memory, every batch is serializable.
   */
  readonly isolation?: Isolation | undefined
  /**
   * When the handler is called again for an event at which it has failed with a typed error, before `onFailure`
   * decides. The schedule gets the error, and starts again for the next event. Meanwhile the range waits. Default: no
   * further attempts. Deadlocks, lost connections and other transient failures of the database are retried in any case.
   */
  readonly retry?: Schedule.Schedule<unknown, E> | undefined
  /**
   * What happens to an event that the handler cannot handle, after the events before it have been committed. Default
   * `"halt"`.
   *
   * - `"halt"`: its range is halted at it. Other ranges and projections continue.
   * - `"park"`: it is stored in the table of parked events, and later events with the same key queue behind it there,
   *   so that their order is preserved. All other events continue. Parked events are retried or dropped on request.
   * - `"skip"`: it is logged at level Error, and later events continue. Its effects are missing from the read model.
   * - `{ NoSuchCountry: "park" }`: one of these for each typed error of the handler, by tag. An error whose tag is not
   *   listed halts the range, and so do defects, handlers that take too long, and lost connections.
   * - A function from the handler's typed error and the event to one of these. It is not called for defects, handlers
   *   that take too long, and lost connections: these halt the range.
   *
   * **Gotchas**
   *
   * - An event that cannot be received or read halts its range in any case.
   * - A new `onFailure` applies to later failures. Events that were parked before stay parked, and events of their keys
   *   continue to queue.
   * - Workers of a version without parked events ignore them: complete the deploy before you set `"park"`.
   */
  readonly onFailure?: OnFailure<E> | undefined
  /**
   * How many keys and events may be parked. At an event that would exceed a limit, the range is halted with
   * `ParkingLimitReached`; it continues when a retry or drop of its own parked events is requested. Default 1,000 keys
   * and 10,000 events. Ranges that park at the same time may exceed a limit slightly.
   */
  readonly parkingLimits?: { readonly keys?: number | undefined; readonly events?: number | undefined } | undefined
  /**
   * `"exactly-once"`: the handler runs inside the transaction that records the progress. `"at-least-once"`: it runs
   * outside of any transaction, and the progress is written afterwards; for handlers that write to another system or
   * take long. Default `"exactly-once"`.
   *
   * **Gotchas**
   *
   * With `"at-least-once"`:
   *
   * - An event is handled again if the worker ends, or loses the range, between the handler and the progress. Use
   *   `Delivery` to make writes idempotent.
   * - The handler may use the `SqlClient`, but each statement commits on its own, or with a transaction of the handler.
   * - What the handler did before it failed is not undone.
   */
  readonly delivery?: "exactly-once" | "at-least-once" | undefined
}

/**
 * The options of a projection that handles its events one by one.
 *
 * @category options
 * @since 0.1.0
 */
export interface HandleOptions<E, R> extends CommonOptions<NoInfer<E>> {
  /**
   * Handles one event. The handler runs inside the transaction that also records the progress: its writes through the
   * `SqlClient` in its context are committed exactly once, or not at all. Events of one aggregate arrive in version
   * order. The `Scope` in its context closes with the batch, before the commit.
   *
   * **Gotchas**
   *
   * - Ranges of the hash space run concurrently: write rows that several aggregates share with SQL arithmetic,
   *   `ON CONFLICT` or under a row lock.
   * - Only statements of the stores' client, run by the handler's own fiber or its children, are part of the
   *   transaction. A client that the handler provides itself (`Effect.provide(PgClient.layer(…))`), `sql.reserve`,
   *   another driver and `Effect.runPromise` inside the handler write outside the transaction, which is not detected.
   * - A statement without `yield*` is not run. The handler fails with `HandlerResultUnused` if its result is such an
   *   Effect, or a Stream, a Promise or a failure that was not raised. The diagnostic `floatingEffect` of
   *   `@effect/language-service` (or `@effect/tsgo`) finds other such statements.
   */
  readonly handle: (event: Event) => Effect.Effect<unknown, E, R>
  readonly handleBatch?: undefined
  readonly batchWindow?: undefined
}

/**
 * The options of a projection that handles the events of a batch at once.
 *
 * @category options
 * @since 0.1.0
 */
export interface HandleBatchOptions<E, R> extends CommonOptions<NoInfer<E>> {
  /**
   * Handles the events of a batch, in position order, for example with one statement for all of them. Like `handle`, it
   * runs inside the transaction that also records the progress, and the events of one aggregate arrive in version
   * order, within a batch and from batch to batch. The gotchas of `handle` apply.
   *
   * A call should take about 100 milliseconds, because a release of the range waits for it. The number of events is
   * adapted to that: the first batch of a range has at most 100 events, later ones at most twice as many as the one
   * before, up to `batchSize`. Batches of 100 events or fewer may take a second.
   *
   * If the call fails, its batch is repeated in halves until the event that fails is found, so that the events before
   * it commit. Use `failAt` to name that event.
   *
   * **Gotchas**
   *
   * - The result must not depend on how the events are divided into batches. A batch may contain one event, or several
   *   events of one aggregate. In particular, `INSERT … ON CONFLICT DO UPDATE` refuses two rows with the same key.
   * - Events that the handler appends get no default `correlationId` and `causationId`: set them from the event that
   *   causes them.
   */
  readonly handleBatch: (events: Array.NonEmptyReadonlyArray<Event>) => Effect.Effect<unknown, E, R>
  readonly handle?: undefined
  /**
   * Lets the newest events wait for more before `handleBatch` is called, so that it is called less often with more
   * events. Default: no event waits. While there is a backlog, nothing waits; the wait holds no transaction, and ends
   * at once when the range is released. `catchUp` does not wait.
   */
  readonly batchWindow?: BatchWindow | undefined
}

/**
 * The options of a projection: exactly one of `handle` and `handleBatch`, its start, and the filter that selects its
 * events.
 *
 * @category options
 * @since 0.1.0
 */
export type Options<E, R> = HandleOptions<E, R> | HandleBatchOptions<E, R>

/**
 * The options of a projection of typed events, which its event set selects: exactly one of `handle` and `handleBatch`,
 * and its start. Before the handler is called, the set decodes the events: in the transaction of the batch, with the
 * services of its schemas.
 *
 * @category options
 * @since 0.1.0
 */
export type TypedOptions<Set extends EventSet.Any, H, E, R> =
  | (TypedCommonOptions<Effect.Error<EffectOf<H>>> & {
    /** Like `HandleOptions.handle`, for decoded events: a function for each tag, or one function for all of them. */
    readonly handle: H & OnlyTags<H, Set>
    readonly handleBatch?: undefined
    readonly batchWindow?: undefined
  })
  | (TypedCommonOptions<E> & {
    /** Like `HandleBatchOptions.handleBatch`, for decoded events. */
    readonly handleBatch: (
      events: Array.NonEmptyReadonlyArray<EventSet.Event<Set>>
    ) => Effect.Effect<unknown, E, R>
    readonly handle?: undefined
    readonly batchWindow?: BatchWindow | undefined
  })

type TypedCommonOptions<E> = Omit<CommonOptions<NoInfer<E | EventUndecodable>>, keyof EventFilter>
