/**
 * The texts in which PostgreSQL's type `jsonb` returns JSON values: numbers keep every digit but have no exponent, and
 * the members of an object are sorted by the length of their names.
 */

/**
 * Returns what the operator `->>` returns for a member of a JSON text: undefined, which stands for NULL, if the text is
 * not an object, has no such member, or if the member is null. The text must be valid. Other members may be nested
 * deeper than the stack of this process allows.
 */
export const member = (json: string, name: string): string | undefined => {
  const tokens = json.match(token) ?? []
  if (tokens[0] !== "{") return undefined
  let found: number | undefined
  for (let index = 1; tokens[index] !== "}"; index = endOf(tokens, index + 2)) {
    if (tokens[index] === ",") index++
    // Of several members with this name, the last one counts.
    if (JSON.parse(tokens[index]!) === name) found = index + 2
  }
  if (found === undefined || tokens[found] === "null") return undefined
  const first = tokens[found]!
  return first.startsWith("\"") ? JSON.parse(first) as string : textFrom(tokens, found)
}

const token = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*|[a-z]+|[{}[\],:]/g

/** Returns the index after the value that begins at `index`. */
const endOf = (tokens: ReadonlyArray<string>, index: number): number => {
  let depth = 0
  do {
    const next = tokens[index++]!
    if (next === "{" || next === "[") depth++
    else if (next === "}" || next === "]") depth--
  } while (depth > 0)
  return index
}

const textFrom = (tokens: ReadonlyArray<string>, index: number): string => {
  const next = () => tokens[index++]!
  return textOf(next(), next)
}

const textOf = (first: string, next: () => string): string => {
  if (first === "{") return objectText(next)
  if (first === "[") return arrayText(next)
  if (first.startsWith("\"")) return JSON.stringify(JSON.parse(first))
  return /\d/.test(first) ? decimal(first) : first
}

const objectText = (next: () => string): string => {
  const members = new Map<string, string>()
  for (let first = next(); first !== "}"; first = next()) {
    if (first === ",") continue
    next()
    members.set(JSON.parse(first) as string, textOf(next(), next))
  }
  const sorted = [...members].map(([name, text]) => ({ bytes: bytesOf(name), name, text }))
    .sort((a, b) => a.bytes.length - b.bytes.length || (a.bytes < b.bytes ? -1 : 1))
  return `{${sorted.map(({ name, text }) => `${JSON.stringify(name)}: ${text}`).join(", ")}}`
}

const encoder = new TextEncoder()

/** The bytes in UTF-8, as the characters of a text, which can be compared. */
const bytesOf = (text: string): string => Array.from(encoder.encode(text), (byte) => String.fromCharCode(byte)).join("")

const arrayText = (next: () => string): string => {
  const items: Array<string> = []
  for (let first = next(); first !== "]"; first = next()) {
    if (first !== ",") items.push(textOf(first, next))
  }
  return `[${items.join(", ")}]`
}

/** PostgreSQL refuses numbers with more digits before the point. */
const mostDigits = 131_072

/** A number without an exponent. As in `numeric`, digits after the point remain, also if they are zeros. */
const decimal = (number: string): string => {
  const [, sign = "", whole = "", fraction = "", exponent = "0"] =
    /^(-?)(\d+)(?:\.(\d+))?(?:[eE]([+-]?\d+))?$/.exec(number) ?? []
  const shift = Number(exponent)
  if (Math.abs(shift) > mostDigits) return number
  const digits = "0".repeat(Math.max(0, -shift)) + whole + fraction + "0".repeat(Math.max(0, shift - fraction.length))
  const scale = Math.max(0, fraction.length - shift)
  const point = digits.length - scale
  const before = digits.slice(0, point).replace(/^0+(?=\d)/, "")
  const text = scale === 0 ? before : `${before}.${digits.slice(point)}`
  return /[1-9]/.test(digits) ? sign + text : text
}
