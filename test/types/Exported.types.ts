/**
 * Exports without type annotations. `npm run consumer` compiles them with `declaration`, against the packed library: a
 * declaration file must be able to name every type of the library that is inferred here.
 */
import { Effect, Layer, Stream } from "effect"
import { SqlClient } from "effect/sql"
import {
  EventStore,
  MemoryStores,
  Migrations,
  Orchestrator,
  PostgresStores,
  Projection
} from "pupsourcing-orchestrator"

const event = {
  boundedContext: "identity",
  aggregateType: "User",
  aggregateId: "1",
  eventType: "Registered",
  payload: {}
}
const stream = { boundedContext: "identity", aggregateType: "User", aggregateId: "1" }

export const store = Effect.map(EventStore.EventStore, (events) => ({ ...events }))
export const append = Effect.fn("append")(function*() {
  const events = yield* EventStore.EventStore
  return yield* events.append([event], { expectedVersion: "none" })
})
export const appended = Effect.result(append())
export const read = Effect.flatMap(EventStore.EventStore, (events) => events.read({ after: 0n }))
export const readStream = Effect.flatMap(EventStore.EventStore, (events) => events.readStream(stream))
export const openWriters = Effect.flatMap(EventStore.EventStore, (events) => events.openWriters)

export const users = Projection.make("users", {
  aggregateTypes: ["User"],
  handle: (event) =>
    Effect.flatMap(SqlClient.SqlClient, (sql) => sql`INSERT INTO users (id) VALUES (${event.aggregateId})`)
})
export const { filter, handler, startFrom } = users

export const orchestrator = Orchestrator.make({ replicaSet: "main", projections: [users] })
export const failures = Effect.flip(Orchestrator.run)
export const activity = Effect.map(Orchestrator.Orchestrator, (worker) => worker.activity)
export const halts = Effect.map(activity, Stream.filter((entry) => entry._tag === "RangeHalted"))
export const registrations = Effect.map(
  activity,
  Stream.map((entry) => entry._tag === "WorkerRegistered" ? entry.registration : undefined)
)
export const generations = Effect.map(
  activity,
  Stream.map((entry) => entry._tag === "GenerationChanged" ? entry.generation : undefined)
)
export const ranges = Effect.map(
  activity,
  Stream.map((entry) => entry._tag === "RangeClaimed" ? entry.range : undefined)
)

export const worker = Orchestrator.layerFromEnv({ projections: [users] })
export const onPostgres = Layer.provideMerge(worker, PostgresStores.layer)
export const inMemory = Layer.provideMerge(worker, MemoryStores.layer)
export const inWorld = Effect.map(
  MemoryStores.makeWorld,
  (world) => ({ world, stores: MemoryStores.layerWorld(world) })
)
export const migrated = Effect.result(Migrations.up)
