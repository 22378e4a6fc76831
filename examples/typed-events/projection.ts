import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { Projection, ReadModel } from "pupsourcing-orchestrator"
import { AccountEvents } from "./events.ts"

/** The read model has one row per account. */
export const Table = ReadModel.layer("accounts", (sql) =>
  sql`
    CREATE TABLE IF NOT EXISTS accounts (
      id text PRIMARY KEY,
      owner text NOT NULL,
      currency text NOT NULL,
      cents bigint NOT NULL DEFAULT 0
    )`)

const add = Effect.fnUntraced(function*(id: string, cents: number) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`UPDATE accounts SET cents = cents + ${cents} WHERE id = ${id}`
})

/** Keeps `accounts` up to date. A missing or misspelt event type does not compile. */
export const accounts = Projection.make("accounts", AccountEvents, {
  handle: {
    AccountOpened: Effect.fnUntraced(function*({ aggregateId, payload: { currency, owner } }) {
      const sql = yield* SqlClient.SqlClient
      yield* sql`INSERT INTO accounts (id, owner, currency) VALUES (${aggregateId}, ${owner}, ${currency})`
    }),
    Deposited: ({ aggregateId, payload }) => add(aggregateId, payload.cents),
    Withdrawn: ({ aggregateId, payload }) => add(aggregateId, -payload.cents)
  }
})
