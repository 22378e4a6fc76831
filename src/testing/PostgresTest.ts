/**
 * A PostgreSQL database for each build of the layer, dropped with its scope. Names are random, so any number of test
 * processes can share a server.
 *
 * Connection pools need a running clock: in `it.layer` pass `{ excludeTestServices: true }`, elsewhere use `it.live`.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import * as Crypto from "node:crypto"

/** The database that the layer made. */
export class TestDatabase extends Context.Service<TestDatabase, {
  readonly name: string
  /** The URL with the password, for child processes and separate clients. */
  readonly url: string
}>()("pupsourcing-orchestrator/test/TestDatabase") {}

/** The environment variable with the URL of the run's server, which processes that a test starts inherit. */
export const serverVariable = "TEST_POSTGRES_URL"

/** Returns the URL of a role of the run's server that may create databases. */
export const serverUrl = (): string => {
  const url = process.env[serverVariable]
  if (url === undefined) throw new Error(`${serverVariable} is not set. Run tests through vitest, or pass a serverUrl.`)
  return url
}

/** How a test database differs from an empty one behind a default pool. */
export interface Options {
  /** The database to copy; see {@link template}. Default: PostgreSQL's empty one. */
  readonly template?: string | undefined
  /** A server other than the run's own, as the URL of a role that may create databases. */
  readonly serverUrl?: string | undefined
  /** Default: UTF8. */
  readonly encoding?: string | undefined
  /** Settings of the pool that {@link layerWith} provides. */
  readonly client?: Omit<PgClient.PgPoolConfig, "url"> | undefined
}

const databaseUrl = (serverUrl: string, name: string): string => {
  const url = new URL(serverUrl)
  url.pathname = `/${name}`
  return url.href
}

/**
 * Runs an effect with one short-lived connection to a database of the server. The type assertion is needed because
 * TypeScript cannot reduce the three `Exclude`s (client, `Reactivity`, `Scope`) of a generic `R` to the one in the
 * signature.
 */
export const withConnection = <A, E, R>(
  url: string,
  self: Effect.Effect<A, E, R>
): Effect.Effect<A, E | SqlError.SqlError, Exclude<R, SqlClient.SqlClient>> =>
  PgClient.makeClient({ url: Redacted.make(url), applicationName: "test-database" }).pipe(
    Effect.flatMap((client) => Effect.provideService(self, SqlClient.SqlClient, client)),
    Effect.provide(Reactivity.layer),
    Effect.scoped
  ) as Effect.Effect<A, E | SqlError.SqlError, Exclude<R, SqlClient.SqlClient>>

const randomName = (): string => `t_${Crypto.randomUUID().replaceAll("-", "")}`

const create = Effect.fnUntraced(function*(name: string, copyOf: string, encoding?: string) {
  const sql = yield* SqlClient.SqlClient
  // Only the C locale works with every encoding.
  const encoded = encoding === undefined
    ? sql.literal("")
    : sql.literal(`ENCODING '${encoding}' LC_COLLATE 'C' LC_CTYPE 'C'`)
  yield* sql`CREATE DATABASE ${sql(name)} TEMPLATE ${sql(copyOf)} ${encoded}`
})

const drop = Effect.fnUntraced(function*(name: string) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`DROP DATABASE IF EXISTS ${sql(name)} WITH (FORCE)`
})

/** Makes a database that lives as long as the scope. */
export const make = Effect.fnUntraced(function*(
  options: Options = {}
): Effect.fn.Return<TestDatabase["Service"], SqlError.SqlError, Scope.Scope> {
  const server = options.serverUrl ?? serverUrl()
  const name = randomName()
  yield* Effect.acquireRelease(
    withConnection(server, create(name, options.template ?? "template0", options.encoding)),
    () =>
      withConnection(server, drop(name)).pipe(
        // A test may have stopped the server itself; its data directory is deleted soon anyway.
        Effect.ignoreCause
      )
  )
  return TestDatabase.of({ name, url: databaseUrl(server, name) })
})

/**
 * Creates the database `name` once per server and fills it with `prepare` through the provided `SqlClient`; other test
 * processes wait. Afterwards it serves as a `template` for copies, which take tens of milliseconds. Put a hash of what
 * `prepare` does into the name: the database is kept, and only its name distinguishes an outdated one.
 */
export const template = <E, R>(
  name: string,
  prepare: Effect.Effect<void, E, R>,
  server?: string
): Effect.Effect<string, E | SqlError.SqlError, Exclude<R, SqlClient.SqlClient>> =>
  Effect.suspend(() => templateOn(server ?? serverUrl(), name, prepare))

const templateOn = <E, R>(
  server: string,
  name: string,
  prepare: Effect.Effect<void, E, R>
): Effect.Effect<string, E | SqlError.SqlError, Exclude<R, SqlClient.SqlClient>> => {
  const build = Effect.gen(function*() {
    const admin = yield* SqlClient.SqlClient
    // Released with this connection.
    yield* admin`SELECT pg_advisory_lock(hashtext(${name}))`
    const existing = yield* admin`SELECT 1 FROM pg_database WHERE datname = ${name}`
    if (existing.length > 0) return name
    // Renamed when complete, so that a test process that is killed meanwhile leaves no half-filled template.
    const draft = randomName()
    yield* create(draft, "template0")
    // The failure of `prepare` is the one to report; a draft that remains is never copied.
    yield* withConnection(databaseUrl(server, draft), prepare).pipe(Effect.tapCause(() => Effect.ignore(drop(draft))))
    yield* admin`ALTER DATABASE ${admin(draft)} RENAME TO ${admin(name)}`
    return name
  })
  return withConnection(server, build) as Effect.Effect<string, E | SqlError.SqlError, Exclude<R, SqlClient.SqlClient>>
}

/** A new database and a pool on it. */
export const layerWith = (
  options: Options
): Layer.Layer<TestDatabase | PgClient.PgClient | SqlClient.SqlClient, SqlError.SqlError> =>
  Layer.unwrap(Effect.map(TestDatabase, ({ url }) => PgClient.layer({ ...options.client, url: Redacted.make(url) })))
    .pipe(
      Layer.provideMerge(Layer.effect(TestDatabase)(make(options)))
    )

/** A new empty database and a pool on it. A constant: both uses in one `Effect.provide` get the same database. */
export const layer: Layer.Layer<TestDatabase | PgClient.PgClient | SqlClient.SqlClient, SqlError.SqlError> = layerWith(
  {}
)
