import * as Effect from "effect/Effect"
import * as SqlClient from "effect/sql/SqlClient"
import * as EventStoreSuite from "../../suites/EventStoreSuite.ts"
import { realTime } from "../../suites/Suite.ts"
import * as EventStores from "../../support/EventStores.ts"

const transact = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) => sql.withTransaction(self))

EventStoreSuite.suite("postgres", EventStores.layerWith(), { time: realTime, transact })
