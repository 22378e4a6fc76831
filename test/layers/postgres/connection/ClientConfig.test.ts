/**
 * Mistakes in a client's configuration are reported at once, with the driver's reason, and no message carries a part of
 * a password.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Logger from "effect/Logger"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as SqlClient from "effect/sql/SqlClient"
import * as Util from "node:util"
import { describe } from "vitest"
import * as ClientConfig from "../../../../src/layers/postgres/connection/ClientConfig.ts"
import { serverOf } from "../../../../src/layers/postgres/connection/Server.ts"
import * as DatabaseLive from "../../../../src/layers/postgres/DatabaseLive.ts"
import * as Migrations from "../../../../src/layers/postgres/Migrations.ts"
import * as PostgresTest from "../../../../src/testing/PostgresTest.ts"
import * as EventStores from "../../../support/EventStores.ts"

/** The errors of opening the stores and of migrating. Under `TestClock` a retry would wait forever. */
const failures = (config: PgClient.PgPoolConfig) =>
  PgClient.make(config).pipe(
    Effect.flatMap((client) =>
      Effect.all([
        Effect.flip(Effect.provideService(DatabaseLive.make(), PgClient.PgClient, client)),
        Effect.flip(Effect.provideService(Migrations.up, SqlClient.SqlClient, client))
      ])
    ),
    Effect.provide(Reactivity.layer),
    Effect.scoped
  )

const url = (text: string) => ({ url: Redacted.make(text) })

/** Every text that a log, a serializer or a person may derive from an error. */
const everything = (error: Error): string =>
  [error.message, String(error), JSON.stringify(error), Util.inspect(error, { depth: 10, showHidden: true })].join("\n")

const withoutUser = <A, E, R>(self: Effect.Effect<A, E, R>) =>
  Effect.acquireUseRelease(
    Effect.sync(() => {
      const { USER, USERNAME } = process.env
      delete process.env["USER"]
      delete process.env["USERNAME"]
      return { USER, USERNAME }
    }),
    () => self,
    (before) =>
      Effect.sync(() => {
        for (const [name, value] of Object.entries(before)) if (value !== undefined) process.env[name] = value
      })
  )

describe("ClientConfig", () => {
  const cases: ReadonlyArray<readonly [string, PgClient.PgPoolConfig, string, RegExp]> = [
    [
      "an sslmode of another driver",
      url("postgresql://u:p@h/db?sslmode=no-verify"),
      "PgClient",
      /"no-verify".*verify-full/
    ],
    ["a % in a password", url("postgresql://u:50%off@h/db"), "PgClient", /percent-encoding in URL password.*%25/],
    ["a % in a database", url("postgresql://u:p@h/d%b"), "PgClient", /percent-encoding in URL database/],
    ["port 0", url("postgresql://u:p@h:0/db"), "PgClient", /Invalid port in URL/],
    ["a port that is not a number", url("postgresql://u:p@h:abc/db"), "url", /host or port is not valid/],
    ["a port that is too large", url("postgresql://u:p@h:70000/db"), "url", /host or port is not valid/],
    ["a port parameter that is not a number", url("postgresql://u:p@h/db?port=x"), "PgClient", /Invalid port/],
    ["a port option that is too large", { host: "h", username: "u", port: 70_000 }, "port", /70000/],
    ["a port option that is not a number", { host: "h", username: "u", port: Number.NaN }, "port", /NaN/],
    ["a connect_timeout with a unit", url("postgresql://u:p@h/db?connect_timeout=5s"), "PgClient", /connect_timeout/],
    ["a duration that is none", { ...url("postgresql://u:p@h/db"), connectTimeout: "5 sec" as never }, "PgClient", /./],
    ["a reserved startup parameter", { username: "u", startupParameters: { user: "x" } }, "PgClient", /Reserved/],
    ["a keepAlive below a second", { username: "u", keepAlive: "10 millis" }, "PgClient", /keepAlive/],
    ["a certificate that is none", { username: "u", ssl: { cert: "none", key: "none" } }, "ssl", /PEM/],
    [
      "a path instead of an authority's certificate",
      { username: "u", ssl: { ca: ["/etc/ca.pem"] } },
      "ssl",
      /not a certificate.*not their paths/
    ],
    ["a TLS version that is none", { username: "u", ssl: { minVersion: "TLSv9" as never } }, "ssl", /TLSv9/],
    ["another scheme", url("mysql://u:p@h/db"), "url", /not a PostgreSQL URL/],
    ["no scheme", url("u:p@h/db"), "url", /not a PostgreSQL URL/],
    ["no slashes", url("postgresql:u:p@h/db"), "url", /no \/\//],
    ["one slash", url("postgres:/h/db"), "url", /no \/\//],
    ["an empty URL", url(" "), "url", /empty/],
    ["several hosts with ports", url("postgresql://u:p@a:1,b:2/db"), "url", /host or port is not valid/]
  ]

  it.effect.each(cases)("%s is reported at once", ([, config, setting, problem]) =>
    Effect.gen(function*() {
      for (const error of yield* failures(config)) {
        assert.strictEqual(error._tag, "InvalidSettings")
        assert(error._tag === "InvalidSettings")
        assert.strictEqual(error.setting, setting)
        assert.match(error.message, problem)
      }
    }))

  it.effect("a missing user is reported at once", () =>
    Effect.gen(function*() {
      for (const error of yield* withoutUser(failures(url("postgresql://localhost/db")))) {
        assert(error._tag === "InvalidSettings")
        assert.match(error.message, /No username configured.*Put the user into the URL/)
      }
    }))

  it.effect.each([
    "12#secret",
    "12/secret",
    "12?secret",
    "12?user=secret",
    "sec@ret/zyxw",
    "sec@ret#zyxw",
    "sec@ret?zyxw",
    "50%secret",
    "12#zy:secret",
    "s e c r e t#",
    "pässwörd/秘密",
    "/secret",
    "#secret",
    "?secret"
  ])("the password %s is not percent-encoded: no part of it is shown", (password) =>
    Effect.gen(function*() {
      const parts = password.split(/[#/?@%:= ]/).filter((part) => part.length > 1 && part !== "user")
      for (const error of yield* failures(url(`postgresql://postgres:${password}@db.example/app`))) {
        assert(error._tag === "InvalidSettings")
        assert.include(error.message, "Percent-encode")
        for (const part of parts) assert.notInclude(everything(error), part)
      }
    }))

  it("passwords that need no encoding are accepted unchanged", () => {
    for (const password of ["a:b", "a@b", "ä ö", "p!$&'()*+,;=", "[a]", "秘密", ":", "@"]) {
      const text = `postgresql://postgres:${password}@db.example/app`
      assert.isUndefined(ClientConfig.urlProblem(text), password)
      assert.deepStrictEqual(serverOf(url(text)), { server: "db.example:5432", database: "app", user: "postgres" })
    }
  })

  it.effect.prop(
    "a URL is refused or names the intended server, whatever the password",
    { password: Schema.String, isEncoded: Schema.Boolean },
    ({ isEncoded, password }) =>
      Effect.sync(() => {
        // A lone surrogate has no encoding.
        const wellFormed = password.replaceAll(/\p{Surrogate}/gu, "")
        const text = `postgresql://postgres:${
          isEncoded ? encodeURIComponent(wellFormed) : wellFormed
        }@db.example/app?sslmode=prefer`
        const problem = ClientConfig.urlProblem(text)
        if (isEncoded) assert.isUndefined(problem)
        if (problem !== undefined) return
        assert.deepStrictEqual(serverOf(url(text)), { server: "db.example:5432", database: "app", user: "postgres" })
      })
  )

  it.live("parameters that the driver ignores are reported by name", () =>
    Effect.gen(function*() {
      const { url: text } = yield* PostgresTest.TestDatabase
      const lines: Array<string> = []
      const logger = Logger.make(({ message }) => void lines.push(String(message)))
      const withParameters = `${text}?application_name=a&sslrootcert=/no/such/file&pgbouncer=true`
      yield* PgClient.make(url(withParameters)).pipe(
        Effect.flatMap((client) => Effect.provideService(DatabaseLive.make(), PgClient.PgClient, client)),
        Effect.provide([Reactivity.layer, Logger.layer([logger])]),
        Effect.scoped
      )
      assert.match(lines.join("\n"), /ignores these parameters of the database URL: sslrootcert, pgbouncer\./)
    }).pipe(Effect.provide(EventStores.database())))
})
