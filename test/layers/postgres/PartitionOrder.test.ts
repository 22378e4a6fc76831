import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import * as PartitionOrderSuite from "../../suites/PartitionOrderSuite.ts"
import * as EventStores from "../../support/EventStores.ts"

const stores = PostgresStores.layer.pipe(
  Layer.provideMerge(EventStores.database({
    alter: (sql) => sql`CREATE TABLE lines (seq bigserial, projection text, key text, position bigint, worker text)`
  }))
)

const model: PartitionOrderSuite.Model<SqlClient.SqlClient> = {
  write: Effect.fnUntraced(function*(projection, { key, position, worker }) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`INSERT INTO lines (projection, key, position, worker)
      VALUES (${projection}, ${key}, ${String(position)}::bigint, ${worker})`
  }),
  lines: Effect.fnUntraced(function*(projection) {
    const sql = yield* SqlClient.SqlClient
    const rows = yield* sql<{ readonly key: string; readonly position: string; readonly worker: string }>`
      SELECT key, position::text, worker FROM lines WHERE projection = ${projection} ORDER BY seq`
    return rows.map(({ position, ...line }) => ({ ...line, position: BigInt(position) }))
  })
}

PartitionOrderSuite.suite("postgres", stores, Effect.succeed(model))
