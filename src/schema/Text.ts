/** Functions on texts: storable forms, limits of length, and similarity of names. */

const surrogate = /\p{Surrogate}/u
const surrogates = /\p{Surrogate}/gu

/**
 * Returns the reason why a text cannot be stored unchanged, worded to follow its name in a message; undefined if it can
 * be. PostgreSQL cannot store NUL, and UTF-8 cannot represent half of a surrogate pair.
 */
export const textProblem = (text: string): string | undefined =>
  text.includes("\u0000")
    ? "contains a NUL character, which the database cannot store"
    : surrogate.test(text)
    ? "contains half of a surrogate pair, which is not valid Unicode"
    : undefined

/**
 * Returns the text in a storable form: halves of surrogate pairs, which UTF-8 cannot represent, are replaced by U+FFFD,
 * and NUL, which PostgreSQL cannot store, is removed.
 */
export const wellFormed = (text: string): string => text.replaceAll("\u0000", "").replace(surrogates, "\uFFFD")

/**
 * Returns the text, well-formed and truncated to at most `longest` characters. A truncated text ends with three ASCII
 * periods, because not every database encoding has an ellipsis.
 */
export const cut = (text: string, longest: number): string => {
  if (text.length <= longest) return wellFormed(text)
  const start = text.slice(0, longest - 3)
  // A surrogate pair must not be cut in the middle.
  return `${wellFormed(/[\uD800-\uDBFF]$/.test(start) ? start.slice(0, -1) : start)}...`
}

/** Returns the text as a sentence: a period is appended unless the text ends with a punctuation mark. */
export const sentence = (text: string): string => {
  const trimmed = text.trimEnd()
  return /[.!?\u2026]$/.test(trimmed) ? trimmed : `${trimmed}.`
}

/**
 * Returns the text in ASCII, which every database encoding contains. Other characters are replaced by their code
 * points, such as `\u{e9}`.
 */
export const ascii = (text: string): string =>
  wellFormed(text).replace(/[^ -~\t\r\n]/gu, (character) => `\\u{${character.codePointAt(0)?.toString(16)}}`)

/**
 * Returns the edit distance: how many characters must be inserted, removed or replaced to turn one text into the other.
 */
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

/** The maximum edit distance between a mistyped name and a known one. */
const mostTypos = 3

/** Returns the known name that is closest to a mistyped one; undefined if none is close enough. */
export const nearest = (name: string, names: ReadonlyArray<string>): string | undefined =>
  names
    .map((candidate) => ({ candidate, typos: distance(name, candidate) }))
    .filter(({ typos }) => typos <= mostTypos)
    .sort((a, b) => a.typos - b.typos)[0]?.candidate
