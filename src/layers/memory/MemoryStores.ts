/**
 * All stores in memory, with the semantics that they have on PostgreSQL, for tests and experiments. Time comes only
 * from `Clock`, so `TestClock` controls everything.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { CheckpointStore } from "../../services/CheckpointStore.ts"
import { CoordinationStore } from "../../services/CoordinationStore.ts"
import { EventStore } from "../../services/EventStore.ts"
import { Membership } from "../../services/Membership.ts"
import { ParkedEvents } from "../../services/ParkedEvents.ts"
import { Projections } from "../../services/Projections.ts"
import type { Stores } from "../../services/Stores.ts"
import * as CheckpointStoreMemory from "./CheckpointStoreMemory.ts"
import * as CoordinationStoreMemory from "./CoordinationStoreMemory.ts"
import * as EventStoreMemory from "./EventStoreMemory.ts"
import * as MembershipMemory from "./MembershipMemory.ts"
import * as MemoryWorld from "./MemoryWorld.ts"
import * as ParkedEventsMemory from "./ParkedEventsMemory.ts"
import * as ProjectionsMemory from "./ProjectionsMemory.ts"

/**
 * The state that the stores of several processes share in place of a database. Opaque: `makeWorld` makes it.
 *
 * @category models
 * @since 0.1.0
 */
export type { MemoryWorld } from "./MemoryWorld.ts"

/**
 * The stores of one process: each handle represents a process.
 *
 * @internal
 */
export const make = (handle: MemoryWorld.Handle): Context.Context<EventStore | Projections | Stores> => {
  const events = EventStoreMemory.make(handle)
  const parkedEvents = ParkedEventsMemory.make(handle)
  return Context.make(EventStore, events).pipe(
    Context.add(Projections, ProjectionsMemory.make(handle, { events, parkedEvents })),
    Context.add(CheckpointStore, CheckpointStoreMemory.make(handle)),
    Context.add(ParkedEvents, parkedEvents),
    Context.add(Membership, MembershipMemory.make(handle)),
    Context.add(CoordinationStore, CoordinationStoreMemory.make(handle))
  )
}

/**
 * Makes a world that several layers can share. Each layer then represents a process of its own.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeWorld: Effect.Effect<MemoryWorld.MemoryWorld> = MemoryWorld.make

/**
 * The stores of a new process in an existing world. Each call represents another process.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWorld = (world: MemoryWorld.MemoryWorld): Layer.Layer<EventStore | Projections | Stores> =>
  Layer.effectContext(Effect.map(MemoryWorld.open(world), make))

/**
 * The stores in a world of their own.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<EventStore | Projections | Stores> = Layer.effectContext(
  Effect.map(Effect.flatMap(makeWorld, MemoryWorld.open), make)
)
