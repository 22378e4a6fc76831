import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import * as ParkingSuite from "../../../suites/ParkingSuite.ts"
import * as EventStores from "../../../support/EventStores.ts"

const layer = Layer.effectDiscard(Effect.flatMap(
  SqlClient.SqlClient,
  (sql) => sql`CREATE TABLE handled (id bigserial PRIMARY KEY, projection text NOT NULL, event text NOT NULL)`
)).pipe(Layer.provideMerge(PostgresStores.layer), Layer.provideMerge(EventStores.database()))

ParkingSuite.suite<SqlClient.SqlClient>("postgres", layer, {
  record: Effect.fnUntraced(function*(projection, events) {
    const sql = yield* SqlClient.SqlClient
    for (const event of events) yield* sql`INSERT INTO handled (projection, event) VALUES (${projection}, ${event})`
    // Failure policies decide about typed errors: a statement that fails must not be one.
  }, Effect.orDie),
  read: Effect.fnUntraced(function*(projection) {
    const sql = yield* SqlClient.SqlClient
    const rows = yield* sql<{ event: string }>`SELECT event FROM handled WHERE projection = ${projection} ORDER BY id`
    return rows.map(({ event }) => event)
  })
})
