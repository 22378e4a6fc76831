/**
 * Appends the events of one sample user: created, email changed, and for every third user deleted.
 */
import { Clock, Console, Effect, Layer } from "effect"
import { EventStore, PostgresStores, Program } from "pupsourcing-orchestrator"
import * as Database from "../support/Database.ts"

const append = Effect.gen(function*() {
  const events = yield* EventStore.EventStore
  const now = yield* Clock.currentTimeMillis
  const id = `user-${now}`
  const event = (eventType: string, payload: unknown) => ({
    boundedContext: "accounts",
    aggregateType: "User",
    aggregateId: id,
    eventType,
    payload
  })
  const appended = yield* events.append([
    event("UserCreated", { name: "Ada", email: `${id}@example.org` }),
    event("EmailChanged", { email: `ada.${id}@example.org` }),
    ...(now % 3 === 0 ? [event("UserDeleted", {})] : [])
  ], { expectedVersion: "none" })
  yield* Console.log(
    `Appended ${appended.positions.length} events of ${id} at positions ${appended.positions.join(", ")}.`
  )
})

const Live = PostgresStores.layer.pipe(
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provide(Database.layer)
)

Program.runMain(append.pipe(Effect.provide(Live)))
