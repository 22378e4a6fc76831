/**
 * Projections: named handlers that turn events into a read model. See `make` for an example.
 *
 * @since 0.1.0
 */
import * as Array from "effect/Array"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import type * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type { BatchWindow } from "../schema/BatchWindow.ts"
import type { Fence } from "../schema/Checkpoint.ts"
import type { EventUndecodable } from "../schema/Errors.ts"
import type { Event } from "../schema/Event.ts"
import { canonical, type EventFilter } from "../schema/EventFilter.ts"
import type * as EventSet from "../schema/EventSet.ts"
import type * as FailurePolicy from "../schema/FailurePolicy.ts"
import type { Ordering } from "../schema/Ordering.ts"
import { defaultLimits, type Limits } from "../schema/ParkedEvent.ts"
import { byDefault, type PartitionKey } from "../schema/PartitionKey.ts"
import type { Isolation } from "./CheckpointStore.ts"
import type { CommonOptions, Options, StartFrom, TypedOptions } from "./ProjectionOptions.ts"
import * as TypedHandler from "./TypedHandler.ts"

export type { BatchWindow } from "../schema/BatchWindow.ts"
export type { FailureDecision, FailureDecisions, OnFailure } from "../schema/FailurePolicy.ts"
export type { Ordering } from "../schema/Ordering.ts"
export type { Isolation } from "./CheckpointStore.ts"
export { failAt } from "./FailedEvent.ts"
export type {
  CommonOptions,
  HandleBatchOptions,
  HandleOptions,
  Options,
  StartFrom,
  TypedOptions
} from "./ProjectionOptions.ts"
export type { EffectOf, ErrorOf, HandlerOf, HandlersOf, NotInEventSet, OnlyTags, ServicesOf } from "./TypedHandler.ts"

/**
 * The handler of a projection: it is called for each event, or once for the events of a batch.
 *
 * @category models
 * @since 0.1.0
 */
export type Handler<E = never, R = never> =
  | {
    readonly _tag: "One"
    readonly handle: (event: Event) => Effect.Effect<unknown, E, R>
    /** The tags of its event set for which it has no function. Building the orchestrator refuses them. */
    readonly missing?: ReadonlyArray<string> | undefined
  }
  | {
    readonly _tag: "Batch"
    readonly handleBatch: (events: Array.NonEmptyReadonlyArray<Event>) => Effect.Effect<unknown, E, R>
    readonly window?: BatchWindow | undefined
  }

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
  readonly replacesFilter: ReadonlyArray<EventFilter>
  readonly concurrency: number
  readonly ordering: Ordering
  readonly isolation: Isolation | undefined
  readonly delivery: "exactly-once" | "at-least-once"
  readonly retry: Schedule.Schedule<unknown, never> | undefined
  readonly onFailure: FailurePolicy.Any
  readonly parkingLimits: Limits
  readonly handler: Handler<E, R>
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
 * The services that a projection's handler requires from outside. Each batch provides its own `Scope` and `Delivery`.
 *
 * @category utility types
 * @since 0.1.0
 */
export type Services<P> = P extends Projection<infer _E, infer R> ? Exclude<R, Scope.Scope | Delivery> : never

/**
 * The owner of the range and the position of the event that is being handled. An outside system to which a handler
 * writes can use the position to reject a repeated or late write. See docs/ordering-and-delivery.md.
 *
 * @category services
 * @since 0.1.0
 */
export class Delivery extends Context.Service<Delivery, {
  /**
   * The registration and generation under which the worker owns the range. Between two owners of a range in the same
   * replica set, `generationId` increases; each replica set numbers its own generations.
   */
  readonly fence: Fence
  /** The position of the event that is being handled; of a batch, that of its last event. */
  readonly position: bigint
}>()("pupsourcing-orchestrator/Delivery") {}

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
 * **Example** (Typed events)
 *
 * ```ts
 * import { Effect, Schema } from "effect"
 * import { SqlClient } from "effect/sql"
 * import { EventSet, Projection } from "pupsourcing-orchestrator"
 *
 * const UserEvents = EventSet.make({
 *   UserRegistered: Schema.Struct({ email: Schema.String }),
 *   UserRenamed: Schema.Struct({ name: Schema.String })
 * }, { aggregateType: "User" })
 *
 * export const users = Projection.make("users", UserEvents, {
 *   handle: {
 *     UserRegistered: Effect.fnUntraced(function*({ aggregateId, payload }) {
 *       const sql = yield* SqlClient.SqlClient
 *       yield* sql`INSERT INTO users (id, email) VALUES (${aggregateId}, ${payload.email})`
 *     }),
 *     UserRenamed: Effect.fnUntraced(function*({ aggregateId, payload }) {
 *       const sql = yield* SqlClient.SqlClient
 *       yield* sql`UPDATE users SET name = ${payload.name} WHERE id = ${aggregateId}`
 *     })
 *   }
 * })
 * ```
 *
 * @category constructors
 * @since 0.1.0
 */
export const make: {
  // Without a default for `E`: with one, `onFailure` by tag would be checked before `E` is inferred.
  <E, R = never>(name: string, options: Options<E, R>): Projection<E, R>
  <Set extends EventSet.Any, const H extends TypedHandler.HandlerOf<Set>, E, R>(
    name: string,
    events: Set,
    options: TypedOptions<Set, H, E, R>
  ): Projection<
    TypedHandler.ErrorOf<H, Set, E> | EventUndecodable,
    TypedHandler.ServicesOf<H, Set, R> | EventSet.DecodingServices<Set>
  >
} = (name: string, ...rest: [Untyped] | [EventSet.Any, Untyped]): Projection =>
  rest.length === 1
    ? of(name, rest[0], rest[0], handlerOf(rest[0]))
    : of(name, rest[0].filter, rest[1], handlerOf(rest[1], rest[0]))

/** The options of any overload. */
type Untyped = Omit<CommonOptions<never>, "onFailure"> & {
  readonly onFailure?: FailurePolicy.Any | undefined
  readonly handle?: object | undefined
  readonly handleBatch?: ((events: never) => unknown) | undefined
  readonly batchWindow?: BatchWindow | undefined
}

const of = <E, R>(
  name: string,
  filter: EventFilter,
  options: Untyped,
  handler: Handler<E, R>
): Projection<E, R> => ({
  name,
  filter: {
    boundedContexts: filter.boundedContexts,
    aggregateTypes: filter.aggregateTypes,
    eventTypes: filter.eventTypes
  },
  partitionBy: options.partitionBy ?? byDefault,
  startFrom: options.startFrom ?? "beginning",
  replacesFilter: Array.ensure(options.replacesFilter ?? []),
  concurrency: options.concurrency ?? 1,
  ordering: options.ordering ?? "aggregate",
  isolation: options.isolation,
  delivery: options.delivery ?? "exactly-once",
  retry: options.retry,
  onFailure: options.onFailure ?? "halt",
  parkingLimits: {
    keys: options.parkingLimits?.keys ?? defaultLimits.keys,
    events: options.parkingLimits?.events ?? defaultLimits.events
  },
  handler
})

/** JavaScript code may give both functions or neither; building the orchestrator reports that. */
const handlerOf = ({ batchWindow, handle, handleBatch }: Untyped, events?: EventSet.Any): Handler => {
  if ((handle === undefined) === (handleBatch === undefined)) return undefined as never
  const handler = handle === undefined
    ? {
      _tag: "Batch",
      handleBatch: events === undefined ? handleBatch : TypedHandler.batch(events, handleBatch!),
      window: batchWindow
    }
    : events === undefined
    ? { _tag: "One", handle }
    : { _tag: "One", handle: TypedHandler.one(events, handle), missing: TypedHandler.missing(events, handle) }
  return handler as Handler
}

/**
 * Calls the handler of a projection with the given events, one after the other or at once, as a batch does. Runs in the
 * caller's transaction, if any, and records no progress.
 *
 * **When to use**
 *
 * To test a handler alone, or to call it from the handler of another projection.
 *
 * @category running
 * @since 0.1.0
 */
export const handle = <E, R>(
  { handler }: Pick<Projection<E, R>, "handler">,
  events: Array.NonEmptyReadonlyArray<Event>
): Effect.Effect<void, E, R> =>
  handler._tag === "Batch"
    ? Effect.asVoid(Effect.suspend(() => handler.handleBatch(events)))
    : Effect.forEach(events, handler.handle, { discard: true })

/**
 * Returns the filter and the partition key in the form that is recorded with the progress.
 *
 * @category utils
 * @since 0.1.0
 */
export const filterText = ({ filter, partitionBy }: Pick<Any, "filter" | "partitionBy">): string =>
  canonical({ ...filter, partitionBy })
