/**
 * All stores in memory, with the meaning they have on PostgreSQL, for tests and for trying things out. Time comes from
 * `Clock` alone, so `TestClock` drives everything.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import { CheckpointStore } from "../../services/CheckpointStore.ts"
import { Decisions } from "../../services/Decisions.ts"
import { EventStore } from "../../services/EventStore.ts"
import { Membership } from "../../services/Membership.ts"
import * as CheckpointStoreMemory from "./CheckpointStoreMemory.ts"
import * as DecisionsMemory from "./DecisionsMemory.ts"
import * as EventStoreMemory from "./EventStoreMemory.ts"
import * as MembershipMemory from "./MembershipMemory.ts"
import * as MemoryWorld from "./MemoryWorld.ts"

/**
 * The services of an orchestrator's stores.
 *
 * @category models
 * @since 0.1.0
 */
export type Stores = CheckpointStore | Decisions | EventStore | Membership

/**
 * The stores as one process sees the world: each handle stands for a process.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (handle: MemoryWorld.Handle): Context.Context<Stores> =>
  Context.make(EventStore, EventStoreMemory.make(handle)).pipe(
    Context.add(CheckpointStore, CheckpointStoreMemory.make(handle)),
    Context.add(Membership, MembershipMemory.make(handle)),
    Context.add(Decisions, DecisionsMemory.make(handle))
  )

/**
 * A world to be shared by several layers, each of which then stands for a process of its own.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeWorld: Effect.Effect<MemoryWorld.MemoryWorld> = MemoryWorld.make

/**
 * The stores of a new process in a world that exists. Each call gives another process.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerWorld = (world: MemoryWorld.MemoryWorld): Layer.Layer<Stores> =>
  Layer.effectContext(Effect.map(MemoryWorld.open(world), make))

/**
 * The stores with a world of their own.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<Stores> = Layer.effectContext(
  Effect.map(Effect.flatMap(makeWorld, MemoryWorld.open), make)
)
