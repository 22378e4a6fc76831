/**
 * Converts values of an application to JSON text, and refuses values that `JSON.stringify` would silently lose or
 * change.
 */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"

/** Maximum nesting depth. Deeper values would exceed the stack of this process or, as `jsonb`, of the server. */
const deepest = 1000

const longestKey = 40
const longestPath = 12

/** Thrown inside `encode` only. */
class Refusal {
  readonly problem: string
  constructor(problem: string) {
    this.problem = problem
  }
}

const refuse = (problem: string): never => {
  throw new Refusal(problem)
}

const step = (key: string | number): string =>
  typeof key === "number"
    ? `[${key}]`
    : /^[A-Za-z_$][\w$]{0,39}$/.test(key)
    ? `.${key}`
    : `[${JSON.stringify(key.length > longestKey ? `${key.slice(0, longestKey)}...` : key)}]`

/** Returns the path to a part of a value in messages: `payload.address[0]`. */
export const pathText = (root: string, path: ReadonlyArray<string | number>): string => {
  const steps = path.map(step)
  return root + (steps.length <= longestPath
    ? steps.join("")
    : `${steps.slice(0, longestPath - 2).join("")}...${steps[steps.length - 1]!}`)
}

const kindOf = (value: object): string => Object.prototype.toString.call(value).slice(8, -1)

/** Whether the prototype is an `Object.prototype`, of this realm or another. */
const isPlain = (prototype: object): boolean => Object.getPrototypeOf(prototype) === null

/** Whether the value was made by `JSON.rawJSON`; such a value is written unchanged. */
const isRaw = (value: object): boolean =>
  (JSON as { readonly isRawJSON?: (value: unknown) => boolean }).isRawJSON?.(value) === true

/** Detects invalid dates, including those of date libraries: their `toJSON` returns null. */
const isInvalidDate = (value: unknown): boolean =>
  typeof value === "object" && value !== null && "valueOf" in value && typeof value.valueOf === "function" &&
  Number.isNaN(value.valueOf())

/** Returns the result of the value's `toJSON`, called as `JSON.stringify` calls it, or the value itself. */
const replaced = (value: unknown, key: string | number): unknown => {
  if (value === null || typeof value !== "object" && typeof value !== "function" && typeof value !== "bigint") {
    return value
  }
  const { toJSON } = value as { readonly toJSON?: unknown }
  if (typeof toJSON !== "function") return value
  if (Redacted.isRedacted(value)) return refuse("is redacted: its value would be lost")
  if (Effect.isEffect(value) && !Exit.isExit(value) && kindOf(value) !== "Error") {
    return refuse("is an Effect that was not run")
  }
  const json: unknown = toJSON.call(value, String(key))
  return json === null && isInvalidDate(value) ? refuse("is an invalid date") : json
}

/**
 * Refuses objects that JSON would write without their data, such as collections, errors, regular expressions and
 * promises.
 */
const refuseOpaque = (value: object, keys: ReadonlyArray<string>): void => {
  const prototype = Object.getPrototypeOf(value) as object | null
  const kind = kindOf(value)
  if (prototype !== null && (kind !== "Object" || Symbol.toStringTag in value)) {
    refuse(`is a value of kind ${kind.slice(0, longestKey)}, which has no JSON form`)
  }
  if (keys.length === 0 && (prototype !== null && !isPlain(prototype) || Reflect.ownKeys(value).length > 0)) {
    refuse("is an object without enumerable properties of its own: JSON would write {}. Give its class a toJSON")
  }
}

/**
 * Returns the JSON text of a value, or the reason why it has none. The reason contains the path to the refused part,
 * but never its content.
 *
 * **Details**
 *
 * The text is that of `JSON.stringify`: `toJSON` is called, properties that are undefined are left out, `-0` is
 * written as `0`. Where `JSON.stringify` drops or changes data, the value is refused: `NaN` and infinite numbers;
 * undefined at the top level or inside an array; holes and named properties of arrays; functions, symbols and bigints;
 * invalid dates; effects and redacted values; objects whose data is not in enumerable properties of their own, such as
 * collections, errors, regular expressions, promises, boxed primitives, bytes inside a value, and instances of
 * classes with private fields only. Also refused are values that contain themselves, are nested more than 1000 levels
 * deep, or throw when they are read.
 *
 * `root` is the name of the value in the reason. `textProblem` returns the reason to refuse a string or key, or
 * undefined.
 */
export const encode = (
  root: string,
  value: unknown,
  textProblem: (text: string) => string | undefined = () => undefined
): Result.Result<string, string> => {
  const path: Array<string | number> = []
  const ancestors = new Set<object>()

  const text = (value: string): string => {
    const problem = textProblem(value)
    return problem === undefined ? value : refuse(problem)
  }

  const items = (array: ReadonlyArray<unknown>): unknown => {
    const copy: Array<unknown> = []
    for (let index = 0; index < array.length; index++) {
      path.push(index)
      if (!Object.hasOwn(array, index)) refuse("is an empty slot of an array: JSON would write null")
      const item = plain(array[index], index)
      copy.push(item === undefined ? refuse("is undefined inside of an array: JSON would write null") : item)
      path.pop()
    }
    if (Object.keys(array).length !== array.length) refuse("is an array with named properties: JSON would drop them")
    return copy
  }

  const properties = (object: object): unknown => {
    const keys = Object.keys(object)
    refuseOpaque(object, keys)
    const copy: Record<string, unknown> = {}
    for (const key of keys) {
      path.push(key)
      text(key)
      const value = plain((object as { readonly [key: string]: unknown })[key], key)
      if (key === "__proto__") Object.defineProperty(copy, key, { value, enumerable: true })
      else copy[key] = value
      path.pop()
    }
    return copy
  }

  /** Returns a copy that consists of JSON values only, so that each part of the value is read once. */
  const plain = (given: unknown, key: string | number): unknown => {
    const value = replaced(given, key)
    switch (typeof value) {
      case "string":
        return text(value)
      case "number":
        return Number.isFinite(value) ? value : refuse(`is ${value}: JSON would write null`)
      case "boolean":
      case "undefined":
        return value
      case "object": {
        if (value === null || isRaw(value)) return value
        if (ancestors.has(value)) return refuse("contains itself")
        if (ancestors.size === deepest) return refuse(`is nested more than ${deepest} levels deep`)
        ancestors.add(value)
        const copy = Array.isArray(value) ? items(value) : properties(value)
        ancestors.delete(value)
        return copy
      }
      default:
        return refuse(`is a ${typeof value}, which has no JSON form`)
    }
  }

  return Result.try({
    try: () => JSON.stringify(plain(value, "")) ?? refuse("is undefined"),
    catch: (error) =>
      `${pathText(root, path)} ${error instanceof Refusal ? error.problem : "throws an error when it is read"}`
  })
}
