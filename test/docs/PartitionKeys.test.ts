/**
 * The projection of docs/partition-keys.md, with two workers.
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import type { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import type * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { waitUntil } from "../../src/testing/TimeLimits.ts"
import * as Tests from "../support/Tests.ts"
import * as Pages from "./Pages.ts"

const page = "partition-keys"

const test = Tests.live(
  PostgresStores.layer.pipe(Layer.provideMerge(Migrations.layer), Layer.provideMerge(PostgresTest.layer)),
  SqlClient.SqlClient
)

test("the view of customers loses no update while two workers write it", function*(sql) {
  const { customers } = yield* Pages.importBlock<{
    readonly customers: Projection.Projection<unknown, SqlClient.SqlClient>
  }>(page, "view")
  const { pay } = yield* Pages.importBlock<{
    readonly pay: (payment: string, customer: string, amount: number) => Effect.Effect<unknown, unknown, EventStore>
  }>(page, "append")
  yield* Pages.runSql(sql, Pages.block(page, "table"))
  for (const workerId of ["a", "b"]) {
    const worker = yield* Orchestrator.make({ replicaSet: "main", workerId, projections: [customers] })
    yield* Effect.forkScoped(worker.run)
  }
  for (let index = 0; index < 90; index++) {
    yield* pay(`payment ${index}`, `customer ${index % 4}`, index % 4 === 0 ? 50 : 10)
  }
  const rows = yield* waitUntil(
    "every payment is handled",
    sql<{ readonly id: string; readonly balance: string; readonly level: string }>`
      SELECT id, balance::text, level FROM customers ORDER BY id`,
    (rows) => rows.reduce((sum, { balance }) => sum + Number(balance), 0) >= 23 * 50 + 67 * 10
  )
  assert.deepStrictEqual(rows, [
    { id: "customer 0", balance: "1150", level: "gold" },
    { id: "customer 1", balance: "230", level: "new" },
    { id: "customer 2", balance: "220", level: "new" },
    { id: "customer 3", balance: "220", level: "new" }
  ])
})
