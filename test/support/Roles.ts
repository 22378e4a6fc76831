/** Roles of the server that own nothing in the test's database until the test grants it. */
import * as Effect from "effect/Effect"
import * as SqlClient from "effect/sql/SqlClient"
import { TestDatabase } from "../../src/testing/PostgresTest.ts"

/** Creates a role that can log in to the test's database. Dropped with the scope, which must end before the client. */
export const make = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const url = new URL((yield* TestDatabase).url)
  const name = `role_${globalThis.crypto.randomUUID().replaceAll("-", "")}`
  url.username = name
  url.password = "password-of-the-role"
  yield* Effect.acquireRelease(
    sql`CREATE ROLE ${sql(name)} LOGIN PASSWORD 'password-of-the-role'`,
    // The role cannot be dropped before its grants in this database are. A failure must fail the test, because the role
    // belongs to the whole server, and a finalizer can fail only with a defect.
    () => Effect.orDie(Effect.andThen(sql`DROP OWNED BY ${sql(name)}`, sql`DROP ROLE ${sql(name)}`))
  )
  return { name, url }
})
