/** Roles of the server that own nothing in the test's database until the test grants it. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as Fs from "node:fs"
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
  const config = { url: Redacted.make(url.href) }
  return { name, url, config, client: PgClient.layer(config) }
})

/** The names of the files in `migrations/roles`. */
export type File = "admin" | "appender" | "status" | "worker"

/** The path of a file in `migrations/roles`. */
export const path = (file: File): URL => new URL(`../../migrations/roles/${file}.sql`, import.meta.url)

/** The statements of a file in `migrations/roles` for the role `name`. */
export const statements = (file: File, name: string): ReadonlyArray<string> =>
  Fs.readFileSync(path(file), "utf8").replaceAll(/^--.*\n/gm, "").replaceAll(":\"role\"", `"${name}"`).split(";")
    .map((statement) => statement.trim()).filter((statement) => statement !== "")

/** Grants the role `name` what the file grants. */
export const grant = Effect.fnUntraced(function*(file: File, name: string) {
  const sql = yield* SqlClient.SqlClient
  yield* Effect.forEach(statements(file, name), (statement) => sql.unsafe(statement), { discard: true })
})

/** Creates a role that may only connect: what every role has by default is revoked in the test's database. */
export const makeBare = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const database = sql((yield* TestDatabase).name)
  const role = yield* make
  yield* sql`REVOKE ALL ON DATABASE ${database} FROM PUBLIC`
  yield* sql`REVOKE ALL ON SCHEMA public FROM PUBLIC`
  yield* sql`GRANT CONNECT ON DATABASE ${database} TO ${sql(role.name)}`
  return role
})

/** Each single privilege of a file, with the statements that grant and revoke it. */
export const privileges = (file: File, name: string) =>
  statements(file, name).flatMap((statement) => {
    const [, privileges, on] = /^GRANT (.*) ON (.*) TO .*$/.exec(statement)!
    return privileges!.split(", ").map((privilege) => ({
      privilege,
      on: on!,
      grant: `GRANT ${privilege} ON ${on} TO "${name}"`,
      revoke: `REVOKE ${privilege} ON ${on} FROM "${name}"`
    }))
  })
