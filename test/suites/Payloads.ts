/**
 * Payloads of every kind that a caller may pass, from this realm and from another one, as with jest, jsdom and
 * `node:vm`.
 */
import * as Chunk from "effect/Chunk"
import * as Data from "effect/Data"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as HashMap from "effect/HashMap"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as Schema from "effect/Schema"
import * as Stream from "effect/Stream"
import * as Vm from "node:vm"

const realm = Vm.createContext({})

const elsewhere = (code: string): unknown => Vm.runInContext(code, realm)

const source = Uint8Array.of(9, 0, 255, 1, 2, 3, 4, 5, 128, 9)

class Subclass extends Uint8Array {
  readonly label = "bytes"
}

const shared = new SharedArrayBuffer(8)
new Uint8Array(shared).set([0, 255, 1, 2, 3, 4, 5, 128])

/** Each holds the bytes 0 255 1 2 3 4 5 128. */
export const bytes: ReadonlyArray<readonly [kind: string, payload: unknown]> = [
  ["Uint8Array with an offset", source.subarray(1, 9)],
  ["Buffer", Buffer.from(source.subarray(1, 9))],
  [
    "part of a pooled Buffer",
    Buffer.from("\u0009\u0000\u00ff\u0001\u0002\u0003\u0004\u0005\u0080", "latin1").subarray(1)
  ],
  ["subclass", Subclass.from(source.subarray(1, 9))],
  ["ArrayBuffer", source.buffer.slice(1, 9)],
  ["SharedArrayBuffer", shared],
  ["view of a SharedArrayBuffer", new Uint8Array(shared)],
  ["DataView", new DataView(source.buffer, 1, 8)],
  ["Int8Array", new Int8Array(source.buffer, 1, 8)],
  ["Uint8ClampedArray", new Uint8ClampedArray(source.buffer, 1, 8)],
  ["Uint16Array", new Uint16Array(source.buffer.slice(1, 9))],
  ["Float32Array", new Float32Array(source.buffer.slice(1, 9))],
  ["Float64Array", new Float64Array(source.buffer.slice(1, 9))],
  ["BigInt64Array", new BigInt64Array(source.buffer.slice(1, 9))],
  ["Uint8Array of another realm", elsewhere("Uint8Array.of(0, 255, 1, 2, 3, 4, 5, 128)")],
  ["ArrayBuffer of another realm", elsewhere("Uint8Array.of(0, 255, 1, 2, 3, 4, 5, 128).buffer")],
  ["DataView of another realm", elsewhere("new DataView(Uint8Array.of(9, 0, 255, 1, 2, 3, 4, 5, 128).buffer, 1)")]
]

export const expectedBytes = [0, 255, 1, 2, 3, 4, 5, 128]

class Point {
  readonly x: number
  readonly y = 2
  constructor(x: number) {
    this.x = x
  }
}

class Amount extends Schema.Class<Amount>("Amount")({ cents: Schema.Int }) {}

class Failed extends Schema.TaggedError<Failed>()("Failed", { step: Schema.String }) {}

/** Values with a JSON form, each with the value that is read back. */
export const jsonValues: ReadonlyArray<readonly [kind: string, payload: unknown, read: unknown]> = [
  ["null", null, null],
  ["false", false, false],
  ["minus zero", { n: -0 }, { n: 0 }],
  ["texts", ["", "ä 🚀 \" \\ \n", "\u0000", "\ud800"], ["", "ä 🚀 \" \\ \n", "\u0000", "\ud800"]],
  ["undefined properties", { a: undefined, b: 1 }, { b: 1 }],
  ["own __proto__", JSON.parse("{\"__proto__\":{\"a\":1}}"), JSON.parse("{\"__proto__\":{\"a\":1}}")],
  ["null prototype", Object.assign(Object.create(null), { a: 1 }), { a: 1 }],
  ["object of another realm", elsewhere("({ a: [1, { b: null }], d: new Date(0) })"), {
    a: [1, { b: null }],
    d: "1970-01-01T00:00:00.000Z"
  }],
  ["Date", { at: new Date(0) }, { at: "1970-01-01T00:00:00.000Z" }],
  ["class instance", new Point(1), { x: 1, y: 2 }],
  ["Schema.Class", new Amount({ cents: 5 }), { cents: 5 }],
  ["typed error", { reason: new Failed({ step: "pay" }) }, { reason: { _tag: "Failed", step: "pay" } }],
  ["toJSON", { a: { toJSON: (key: string) => `at ${key}` } }, { a: "at a" }],
  ["Effect data", [Option.some(1), DateTime.makeUnsafe(0), Chunk.make(1), HashMap.make(["a", 1])], [
    { _id: "Option", _tag: "Some", value: 1 },
    "1970-01-01T00:00:00.000Z",
    { _id: "Chunk", values: [1] },
    { _id: "HashMap", values: [["a", 1]] }
  ]],
  ["the same object twice", ((one) => [one, one])({ a: 1 }), [{ a: 1 }, { a: 1 }]],
  ["proxy of an object", new Proxy({ a: [1] }, {}), { a: [1] }],
  ["text of JSON.rawJSON", rawJson("12345678"), 12345678]
]

/** A value whose given JSON text `JSON.stringify` writes unchanged. */
export function rawJson(text: string): unknown {
  // Node has the function; TypeScript does not declare it yet.
  return (JSON as unknown as { readonly rawJSON: (text: string) => unknown }).rawJSON(text)
}

const cyclic: Record<string, unknown> = { secret: 1 }
cyclic["list"] = [cyclic]

const nested = (levels: number): unknown => {
  let value: unknown = "secret"
  for (let level = 0; level < levels; level++) value = [value]
  return value
}

class Hidden {
  readonly #secret = "secret"
  get secret(): string {
    return this.#secret
  }
}

class LabeledMap extends Map<string, string> {
  readonly label = "secret"
}

const revoked = Proxy.revocable({}, {})
revoked.revoke()

const transferred = new ArrayBuffer(8)
const viewOfTransferred = new Uint8Array(transferred)
structuredClone(transferred, { transfer: [transferred] })

/** Values without a JSON form, alone or nested, each with the path and a part of the reason in the error. */
export const refused: ReadonlyArray<readonly [payload: unknown, path: string, reason: string]> = [
  [undefined, "payload", "undefined"],
  [() => "secret", "payload", "function"],
  [Symbol("secret"), "payload", "symbol"],
  [1n, "payload", "bigint"],
  [Number.NaN, "payload", "NaN"],
  [{ a: { "b c": Number.POSITIVE_INFINITY } }, "payload.a[\"b c\"]", "Infinity"],
  [[1, [2, undefined]], "payload[1][1]", "undefined"],
  [[1, Object.assign([], { 1: "secret" })], "payload[1][0]", "empty slot"],
  [Object.assign(["secret"], { total: 1 }), "payload", "named properties"],
  ["secret".match(/s/), "payload", "named properties"],
  [{ a: Object(1n) as unknown }, "payload.a", "BigInt"],
  [[Object(Number.NaN)], "payload[0]", "Number"],
  [[Object("secret")], "payload[0]", "String"],
  [{ at: new Date(Number.NaN) }, "payload.at", "invalid date"],
  [{ at: elsewhere("new Date(NaN)") }, "payload.at", "invalid date"],
  [new Map([["secret", 1]]), "payload", "Map"],
  [elsewhere("new Map([['secret', 1]])"), "payload", "Map"],
  [{ list: [new Set(["secret"])] }, "payload.list[0]", "Set"],
  [new LabeledMap(), "payload", "Map"],
  [new WeakMap(), "payload", "WeakMap"],
  [new Map([["secret", 1]]).values(), "payload", "Map Iterator"],
  [
    (function*() {
      yield "secret"
    })(),
    "payload",
    "Generator"
  ],
  [Object.assign(new Error("secret"), { code: "secret" }), "payload", "Error"],
  [elsewhere("Object.assign(new Error('secret'), { code: 1 })"), "payload", "Error"],
  [/secret/, "payload", "RegExp"],
  [Promise.resolve("secret"), "payload", "Promise"],
  [new Blob(["secret"]), "payload", "Blob"],
  [new File(["secret"], "secret"), "payload", "File"],
  [new ReadableStream(), "payload", "ReadableStream"],
  [new Response("secret"), "payload", "Response"],
  [new URLSearchParams("a=secret"), "payload", "URLSearchParams"],
  [new Hidden(), "payload", "toJSON"],
  [{ a: new Hidden() }, "payload.a", "toJSON"],
  [Object.create({ secret: 1 }), "payload", "toJSON"],
  [Object.defineProperty({}, "secret", { value: 1 }), "payload", "toJSON"],
  [{ [Symbol("secret")]: 1 }, "payload", "toJSON"],
  [{ file: Uint8Array.of(1, 2) }, "payload.file", "Uint8Array"],
  [[new ArrayBuffer(2)], "payload[0]", "ArrayBuffer"],
  [new Proxy(Uint8Array.of(1, 2), {}), "payload", "no JSON form"],
  [new Proxy(new Map([["secret", 1]]), {}), "payload", "Map"],
  [transferred, "payload", "ArrayBuffer"],
  [viewOfTransferred, "payload", "Uint8Array"],
  [revoked.proxy, "payload", "throws"],
  [cyclic, "payload.list[0]", "contains itself"],
  [nested(100_000), `payload${"[0]".repeat(10)}...[0]`, "nested"],
  [
    {
      get secret() {
        throw new Error("secret content")
      }
    },
    "payload.secret",
    "throws"
  ],
  [
    {
      a: {
        toJSON: () => {
          throw "secret content"
        }
      }
    },
    "payload.a",
    "throws"
  ],
  [{ a: { toJSON: () => undefined }, b: [{ toJSON: () => undefined }] }, "payload.b[0]", "undefined"],
  [{ a: { toJSON: () => new Map() } }, "payload.a", "Map"],
  [Effect.succeed("secret").pipe(Effect.map((value) => value)), "payload", "Effect"],
  [Stream.make("secret"), "payload.channel.transform", "function"],
  [Layer.empty, "payload.build", "function"],
  [{ password: Redacted.make("secret") }, "payload.password", "redacted"],
  [new (class Empty extends Data.Class {})(), "payload", "toJSON"],
  [
    (function(..._given: ReadonlyArray<unknown>) {
      return arguments
    })("secret"),
    "payload",
    "Arguments"
  ]
]
