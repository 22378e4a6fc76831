/**
 * What an orchestrator requires of the database beside the `EventStore` and the `Projections`, as one opaque type.
 *
 * **Example** (A layer that leaves the choice of the stores open)
 *
 * ```ts
 * import { Effect, Layer } from "effect"
 * import { EventStore, MemoryStores, Orchestrator, Projection, Projections, Stores } from "pupsourcing-orchestrator"
 *
 * const users = Projection.make("users", { handle: (event) => Effect.logInfo(event.eventType) })
 *
 * export const Worker: Layer.Layer<
 *   Orchestrator.Orchestrator,
 *   Orchestrator.SetupError,
 *   EventStore.EventStore | Projections.Projections | Stores.Stores
 * > = Orchestrator.layer({ replicaSet: "main-projections", projections: [users] })
 *
 * export const InMemory = Worker.pipe(Layer.provide(MemoryStores.layer))
 * ```
 *
 * @since 0.1.0
 */

/**
 * The stores of progress, membership and coordination, which `PostgresStores.layer` or `MemoryStores.layer` provides
 * together. Each is an internal service of its own, with this type as the identifier that types show.
 *
 * @category models
 * @since 0.1.0
 */
export interface Stores {
  readonly "~pupsourcing-orchestrator/Stores": "~pupsourcing-orchestrator/Stores"
}
