/**
 * Event-sourcing projections across worker processes, coordinated by PostgreSQL alone.
 *
 * Every namespace is also a module of its own: `pupsourcing-orchestrator/Projection` and so on. Integrations that not every
 * worker needs are modules only: `pupsourcing-orchestrator/http`. Other modules cannot be imported.
 *
 * @since 0.1.0
 */

/** What a worker did and observed. */
export * as Activity from "./schema/Activity.ts"
/** Progress of a projection over a range. */
export * as Checkpoint from "./schema/Checkpoint.ts"
/** The typed errors, each with a message that states what to do. */
export * as Errors from "./schema/Errors.ts"
/** Events: what is appended and what projections receive. */
export * as Event from "./schema/Event.ts"
/** Filters that select the events of a projection. */
export * as EventFilter from "./schema/EventFilter.ts"
/** Typed events: declares event types once, for appending, decoding and projecting them. */
export * as EventSet from "./services/EventSet.ts"
/** Appends events and reads them. */
export * as EventStore from "./services/EventStore.ts"
/** Numbered configurations of a replica set. */
export * as Generation from "./schema/Generation.ts"
/** Ranges of the hash space. */
export * as HashRange from "./schema/HashRange.ts"
/** The health of a worker. */
export * as Health from "./schema/Health.ts"
/** The stores in memory, for tests. */
export * as MemoryStores from "./layers/memory/MemoryStores.ts"
/** Metrics, under the names of the Go original. */
export * as Metrics from "./services/telemetry/Metrics.ts"
/** Creates, drops and inspects the tables. */
export * as Migrations from "./layers/postgres/Migrations.ts"
/** One worker of a replica set. */
export * as Orchestrator from "./services/Orchestrator.ts"
/** Parked events of projections. */
export * as ParkedEvent from "./schema/ParkedEvent.ts"
/** What divides the events of a projection among workers. */
export * as PartitionKey from "./schema/PartitionKey.ts"
/** The stores on PostgreSQL. */
export * as PostgresStores from "./layers/postgres/PostgresStores.ts"
/** A worker as a Node.js program. */
export * as Program from "./layers/node/Program.ts"
/** Projections, which turn events into read models. */
export * as Projection from "./services/Projection.ts"
/** The status of projections, and requests of operators. */
export * as Projections from "./services/Projections.ts"
/** Creates the tables of read models. */
export * as ReadModel from "./layers/postgres/ReadModel.ts"
/** Settings of an orchestrator. */
export * as Settings from "./services/Settings.ts"
/** The data that describes the status of projections. */
export * as Status from "./schema/Status.ts"
/** What an orchestrator requires of the database beside the event store, as one opaque type. */
export * as Stores from "./services/Stores.ts"
/** Workers and their registrations. */
export * as Worker from "./schema/Worker.ts"
