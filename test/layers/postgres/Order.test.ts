import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import * as OrderSuite from "../../suites/OrderSuite.ts"
import * as EventStores from "../../support/EventStores.ts"

const table = Layer.effectDiscard(
  SqlClient.SqlClient.use((sql) =>
    Effect.andThen(sql`CREATE TABLE shared (value int NOT NULL)`, sql`INSERT INTO shared VALUES (0)`)
  )
)

OrderSuite.suite(
  "postgres",
  table.pipe(Layer.provideMerge(PostgresStores.layer), Layer.provideMerge(EventStores.database())),
  {
    shared: {
      read: SqlClient.SqlClient.use((sql) =>
        Effect.map(sql<{ readonly value: number }>`SELECT value FROM shared`, ([row]) => row!.value)
      ),
      write: (value) => SqlClient.SqlClient.use((sql) => sql`UPDATE shared SET value = ${value}`)
    }
  }
)
