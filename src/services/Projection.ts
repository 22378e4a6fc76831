/**
 * Projections: named handlers that turn events into a read model. See `make` for an example.
 *
 * @since 0.1.0
 */
import type * as Effect from "effect/Effect"
import type * as Scope from "effect/Scope"
import type { Event } from "../schema/Event.ts"
import { canonical, type EventFilter } from "../schema/EventFilter.ts"
import { byDefault, type PartitionKey } from "../schema/PartitionKey.ts"

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
 * - A date is converted to a position, before which no event is as late. Positions do not follow `createdAt`, so the
 *   projection also receives earlier events that were appended after that position.
 * - If no settled event is as late, for example for a date in the future, a date means the same as `"now"`.
 * - The search for a date reads the events in position order until one is found. A worker does this once, before it
 *   registers.
 *
 * @category models
 * @since 0.1.0
 */
export type StartFrom = "beginning" | "now" | bigint | Date

/**
 * A named handler of events, with the filter that selects them. `E` is the error type of the handler, `R` the services
 * that it requires.
 *
 * @category models
 * @since 0.1.0
 */
export interface Projection<out E = never, out R = never> {
  readonly name: string
  readonly filter: EventFilter
  readonly partitionBy: PartitionKey
  readonly startFrom: StartFrom
  readonly acceptFilterChange: boolean
  readonly concurrency: number
  readonly handle: (event: Event) => Effect.Effect<unknown, E, R>
}

/**
 * Any projection.
 *
 * @category models
 * @since 0.1.0
 */
export type Any = Projection<unknown, unknown>

/**
 * The error type of a projection's handler.
 *
 * @category utility types
 * @since 0.1.0
 */
export type Error<P> = P extends Projection<infer E, infer _R> ? E : never

/**
 * The services that a projection's handler requires from outside. Each batch provides its own `Scope`.
 *
 * @category utility types
 * @since 0.1.0
 */
export type Services<P> = P extends Projection<infer _E, infer R> ? Exclude<R, Scope.Scope> : never

/**
 * The options of a projection: its handler, its start, and the filter that selects its events. An omitted list of the
 * filter matches every event.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<E, R> extends EventFilter {
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
   * Continues from the recorded progress although it was made under another filter. Without this option a changed
   * filter fails with `FilterChanged`, because past events that only the new filter selects would be missing. Default
   * false.
   */
  readonly acceptFilterChange?: boolean | undefined
  /**
   * The number of ranges into which a worker divides its share of the projection, so that as many batches run at the
   * same time: for handlers that wait, for example for another service. An integer from 1 to 100. Default 1.
   *
   * **Gotchas**
   *
   * - Each batch occupies a connection of the application's pool. The stores run at most one batch less than the pool
   *   has connections; further batches wait. Handlers that only execute SQL gain little.
   * - The order of the events of one aggregate does not change.
   */
  readonly concurrency?: number | undefined
}

/**
 * Makes a projection. Its name identifies its progress and must be unique in the database.
 *
 * **Example**
 *
 * ```ts
 * import { Effect } from "effect"
 * import { SqlClient } from "effect/sql"
 * import { Projection } from "pupsourcing-orchestrator"
 *
 * export const users = Projection.make("user_projection", {
 *   aggregateTypes: ["User"],
 *   handle: Effect.fnUntraced(function*(event) {
 *     const sql = yield* SqlClient.SqlClient
 *     yield* sql`INSERT INTO users (id) VALUES (${event.aggregateId}) ON CONFLICT DO NOTHING`
 *   })
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = <E = never, R = never>(name: string, options: Options<E, R>): Projection<E, R> => ({
  name,
  filter: {
    boundedContexts: options.boundedContexts,
    aggregateTypes: options.aggregateTypes,
    eventTypes: options.eventTypes
  },
  partitionBy: options.partitionBy ?? byDefault,
  startFrom: options.startFrom ?? "beginning",
  acceptFilterChange: options.acceptFilterChange ?? false,
  concurrency: options.concurrency ?? 1,
  handle: options.handle
})

/**
 * Returns the filter and the partition key in the form that is recorded with the progress.
 *
 * @category utils
 * @since 0.1.0
 */
export const filterText = ({ filter, partitionBy }: Pick<Any, "filter" | "partitionBy">): string =>
  canonical({ ...filter, partitionBy })
