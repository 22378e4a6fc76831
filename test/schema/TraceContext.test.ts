import { assert, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import type { Event } from "../../src/schema/Event.ts"
import * as TraceContext from "../../src/schema/TraceContext.ts"

const traceId = "4bf92f3577b34da6a3ce929d0e0e4736"
const spanId = "00f067aa0ba902b7"
const zeros = (digits: number) => "0".repeat(digits)

const event = (fields: Partial<Event>, position = 1n) =>
  ({ traceId: null, metadata: null, globalPosition: position, ...fields }) as Event

const originOf = (fields: Partial<Event>) => TraceContext.originsOf([event(fields)])[0]

it("uses the trace and the span of a traceparent, whatever the trace id is", () => {
  for (const given of [null, "f".repeat(32)]) {
    const { event: _, ...origin } = originOf({
      traceId: given,
      metadata: { traceparent: `00-${traceId}-${spanId}-00`, by: "ada" }
    })!
    assert.deepStrictEqual(origin, { traceId, spanId, sampled: false })
  }
  assert.isTrue(originOf({ metadata: { traceparent: `00-${traceId}-${spanId}-01` } })?.sampled)
})

it.each([
  "",
  "no traceparent",
  7,
  null,
  `00-${traceId}-${spanId}`,
  `01-${traceId}-${spanId}-01`,
  `00-${traceId.toUpperCase()}-${spanId}-01`,
  `00-${zeros(32)}-${spanId}-01`,
  `00-${traceId}-${zeros(16)}-01`,
  `00-${traceId}-${spanId}-01-more`
])("ignores the invalid traceparent %j and uses the trace id", (traceparent) => {
  assert.isUndefined(originOf({ metadata: { traceparent } }))
  const { event: _, ...origin } = originOf({ traceId, metadata: { traceparent } })!
  assert.deepStrictEqual(origin, { traceId, spanId: zeros(16), sampled: true })
})

it("pads short trace ids, and ignores texts that are not the id of a trace", () => {
  assert.strictEqual(originOf({ traceId: "a3ce929d0e0e4736" })?.traceId, `${zeros(16)}a3ce929d0e0e4736`)
  const others = [
    null,
    "",
    "trace",
    zeros(32),
    traceId.toUpperCase(),
    `${traceId}0`,
    "0190a5d6-7c3e-7b4a-9d2f-0123456789ab"
  ]
  for (const other of others) assert.isUndefined(originOf({ traceId: other }), String(other))
})

it("finds nothing in metadata that is not an object with a traceparent of its own", () => {
  for (const metadata of [null, "text", 1, [], {}, Object.create({ traceparent: `00-${traceId}-${spanId}-01` })]) {
    assert.isUndefined(originOf({ metadata }))
  }
})

const numbers = Schema.Array(Schema.Int).pipe(Schema.check(Schema.isMaxLength(400)))

it.prop(
  "returns each trace once, in the order of the events and with the first of its events",
  { numbers },
  (given) => {
    const idOf = (number: number) => (BigInt(number) % 300n + 301n).toString(16).padStart(32, "0")
    const events = given.numbers.map((number, index) => event({ traceId: idOf(number) }, BigInt(index)))
    const expected = [...new Map([...events].reverse().map((event) => [event.traceId, event])).values()]
      .toSorted((a, b) => Number(a.globalPosition - b.globalPosition))
    const origins = TraceContext.originsOf(events)
    assert.deepStrictEqual(origins.map(({ event }) => event), expected.slice(0, TraceContext.maxLinks))
    for (const origin of origins) assert.strictEqual(origin.traceId, origin.event.traceId)
  }
)

it("returns at most 128 origins", () => {
  const events = Array.from(
    { length: 1_000 },
    (_, index) => event({ traceId: (index + 1).toString(16).padStart(32, "0") })
  )
  assert.strictEqual(TraceContext.originsOf(events).length, 128)
})
