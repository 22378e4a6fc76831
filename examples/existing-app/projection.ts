import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import { Projection, ReadModel } from "pupsourcing-orchestrator"

export const Table = ReadModel.layer("todos_per_list", (sql) =>
  sql`
    CREATE TABLE IF NOT EXISTS todos_per_list (
      list text PRIMARY KEY,
      open int NOT NULL,
      done int NOT NULL
    )`)

/** Counts the open and the finished todos of each list. */
export const todosPerList = Projection.make("todos_per_list", {
  aggregateTypes: ["TodoList"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    const added = event.eventType === "TodoAdded" ? 1 : 0
    const done = 1 - added
    yield* sql`
      INSERT INTO todos_per_list AS t (list, open, done) VALUES (${event.aggregateId}, ${added - done}, ${done})
      ON CONFLICT (list) DO UPDATE SET open = t.open + excluded.open, done = t.done + excluded.done`
  })
})
