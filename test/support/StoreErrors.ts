/** Store errors in assertions. */
import { StoreError, type StoreErrorReason } from "../../src/schema/Errors.ts"

/** The reason of a store error; any other error itself. */
export const reasonOf = <E>(error: E): Exclude<E, StoreError> | StoreErrorReason =>
  error instanceof StoreError ? error.reason : error as Exclude<E, StoreError>
