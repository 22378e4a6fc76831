/** What the statements about parked events share. */
import type * as Effect from "effect/Effect"
import type * as SqlError from "effect/sql/SqlError"
import type { StoreError } from "../../../schema/Errors.ts"
import { inTime, quietly } from "../connection/PoolStatement.ts"
import type { Database } from "../Database.ts"
import type { Role } from "../migrations/Roles.ts"

export type Db = Database["Service"]

/** Runs a statement outside of a batch. */
export const alone = <A, E, R>(
  { refail }: Db,
  operation: string,
  self: Effect.Effect<A, E | SqlError.SqlError, R>,
  roles?: ReadonlyArray<Role>
): Effect.Effect<A, Exclude<E, SqlError.SqlError> | StoreError, R> => refail(operation, roles)(inTime(quietly(self)))

/** SQL: locks rows `p` of a projection in an order that all statements share, so that they cannot deadlock. */
export const lockInOrder = "ORDER BY p.position FOR UPDATE OF p"
