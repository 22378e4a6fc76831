/**
 * Texts that a database can store.
 *
 * @since 0.1.0
 */

const surrogate = /\p{Surrogate}/u
const surrogates = /\p{Surrogate}/gu

/**
 * Why a text cannot be stored as it is, to follow its name in a message. PostgreSQL cannot store NUL, and UTF-8 cannot
 * represent half of a surrogate pair.
 *
 * @category utils
 * @since 0.1.0
 */
export const textProblem = (text: string): string | undefined =>
  text.includes("\u0000")
    ? "contains a NUL character, which the database cannot store"
    : surrogate.test(text)
    ? "contains half of a surrogate pair, which is no Unicode text"
    : undefined

/**
 * The text without what UTF-8 cannot represent and PostgreSQL cannot store: halves of surrogate pairs and NUL.
 *
 * @category utils
 * @since 0.1.0
 */
export const wellFormed = (text: string): string => text.replaceAll("\u0000", "").replace(surrogates, "\uFFFD")

/**
 * The text, well-formed and with at most `longest` characters; "..." marks where it was cut. In ASCII, because not every
 * database encoding has an ellipsis.
 *
 * @category utils
 * @since 0.1.0
 */
export const cut = (text: string, longest: number): string => {
  if (text.length <= longest) return wellFormed(text)
  const start = text.slice(0, longest - 3)
  // Not in the middle of a surrogate pair.
  return `${wellFormed(/[\uD800-\uDBFF]$/.test(start) ? start.slice(0, -1) : start)}...`
}

/**
 * The text as a sentence: ended by a period, unless it ends like one.
 *
 * @category utils
 * @since 0.1.0
 */
export const sentence = (text: string): string => {
  const trimmed = text.trimEnd()
  return /[.!?\u2026]$/.test(trimmed) ? trimmed : `${trimmed}.`
}

/**
 * The text in ASCII, which every database encoding has; other characters become their code points, such as `\u{e9}`.
 *
 * @category utils
 * @since 0.1.0
 */
export const ascii = (text: string): string =>
  wellFormed(text).replace(/[^ -~\t\r\n]/gu, (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`)
