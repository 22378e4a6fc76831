/**
 * Event-sourcing projections across worker processes, coordinated by PostgreSQL alone.
 *
 * @since 0.1.0
 */

/** What a worker did and observed. */
export { Activity } from "./schema/Activity.ts"
/** Progress of a projection over a range. */
export * as Checkpoint from "./schema/Checkpoint.ts"
/** The typed errors, each with a message that states what to do. */
export * as Errors from "./schema/Errors.ts"
/** Events: what is appended and what projections receive. */
export * as Event from "./schema/Event.ts"
/** Filters that select the events of a projection. */
export * as EventFilter from "./schema/EventFilter.ts"
/** Numbered configurations of a replica set. */
export * as Generation from "./schema/Generation.ts"
/** Ranges of the hash space. */
export * as HashRange from "./schema/HashRange.ts"
/** Settings of an orchestrator. */
export * as Settings from "./services/Settings.ts"
/** Workers and their registrations. */
export * as Worker from "./schema/Worker.ts"

/** Progress that commits with the read model. */
export { CheckpointStore } from "./services/CheckpointStore.ts"
/** Decisions, which make all changes to generations and to the holding of ranges. */
export { CoordinationStore } from "./services/CoordinationStore.ts"
/** The event store. */
export { EventStore } from "./services/EventStore.ts"
/** Membership of workers in a replica set. */
export { Membership } from "./services/Membership.ts"
/** Metrics, under the names of the Go original. */
export * as Metrics from "./services/telemetry/Metrics.ts"
/** One worker of a replica set. */
export * as Orchestrator from "./services/Orchestrator.ts"
/** Projections, which turn events into read models. */
export * as Projection from "./services/Projection.ts"

/** The stores in memory, for tests. */
export * as MemoryStores from "./layers/memory/MemoryStores.ts"
/** A worker as a Node.js program. */
export * as Program from "./layers/node/Program.ts"
/** The tables' migrations. */
export * as Migrations from "./layers/postgres/Migrations.ts"
/** Creating the tables of read models. */
export * as ReadModel from "./layers/postgres/ReadModel.ts"
/** The stores on PostgreSQL. */
export * as PostgresStores from "./layers/postgres/PostgresStores.ts"

/**
 * Types in the signatures of services, exported again under names of their own. A declaration file can name only what
 * the package itself exports, not what is inside `Event` or `Errors`. Without these exports, a function that appends
 * could not be exported from a program that is compiled with `declaration`.
 */
export type { MemoryWorld } from "./layers/memory/MemoryWorld.ts"
export type { Checkpoint as CheckpointRow, Halt, Held } from "./schema/Checkpoint.ts"
export type * from "./schema/Errors.ts"
export type { Appended, Event as PersistedEvent, ExpectedVersion, NewEvent, StreamId } from "./schema/Event.ts"
export type { Generation as GenerationRow, Member } from "./schema/Generation.ts"
export type { HashRange as Range } from "./schema/HashRange.ts"
export type { Options as TableOptions } from "./schema/TableNames.ts"
export type { Registration } from "./schema/Worker.ts"
export type { OpenWriter, Page, ReadOptions } from "./services/EventStore.ts"
