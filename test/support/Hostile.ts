/** Values that a handler may fail with and that throw, hang or mislead when they are inspected. */
import * as Schema from "effect/Schema"
import * as SqlError from "effect/sql/SqlError"
import * as Vm from "node:vm"

const boom = (): never => {
  throw new Error("inspected")
}

const throwing = new Proxy({}, {
  get: boom,
  getPrototypeOf: boom,
  has: boom,
  ownKeys: boom,
  getOwnPropertyDescriptor: boom
})

const revoked = () => {
  const { proxy, revoke } = Proxy.revocable({}, {})
  revoke()
  return proxy
}

const getter = (property: string, on: object = new Error("x")) =>
  Object.defineProperty(on, property, { get: boom, configurable: true })

const cyclic = () => {
  const [first, second] = [new Error("first"), new Error("second")]
  first.cause = second
  second.cause = first
  return new AggregateError([first, second], "both", { cause: first })
}

const sqlErrorWith = (reason: unknown) => Object.assign(Object.create(SqlError.SqlError.prototype), { reason })

/** An error that is not an instance of this realm's `Error`. */
export const otherRealm: unknown = Vm.runInNewContext("new TypeError('of another realm')")

/** The values, by what is wrong with them. */
export const values: ReadonlyArray<readonly [string, unknown]> = [
  ["a stack that is an array", Object.assign(new Error("x"), { stack: [] })],
  ["a stack that throws", getter("stack")],
  ["a message that throws", getter("message")],
  ["a message that is a symbol", Object.assign(new Error(), { message: Symbol("x") })],
  ["a message that is an object", Object.assign(new Error(), { message: throwing })],
  ["a name that throws", getter("name")],
  ["a cause that throws", getter("cause")],
  ["a tag that throws", getter("_tag", {})],
  ["a code that throws", sqlErrorWith({ _tag: "UnknownError", cause: getter("code") })],
  ["no reason", sqlErrorWith(undefined)],
  ["a reason that throws", sqlErrorWith(throwing)],
  ["a text of its own that throws", { toString: boom, toJSON: boom }],
  ["a primitive of its own that throws", { [Symbol.toPrimitive]: boom }],
  ["an equality of its own that throws", { [Symbol.for("~effect/interfaces/Equal")]: boom }],
  ["a proxy whose traps throw", throwing],
  ["a proxy that was revoked", revoked()],
  ["a proxy of a function", new Proxy(() => {}, { get: boom, has: boom, getPrototypeOf: boom })],
  ["no prototype", Object.create(null)],
  ["a thenable", getter("then", {})],
  ["causes in a circle", cyclic()],
  ["errors that throw", Object.assign(new AggregateError([]), { errors: throwing })],
  ["a huge text", "x".repeat(5_000_000)],
  ["half of a surrogate pair", "\uD83D"],
  ["a NUL", "a\u0000b"],
  ["another realm's error", otherRealm],
  ["nothing", undefined],
  ["null", null],
  ["an empty text", ""],
  ["a symbol", Symbol("x")],
  ["a bigint", 1n]
]

const behaviours = [
  "absent",
  "throws",
  "symbol",
  "number",
  "null",
  "huge",
  "self",
  "proxy",
  "array",
  "sql",
  "half"
] as const
const behaviour = Schema.Literals(behaviours)

/** A recipe for a value: its kind, and the behaviour of each property that a description may read. */
export const Recipe = Schema.Struct({
  base: Schema.Literals(["error", "aggregate", "sql", "object", "bare", "function", "array"]),
  name: behaviour,
  message: behaviour,
  stack: behaviour,
  cause: behaviour,
  code: behaviour,
  reason: behaviour,
  errors: behaviour,
  toString: behaviour,
  toJSON: behaviour
})

const bases: { readonly [K in typeof Recipe.Type["base"]]: () => object } = {
  error: () => new Error("x"),
  aggregate: () => new AggregateError([new Error("x"), throwing]),
  sql: () => sqlErrorWith({ _tag: "ConnectionError", cause: throwing }),
  object: () => ({}),
  bare: () => Object.create(null),
  function: () => () => {},
  array: () => []
}

/** Builds the value of a recipe. */
export const make = ({ base, ...properties }: typeof Recipe.Type): object => {
  const value = bases[base]()
  for (const [property, how] of Object.entries(properties)) {
    if (how === "absent") continue
    const result = {
      symbol: Symbol("x"),
      number: 7,
      null: null,
      huge: "x".repeat(10_000),
      self: value,
      proxy: throwing,
      array: [throwing],
      sql: sqlErrorWith(throwing),
      half: "\uDC00\u0000",
      throws: undefined
    }[how]
    Object.defineProperty(value, property, { get: how === "throws" ? boom : () => result, configurable: true })
  }
  return value
}
