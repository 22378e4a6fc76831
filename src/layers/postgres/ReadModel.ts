/**
 * Read models in PostgreSQL: creates their tables when a program starts, and writes their rows.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlConnection from "effect/sql/SqlConnection"
import type * as SqlError from "effect/sql/SqlError"
import { type InvalidSettings, ReadModelFailed, StoreError } from "../../schema/Errors.ts"
import { layerPer } from "../../services/LayerPer.ts"
import { waitForServer } from "../../services/worker/Startup.ts"
import * as ClientConfig from "./connection/ClientConfig.ts"
import { quietly } from "./connection/PoolStatement.ts"
import { serverOf } from "./connection/Server.ts"
import { refail } from "./connection/SqlErrors.ts"

/**
 * One lock for all read models of a database, because two of them may create the same schema, type or extension. The first
 * key is this library's, "pupr" in ASCII.
 */
const lock = "SELECT pg_advisory_xact_lock(1886744690, 0)"

const begin = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"

/** After this time, waiting for the statements of another process is logged. */
const longWait = "5 seconds"

/**
 * Runs the statements that create a read model, in one transaction, while no other process does.
 *
 * **When to use**
 *
 * Use before a worker starts, for read models that are not created by migrations.
 *
 * **Details**
 *
 * `CREATE TABLE IF NOT EXISTS` alone fails when several processes start at once: both find no table, and the second
 * fails with a unique violation in the system catalog. Here the second process waits for the first and then finds the
 * table. The lock belongs to the transaction, so it works behind poolers. Transient failures are retried for five
 * seconds. A statement that the server refuses is reported as `ReadModelFailed`, and nothing of the read model is
 * created: the caller corrects the statements, or the operator grants the privileges. Other errors of `create` are
 * neither retried nor converted.
 *
 * **Gotchas**
 *
 * The statements run at every start: write `IF NOT EXISTS`. They run in a transaction of the client in the context;
 * statements that cannot run in one, such as `CREATE INDEX CONCURRENTLY`, belong in a migration.
 *
 * **Example**
 *
 * ```ts
 * import { ReadModel } from "pupsourcing-orchestrator"
 *
 * const users = ReadModel.run("users", (sql) => sql`CREATE TABLE IF NOT EXISTS users (id text PRIMARY KEY)`)
 * ```
 *
 * @category running
 * @since 0.1.0
 */
export const run = <A, E, R>(
  name: string,
  create: (sql: SqlClient.SqlClient) => Effect.Effect<A, E, R>
): Effect.Effect<
  A,
  Exclude<E, SqlError.SqlError> | InvalidSettings | ReadModelFailed | StoreError,
  R | SqlClient.SqlClient
> =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const config = ClientConfig.of(sql)
    if (config !== undefined) yield* ClientConfig.check(config)
    const report = Effect.sleep(longWait).pipe(
      Effect.andThen(Effect.logWarning(
        `Read model "${name}" waits for another process that creates read models in this database.`
      )),
      Effect.andThen(Effect.never)
    )
    return yield* Effect.raceFirst(quietly(sql.unsafe(lock).unprepared), report).pipe(
      Effect.andThen(create(sql)),
      sql.withTransaction,
      Effect.provideService(SqlClient.BeginTransaction, begin),
      refail(serverOf(config ?? {}), "create a read model"),
      waitForServer,
      Effect.mapError((error) => {
        if (!(error instanceof StoreError) || error.reason._tag !== "StatementFailed") return error
        const { cause, code, detail } = error.reason
        return new ReadModelFailed({ readModel: name, detail, cause, ...(code === undefined ? {} : { code }) })
      })
    )
  })

/**
 * `run` as a layer, once for each client. Provide it to the orchestrator's layer, so that the tables exist before the
 * first event is handled.
 *
 * **Example**
 *
 * ```ts
 * import { Effect, Layer } from "effect"
 * import { Orchestrator, Projection, ReadModel } from "pupsourcing-orchestrator"
 *
 * const users = Projection.make("users", { handle: () => Effect.void })
 *
 * const Worker = Orchestrator.layer({ replicaSet: "main-projections", projections: [users] }).pipe(
 *   Layer.provide(ReadModel.layer("users", (sql) => sql`CREATE TABLE IF NOT EXISTS users (id text PRIMARY KEY)`))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = <A, E, R>(
  name: string,
  create: (sql: SqlClient.SqlClient) => Effect.Effect<A, E, R>
): Layer.Layer<
  never,
  Exclude<E, SqlError.SqlError> | InvalidSettings | ReadModelFailed | StoreError,
  R | SqlClient.SqlClient
> => layerPer(SqlClient.SqlClient, () => Layer.effectDiscard(run(name, create)))

/**
 * A statement of the `SqlClient` in the context: the same as `SqlClient.use((sql) => sql…)`. In a handler, it is part of
 * the batch's transaction.
 *
 * **When to use**
 *
 * For a handler that runs one statement. For fragments such as `sql.in` and `sql.insert`, use the `SqlClient` itself.
 *
 * **Example**
 *
 * ```ts
 * import { Projection, ReadModel } from "pupsourcing-orchestrator"
 *
 * export const users = Projection.make("users", {
 *   aggregateTypes: ["User"],
 *   handle: ({ aggregateId }) => ReadModel.sql`INSERT INTO users (id) VALUES (${aggregateId}) ON CONFLICT DO NOTHING`
 * })
 * ```
 *
 * @category running
 * @since 0.1.0
 */
export const sql = <A extends object = SqlConnection.Row>(
  strings: TemplateStringsArray,
  ...args: ReadonlyArray<unknown>
): Effect.Effect<ReadonlyArray<A>, SqlError.SqlError, SqlClient.SqlClient> =>
  SqlClient.SqlClient.use((client) => client<A>(strings, ...args))
