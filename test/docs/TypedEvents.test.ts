/** The comparison in docs/typed-events.md: its numbers, and that the projection works. */
import { assert, it } from "@effect/vitest"
import * as Layer from "effect/Layer"
import type * as Schema from "effect/Schema"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import * as EventSet from "../../src/services/EventSet.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import type * as Projection from "../../src/services/Projection.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as Tests from "../support/Tests.ts"
import * as Pages from "./Pages.ts"

/** Counts the lines, and the words and symbols, without imports. */
const count = (block: string): string => {
  const text = block.replaceAll(/^import .*\n/gm, "")
  const lines = text.split("\n").filter((line) => line.trim() !== "")
  return `${lines.length} / ${text.match(/\w+|[^\s\w]/g)!.length}`
}

const from = (block: string, start: string): string => {
  assert.include(block, start)
  return block.slice(block.indexOf(start))
}

it("the comparison states the sizes of its blocks", () => {
  const own = Pages.block("typed-events", "accounts.ts")
  const emmett = Pages.block("typed-events", "emmett")
  const [projection, ofEmmett] = [from(own, "export const AccountsTable"), from(emmett, "export const accounts")].map(
    count
  )
  const page = Pages.read("typed-events")
  assert.include(page, `| the projection and its table | ${projection} | ${ofEmmett} |`)
  assert.include(page, `| with the event types | ${count(own)} | ${count(emmett)} |`)
})

interface Page {
  readonly AccountEvents: EventSet.EventSet<Record<"AccountOpened" | "Deposited" | "Withdrawn", typeof Schema.Unknown>>
  readonly AccountsTable: Layer.Layer<never, unknown, SqlClient.SqlClient>
  readonly accounts: Projection.Projection<unknown, SqlClient.SqlClient>
}

const layer = PostgresStores.layer.pipe(Layer.provideMerge(Migrations.layer), Layer.provideMerge(PostgresTest.layer))
const test = Tests.live(layer, SqlClient.SqlClient)

test("the compared projection keeps a row for each account", function*(sql) {
  const page = yield* Pages.importBlock<Page>("typed-events", "accounts.ts")
  yield* Layer.build(page.AccountsTable)
  yield* EventSet.append(page.AccountEvents, [
    { eventType: "AccountOpened", aggregateId: "1", payload: { owner: "Ada" } },
    { eventType: "Deposited", aggregateId: "1", payload: { cents: 500 } },
    { eventType: "Withdrawn", aggregateId: "1", payload: { cents: 200 } }
  ])
  const worker = yield* Orchestrator.make({ replicaSet: "accounts", projections: [page.accounts] })
  yield* worker.catchUp
  assert.deepStrictEqual(yield* sql`SELECT * FROM accounts`, [{ id: "1", owner: "Ada", cents: 300n }])
})
