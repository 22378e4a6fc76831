import { Effect, Schema } from "effect"
import { SqlClient } from "effect/sql"
import { Event, Projection, ReadModel } from "pupsourcing-orchestrator"

const Created = Schema.Struct({ email: Schema.String, name: Schema.String })
const EmailChanged = Schema.Struct({ email: Schema.String })

/** The read model has one row per user. Every worker of this example creates its table at startup. */
export const Table = ReadModel.layer("users", (sql) =>
  sql`
    CREATE TABLE IF NOT EXISTS users (
      id text PRIMARY KEY,
      email text NOT NULL,
      name text NOT NULL,
      version bigint NOT NULL
    )`)

/** Keeps `users` up to date. What the handler writes commits together with the projection's progress. */
export const users = Projection.make("user_projection", {
  aggregateTypes: ["User"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    switch (event.eventType) {
      case "UserCreated": {
        const { email, name } = yield* Event.json(event, Created)
        return yield* sql`
          INSERT INTO users (id, email, name, version)
          VALUES (${event.aggregateId}, ${email}, ${name}, ${event.aggregateVersion})`
      }
      case "EmailChanged": {
        const { email } = yield* Event.json(event, EmailChanged)
        return yield* sql`
          UPDATE users SET email = ${email}, version = ${event.aggregateVersion} WHERE id = ${event.aggregateId}`
      }
      case "UserDeleted":
        return yield* sql`DELETE FROM users WHERE id = ${event.aggregateId}`
      default:
        return undefined
    }
  })
})
