/**
 * The status of projections, and what operators do with parked events and halted ranges. Needs only the stores, no
 * running worker; requests are executed by the workers.
 *
 * **Example** (List what needs attention)
 *
 * ```ts
 * import { PgClient } from "@effect/sql-pg"
 * import { Config, Console, Effect, Layer } from "effect"
 * import { PostgresStores, Projections, Status } from "pupsourcing-orchestrator"
 *
 * const problems = Effect.gen(function*() {
 *   const { status } = yield* Projections.Projections
 *   for (const { problem, projection, range } of Status.problems(yield* status)) {
 *     yield* Console.error(projection, problem, range.halt?.error ?? "")
 *   }
 * })
 *
 * export const program = problems.pipe(
 *   Effect.provide(PostgresStores.layer.pipe(Layer.provide(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))))
 * )
 * ```
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import type * as Effect from "effect/Effect"
import type { EventNotHalted, ProjectionUnknown, StoreError } from "../schema/Errors.ts"
import type { ParkedEvent, Selection } from "../schema/ParkedEvent.ts"
import type { Status } from "../schema/Status.ts"

/**
 * How a retry or removal of parked events is requested.
 *
 * @category options
 * @since 0.1.0
 */
export interface RequestOptions {
  /** Returns the selected events without requesting anything. Default false. */
  readonly dryRun?: boolean | undefined
  /** The name of the requester, for people to read: recorded with each event. Default: no name. */
  readonly requestedBy?: string | undefined
}

/**
 * Reads the status of projections, and requests what is to be done with parked events and halted ranges.
 *
 * **Example** (Retry what failed because a service was unavailable)
 *
 * ```ts
 * import { Console, Effect } from "effect"
 * import { Projections } from "pupsourcing-orchestrator"
 *
 * export const retryTimeouts = Effect.gen(function*() {
 *   const projections = yield* Projections.Projections
 *   const events = yield* projections.retryParked("invoices", { errorTag: "RequestTimeout" }, { requestedBy: "ada" })
 *   yield* Console.log(`${events.length} events are handled again.`)
 * })
 * ```
 *
 * @category services
 * @since 0.1.0
 */
export class Projections extends Context.Service<Projections, {
  /**
   * The status of all replica sets at one moment: workers, position, owner, lag and halt of every range, and parked
   * events. Reads only, in one round trip. Waits for no lock that workers hold.
   */
  readonly status: Effect.Effect<Status, StoreError>

  /**
   * The parked events of a projection that are selected, in position order. Default: all. `errorTag` selects only the
   * events whose own last error has this tag.
   */
  readonly parked: (
    projection: string,
    selection?: Selection
  ) => Effect.Effect<ReadonlyArray<ParkedEvent>, ProjectionUnknown | StoreError>

  /**
   * Requests that parked events are handled again, and returns them in position order; none if nothing is selected. It
   * replaces earlier requests about these events.
   *
   * **Details**
   *
   * The worker that owns an event's range executes the request within its `pollInterval`, before new events and in
   * position order: it calls the handler, and removes the event in the same transaction (with delivery
   * `"at-least-once"`, afterwards: the event is handled at least once). An event with earlier parked
   * events of its key waits until those are retried or dropped, too. If the handler fails again, the attempt and its
   * error are recorded, and the requests about the other events of the key are withdrawn. While no worker runs the
   * projection, the request waits.
   */
  readonly retryParked: (
    projection: string,
    selection: Selection,
    options?: RequestOptions
  ) => Effect.Effect<ReadonlyArray<ParkedEvent>, ProjectionUnknown | StoreError>

  /**
   * Requests that parked events are removed without being handled, and returns them in position order. It is executed
   * like `retryParked`. The effects of the events are missing from the read model until it is rebuilt.
   */
  readonly dropParked: (
    projection: string,
    selection: Selection,
    options?: RequestOptions
  ) => Effect.Effect<ReadonlyArray<ParkedEvent>, ProjectionUnknown | StoreError>

  /**
   * Requests that the range that is halted at this event handles it again, without a restart of its worker. Fails with
   * `EventNotHalted` if no range of the projection is halted at the event.
   */
  readonly retryHalted: (
    projection: string,
    eventId: string
  ) => Effect.Effect<void, EventNotHalted | ProjectionUnknown | StoreError>

  /**
   * Requests that the range that is halted at this event continues after it without handling it. The worker that owns
   * the range verifies that it is still halted at this event. The effects of the event are missing from the read model
   * until it is rebuilt. A request while no worker runs is dropped when a worker starts and claims the
   * range, because the claim retries the event.
   */
  readonly skipHalted: (
    projection: string,
    eventId: string
  ) => Effect.Effect<void, EventNotHalted | ProjectionUnknown | StoreError>
}>()("pupsourcing-orchestrator/services/Projections") {}
