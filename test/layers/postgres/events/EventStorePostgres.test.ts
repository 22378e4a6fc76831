import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import { describe } from "vitest"
import * as EventStoreSuite from "../../../suites/EventStoreSuite.ts"
import * as PartitionKeySuite from "../../../suites/PartitionKeySuite.ts"
import { realTime } from "../../../suites/Suite.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as Servers from "../../../support/Servers.ts"

const transact = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql.withTransaction(self))

EventStoreSuite.suite("postgres", EventStores.layerWith(), { time: realTime, transact })
PartitionKeySuite.suite("postgres", EventStores.layerWith(), { time: realTime })

// The oldest supported server refuses some expressions that later versions accept.
describe("on PostgreSQL 14", { tags: ["long"] }, () => {
  const layer = Layer.unwrap(Effect.map(Servers.postgres14(), (serverUrl) => EventStores.layerWith({ serverUrl })))
  EventStoreSuite.suite("postgres 14", layer, { time: realTime, transact })
  PartitionKeySuite.suite("postgres 14", layer, { time: realTime })
})
