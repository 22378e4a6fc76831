/**
 * Texts that a database can store.
 *
 * @since 0.1.0
 */

const surrogate = /\p{Surrogate}/u
const surrogates = /\p{Surrogate}/gu

/**
 * Why a text cannot be stored unchanged, to be appended to its name in a message. PostgreSQL cannot store NUL, and
 * UTF-8 cannot represent half of a surrogate pair.
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
 * The text without halves of surrogate pairs, which UTF-8 cannot represent, and without NUL, which PostgreSQL cannot
 * store.
 *
 * @category utils
 * @since 0.1.0
 */
export const wellFormed = (text: string): string => text.replaceAll("\u0000", "").replace(surrogates, "\uFFFD")

/**
 * The text, well-formed and with at most `longest` characters; "..." marks where it was cut. These are ASCII
 * characters, because not every database encoding has an ellipsis.
 *
 * @category utils
 * @since 0.1.0
 */
export const cut = (text: string, longest: number): string => {
  if (text.length <= longest) return wellFormed(text)
  const start = text.slice(0, longest - 3)
  // A surrogate pair must not be cut in the middle.
  return `${wellFormed(/[\uD800-\uDBFF]$/.test(start) ? start.slice(0, -1) : start)}...`
}

/**
 * The text as a sentence: a period is appended unless it ends with a punctuation mark.
 *
 * @category utils
 * @since 0.1.0
 */
export const sentence = (text: string): string => {
  const trimmed = text.trimEnd()
  return /[.!?\u2026]$/.test(trimmed) ? trimmed : `${trimmed}.`
}

/**
 * The text in ASCII, which every database encoding contains; other characters are replaced by their code points, such
 * as `\u{e9}`.
 *
 * @category utils
 * @since 0.1.0
 */
export const ascii = (text: string): string =>
  wellFormed(text).replace(/[^ -~\t\r\n]/gu, (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`)

/** How many letters have to be inserted, removed or replaced to turn one text into the other. */
const distance = (a: string, b: string): number => {
  let row = Array.from({ length: b.length + 1 }, (_, index) => index)
  for (let i = 1; i <= a.length; i++) {
    const above = row
    row = [i]
    for (let j = 1; j <= b.length; j++) {
      const replaced = (above[j - 1] ?? 0) + (a[i - 1] === b[j - 1] ? 0 : 1)
      row.push(Math.min(replaced, (above[j] ?? 0) + 1, (row[j - 1] ?? 0) + 1))
    }
  }
  return row[b.length] ?? 0
}

/** The maximum number of letters by which a mistyped name may differ from a known one. */
const mostTypos = 3

/**
 * The known name that is closest to a mistyped one; undefined when none is close enough.
 *
 * @category utils
 * @since 0.1.0
 */
export const nearest = (name: string, names: ReadonlyArray<string>): string | undefined =>
  names
    .map((candidate) => ({ candidate, typos: distance(name, candidate) }))
    .filter(({ typos }) => typos <= mostTypos)
    .sort((a, b) => a.typos - b.typos)[0]?.candidate
