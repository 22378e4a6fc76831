/**
 * The texts in which PostgreSQL's type `jsonb` returns JSON values: numbers keep every digit but have no exponent, and
 * the members of an object are sorted by the length of their names.
 */

/** A JSON value as `jsonb`: its text, and what `->>` returns of its members. */
interface Value {
  readonly text: string
  /** Undefined if `->>` returns NULL for the value. */
  readonly asText: string | undefined
  readonly members: ReadonlyMap<string, Value>
}

/**
 * Returns what the operator `->>` returns for a member of a JSON text: undefined, which stands for NULL, if the text is
 * not an object, has no such member, or if the member is null. The text must be valid.
 */
export const member = (json: string, name: string): string | undefined => parse(json).members.get(name)?.asText

const token = /"[^"\\]*(?:\\.[^"\\]*)*"|-?\d[\d.eE+-]*|[a-z]+|[{}[\],:]/g

const none: ReadonlyMap<string, Value> = new Map()

const parse = (json: string): Value => {
  const tokens = json.match(token) ?? []
  let index = 0
  const next = () => tokens[index++]!
  return parseValue(next(), next)
}

const parseValue = (first: string, next: () => string): Value => {
  if (first === "{") return parseObject(next)
  if (first === "[") return parseArray(next)
  if (first.startsWith("\"")) {
    const text = JSON.parse(first) as string
    return { text: JSON.stringify(text), asText: text, members: none }
  }
  if (first === "null") return { text: first, asText: undefined, members: none }
  const text = /\d/.test(first) ? decimal(first) : first
  return { text, asText: text, members: none }
}

const parseObject = (next: () => string): Value => {
  const members = new Map<string, Value>()
  for (let first = next(); first !== "}"; first = next()) {
    if (first === ",") continue
    next()
    members.set(JSON.parse(first) as string, parseValue(next(), next))
  }
  const sorted = [...members].map(([name, { text }]) => ({ bytes: bytesOf(name), name, text }))
    .sort((a, b) => a.bytes.length - b.bytes.length || (a.bytes < b.bytes ? -1 : 1))
  const text = `{${sorted.map(({ name, text }) => `${JSON.stringify(name)}: ${text}`).join(", ")}}`
  return { text, asText: text, members }
}

const encoder = new TextEncoder()

/** The bytes in UTF-8, as the characters of a text, which can be compared. */
const bytesOf = (text: string): string => Array.from(encoder.encode(text), (byte) => String.fromCharCode(byte)).join("")

const parseArray = (next: () => string): Value => {
  const items: Array<string> = []
  for (let first = next(); first !== "]"; first = next()) {
    if (first !== ",") items.push(parseValue(first, next).text)
  }
  const text = `[${items.join(", ")}]`
  return { text, asText: text, members: none }
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
