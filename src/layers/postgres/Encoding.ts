/**
 * Texts and the encoding of the database: LATIN1, EUC and others have only a part of Unicode.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as SqlError from "effect/sql/SqlError"
import { ascii } from "../../schema/Text.ts"
import { codeOf } from "./DatabaseErrors.ts"

/** A character without an equivalent, an invalid one, and a text that is too long for its column. */
const unstorable = new Set(["22P05", "22021", "22001"])

/**
 * The database cannot store the text of a statement's parameter.
 *
 * @category guards
 * @since 0.1.0
 */
export const isUnstorable = (error: SqlError.SqlError): boolean => unstorable.has(codeOf(error) ?? "")

/** Stands for a text of which nothing can be stored. */
const placeholder = "(not storable: see the log)"

/**
 * Writes a text that is meant for people. Where the database cannot store it, the write is repeated with less of the
 * text, because what is written beside it must be recorded.
 *
 * **Gotchas**
 *
 * Not inside a transaction, which the first failure would abort.
 *
 * @category combinators
 * @since 0.1.0
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
