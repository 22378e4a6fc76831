/** The transaction in which a migration runs: read-only, or after all other migrations of this library. */
import * as Effect from "effect/Effect"
import * as SqlClient from "effect/sql/SqlClient"
import type * as SqlError from "effect/sql/SqlError"
import type { InvalidSettings, StoreError } from "../../../schema/Errors.ts"
import * as TableNames from "../../../schema/TableNames.ts"
import { waitForServer } from "../../../services/worker/Startup.ts"
import * as ClientConfig from "../connection/ClientConfig.ts"
import { asJson } from "../connection/Codecs.ts"
import * as LockWait from "../connection/LockWait.ts"
import { quietly } from "../connection/PoolStatement.ts"
import { serverOf } from "../connection/Server.ts"
import { refail } from "../connection/SqlErrors.ts"
import * as TableSchemas from "../TableSchemas.ts"
import { MissingPrivileges } from "./MigrationErrors.ts"
import { literal, lock } from "./Sql.ts"

export interface Transaction {
  /**
   * As they were given, because messages contain them. With the schemas in which the tables were found if the names
   * could refer to temporary tables of the session.
   */
  readonly names: TableNames.TableNames
  readonly operation: string
  readonly query: <A extends object>(text: string) => Effect.Effect<ReadonlyArray<A>, SqlError.SqlError>
  readonly execute: (text: string) => Effect.Effect<unknown, SqlError.SqlError>
}

type Body<A, E, R> = (transaction: Transaction) => Effect.Effect<A, E | SqlError.SqlError, R>

/** Runs in a read-only transaction, without the lock that serializes migrations. */
export const readOnly = <A, E, R>(operation: string, options: TableNames.Options, body: Body<A, E, R>) =>
  run(operation, "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY", options, body)

/** Runs in one transaction, after any other migration of this library has ended. */
export const exclusive = <A, E, R>(operation: string, options: TableNames.Options, body: Body<A, E, R>) =>
  // Each statement must read what other migrations committed before the lock was acquired.
  run(operation, "BEGIN ISOLATION LEVEL READ COMMITTED", options, (transaction) =>
    Effect.andThen(transaction.execute(`SELECT ${lock}`), body(transaction)))

const run = <A, E, R>(
  operation: string,
  begin: string,
  options: TableNames.Options,
  body: Body<A, E, R>
): Effect.Effect<A, Exclude<E, SqlError.SqlError> | InvalidSettings | StoreError, SqlClient.SqlClient | R> =>
  Effect.gen(function*() {
    const names = yield* Effect.fromResult(TableNames.make(options))
    const client = yield* SqlClient.SqlClient
    // Without the configuration, only the server's name is missing from messages.
    const config = ClientConfig.of(client)
    if (config !== undefined) yield* ClientConfig.check(config)
    const sql = client.withoutTransforms()
    const query = <A extends object>(text: string) => asJson<A>(sql, text)
    const execute = (text: string) => sql.unsafe(text)
    return yield* Effect.flatMap(locate(names, query), (names) => body({ execute, names, operation, query })).pipe(
      sql.withTransaction,
      Effect.provideService(SqlClient.BeginTransaction, begin),
      LockWait.reporting({ sql, table: TableNames.qualified(names, "meta"), operation: `"${operation}"` }),
      refail(serverOf(config ?? {}), operation),
      waitForServer,
      quietly
    )
  })

/** Adds the schemas of the tables to the names if the session may have temporary tables. */
const locate = Effect.fnUntraced(function*(names: TableNames.TableNames, query: Transaction["query"]) {
  const [row] = yield* query<{ schemas: ReadonlyArray<string | null>; current: string | null }>(
    `SELECT ${TableSchemas.find(names, TableSchemas.searchPath)} AS schemas,
      (${TableSchemas.searchPath})[1] AS current
    WHERE pg_catalog.pg_my_temp_schema() <> 0`
  )
  return row === undefined ? names : TableSchemas.locate(names, row.schemas, row.current)
})

/** Fails if a query of `Privileges` finds missing privileges. */
export const requirePrivileges = Effect.fnUntraced(function*({ operation, query }: Transaction, missing: string) {
  const rows = yield* query<{ role: string; privilege: string }>(missing)
  const [first] = rows
  if (first === undefined) return
  return yield* new MissingPrivileges({ operation, role: first.role, privileges: rows.map((row) => row.privilege) })
})

export const runAll = ({ execute }: Transaction, statements: ReadonlyArray<string>) =>
  Effect.forEach(statements, execute, { discard: true })

export const exists = ({ names, query }: Transaction, key: TableNames.TableKey) =>
  Effect.map(
    query<{ found: boolean }>(`SELECT to_regclass(${literal(TableNames.qualified(names, key))}) IS NOT NULL AS found`),
    (rows) => rows[0]?.found === true
  )
