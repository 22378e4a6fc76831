/**
 * Handles texts that the database's encoding cannot represent: LATIN1, EUC and others contain only a part of Unicode.
 */
import * as Effect from "effect/Effect"
import * as SqlError from "effect/sql/SqlError"
import { ascii } from "../../../schema/Text.ts"
import { meaningOf } from "./SqlErrors.ts"

/** Whether the database cannot store the text of a statement's parameter. */
export const isUnstorable = (error: SqlError.SqlError): boolean => meaningOf(error).isUnstorable === true

/** Replaces a text that cannot be stored even in part. */
const placeholder = "(not storable: see the log)"

/**
 * Writes a diagnostic text. If the database cannot store it, the write is repeated with a reduced text, because the
 * other values of the same write must be recorded.
 *
 * **Gotchas**
 *
 * Do not use this inside a transaction: the first failure would abort it.
 */
export const writing = <A, E, R>(
  text: string,
  write: (text: string) => Effect.Effect<A, E | SqlError.SqlError, R>
): Effect.Effect<A, E | SqlError.SqlError, R> =>
  [ascii(text), placeholder].reduce(
    (written, less) =>
      Effect.catchIf(
        written,
        (error): error is SqlError.SqlError => SqlError.isSqlError(error) && isUnstorable(error),
        () => write(less)
      ),
    write(text)
  )
