/** Adds the privileges that the role lacks to the error of a statement that was denied. */
import type * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import { StatementFailed, StoreError } from "../../../schema/Errors.ts"
import type * as TableNames from "../../../schema/TableNames.ts"
import * as Roles from "../migrations/Roles.ts"
import * as Probe from "./Probe.ts"

const insufficientPrivilege = "42501"

/**
 * Names the privileges that all of these roles need and that the role of the configuration lacks, in errors with SQLSTATE
 * 42501, whose text only contains the table. Uses a connection of its own: the failed one may be in an aborted transaction.
 */
export const naming = (
  config: PgClient.PgClientConfig,
  names: TableNames.TableNames,
  roles: ReadonlyArray<Roles.Role>
) =>
<A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  self.pipe(Effect.catch((error) => {
    if (!(error instanceof StoreError)) return Effect.fail(error)
    const { reason } = error
    if (reason._tag !== "StatementFailed" || reason.code !== insufficientPrivilege) return Effect.fail(error)
    return Probe.connect(config).pipe(
      Effect.flatMap((connection) => connection.query(Roles.missing(names, roles), [], false)),
      Effect.scoped,
      Probe.bounded,
      Effect.map(({ rows }) => {
        const missing = rows.map(({ privilege, role }) => ({ role: String(role), privilege: String(privilege) }))
        return named(reason, missing, roles)
      }),
      // The error without the names is the one to report.
      Effect.orElseSucceed(() => error),
      Effect.flatMap((error) => Effect.fail(error as typeof error & E))
    )
  }))

const named = (
  { code, detail, operation, cause, constraint, mayHaveCommitted }: StatementFailed,
  missing: ReadonlyArray<Roles.Missing>,
  roles: ReadonlyArray<Roles.Role>
) => {
  const lacks = missing.length === 0 ? {} : {
    lacks: {
      role: missing[0]!.role,
      privileges: missing.map(({ privilege }) => privilege),
      grantedBy: roles.map((role) => `migrations/roles/${role}.sql`)
    }
  }
  return new StoreError({
    reason: new StatementFailed({
      operation,
      detail,
      cause,
      ...(code === undefined ? {} : { code }),
      ...(constraint === undefined ? {} : { constraint }),
      ...(mayHaveCommitted === undefined ? {} : { mayHaveCommitted }),
      ...lacks
    })
  })
}
