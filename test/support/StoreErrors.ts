/** Store errors of tests, and their reasons. */
import { DatabaseUnavailable, StoreError, type StoreErrorReason } from "../../src/schema/Errors.ts"

export const unavailable = (condition: DatabaseUnavailable["condition"]): StoreError =>
  new StoreError({
    reason: new DatabaseUnavailable({ condition, server: "db:5432", database: "app", user: "app", cause: "test" })
  })

/** The reason of a store error; any other error itself. */
export const reasonOf = <E>(error: E): Exclude<E, StoreError> | StoreErrorReason =>
  error instanceof StoreError ? error.reason : error as Exclude<E, StoreError>
