/**
 * What of a text a database can keep.
 *
 * @since 0.1.0
 */

const loneSurrogate = /\p{Surrogate}/u

/**
 * Why a text cannot be stored as it is, to follow on what it is; PostgreSQL knows no NUL, and UTF-8 no half of a surrogate
 * pair, which it would store as another text.
 *
 * @category utils
 * @since 0.1.0
 */
export const textProblem = (text: string): string | undefined =>
  text.includes("\u0000")
    ? "contains a NUL character, which the database cannot store"
    : loneSurrogate.test(text)
    ? "contains half of a surrogate pair, which is no Unicode text"
    : undefined
