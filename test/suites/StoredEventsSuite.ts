/** What is stored of an event, and read back. */
import { assert, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Tracer from "effect/Tracer"
import { runInNewContext } from "node:vm"
import { type Event, type NewEvent, text } from "../../src/schema/Event.ts"
import { HandledEvent } from "../../src/services/AppendDefaults.ts"
import * as EventSet from "../../src/services/EventSet.ts"
import type { EventStore } from "../../src/services/EventStore.ts"
import * as Traces from "../support/Traces.ts"
import * as Payloads from "./Payloads.ts"
import { append, happened, last, newStream, readAll, readStream, settle } from "./Streams.ts"
import type { Time } from "./Suite.ts"
import { unique } from "./Suite.ts"

const eventFields = [
  "aggregateId",
  "aggregateType",
  "aggregateVersion",
  "boundedContext",
  "causationId",
  "correlationId",
  "createdAt",
  "createdAtMicros",
  "eventId",
  "eventType",
  "eventVersion",
  "globalPosition",
  "metadata",
  "metadataText",
  "payload",
  "traceId"
]

export const suite = (name: string, layer: Layer.Layer<EventStore, unknown>, { time }: { readonly time: Time }) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(`EventStore, stored events (${name})`, (it) => {
    it.effect("appended events are read back unchanged", () =>
      Effect.gen(function*() {
        const stream = {
          boundedContext: yield* unique("Käse 'n' \"x\"; --"),
          aggregateType: "Ünïcode ☃ 🚀",
          aggregateId: yield* unique("$1 {a,b} \\ % _ ' \" NULL")
        }
        const eventId = "0190A5D6-7C3E-7B4A-9D2F-0123456789AB"
        yield* append([
          happened(stream, {
            eventId,
            eventType: "Quoted 'type'",
            eventVersion: 7,
            payload: { text: "ä \u0000 \"'\\ 🚀", list: [1, 2.5, null, true] },
            traceId: "trace",
            correlationId: "correlation",
            causationId: "causation",
            metadata: { by: "someone", nested: { list: [1, "two", null, { three: 3 }] } }
          }),
          happened(stream, { payload: Uint8Array.from([0, 255, 39, 92, 10]), metadata: null }),
          happened(stream, { payload: new Uint8Array(0), metadata: [] }),
          happened(stream, { payload: null, metadata: "text" })
        ])
        const [full, bytes, empty, nothing] = yield* readStream(stream)
        assert.deepStrictEqual(JSON.parse(full!.metadataText!), full!.metadata)
        // A plain object: spread, compared and serialized like any other.
        assert.strictEqual(Object.getPrototypeOf(full), Object.prototype)
        assert.deepStrictEqual(Object.keys(full!).sort(), eventFields)
        assert.deepStrictEqual({
          ...full,
          payload: undefined,
          metadataText: undefined,
          createdAt: undefined,
          createdAtMicros: undefined,
          globalPosition: undefined
        }, {
          ...stream,
          aggregateVersion: 1n,
          eventId: eventId.toLowerCase(),
          eventType: "Quoted 'type'",
          eventVersion: 7,
          traceId: "trace",
          correlationId: "correlation",
          causationId: "causation",
          metadata: { by: "someone", nested: { list: [1, "two", null, { three: 3 }] } },
          payload: undefined,
          metadataText: undefined,
          createdAt: undefined,
          createdAtMicros: undefined,
          globalPosition: undefined
        })
        assert.deepStrictEqual(JSON.parse(new TextDecoder().decode(full!.payload)), {
          text: "ä \u0000 \"'\\ 🚀",
          list: [1, 2.5, null, true]
        })
        assert.instanceOf(full!.createdAt, Date)
        assert.deepStrictEqual([...bytes!.payload], [0, 255, 39, 92, 10])
        assert.deepStrictEqual(
          [bytes!.metadata, bytes!.traceId, bytes!.correlationId, bytes!.causationId, bytes!.eventVersion],
          [null, null, null, null, 1]
        )
        assert.match(bytes!.eventId, /^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/)
        assert.deepStrictEqual([empty!.payload.length, empty!.metadata], [0, []])
        assert.deepStrictEqual([new TextDecoder().decode(nothing!.payload), nothing!.metadata], ["null", "text"])
      }))

    it.effect("an append stores the id of its trace, unless the event has one", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const traces = Traces.make()
        yield* append([happened(stream), happened(stream, { traceId: "own" })]).pipe(
          Effect.withSpan("request"),
          Effect.provideService(Tracer.Tracer, traces.tracer)
        )
        const stored = yield* readStream(stream)
        assert.deepStrictEqual(stored.map(({ traceId }) => traceId), [traces.spans[0]!.traceId, "own"])
        assert.deepStrictEqual(traces.spans.map(({ name }) => name), ["request", "append"])
      }))

    it.effect("an append in a handler is caused by the handled event, unless the event has its own cause", () =>
      Effect.gen(function*() {
        const [cause, other, stream] = [yield* newStream, yield* newStream, yield* newStream]
        yield* append([happened(cause), happened(cause, { correlationId: "order-1" })])
        const handled = yield* readStream(cause)
        const inHandler = (event: Event, appended: NewEvent) =>
          Effect.provideService(append([appended]), HandledEvent, event)
        yield* inHandler(handled[0]!, happened(stream))
        yield* inHandler(handled[1]!, happened(stream))
        yield* inHandler(handled[1]!, happened(stream, { correlationId: "own" }))
        yield* inHandler(handled[1]!, happened(stream, { causationId: "own" }))
        yield* append([happened(other)])
        const ids = ({ causationId, correlationId }: Event) => [correlationId, causationId]
        const [first, second] = handled.map(({ eventId }) => eventId)
        assert.deepStrictEqual((yield* readStream(stream)).map(ids), [
          [first!, first!],
          ["order-1", second!],
          ["own", second!],
          ["order-1", "own"]
        ])
        assert.deepStrictEqual((yield* readStream(other)).map(ids), [[null, null]])
      }))

    it.effect("createdAt is stored to the microsecond", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const times: ReadonlyArray<readonly [given: NewEvent["createdAt"], micros: bigint]> = [
          [new Date("2019-03-31T01:30:00.123Z"), 1_553_995_800_123_000n],
          [DateTime.makeUnsafe("2024-02-29T23:59:59.999Z"), 1_709_251_199_999_000n],
          [
            DateTime.makeZonedUnsafe("2024-10-27T02:30:00+02:00", { timeZone: "Europe/Berlin" }),
            1_729_989_000_000_000n
          ],
          [runInNewContext("new Date(86400000)") as Date, 86_400_000_000n],
          [1_774_540_800_123_456n, 1_774_540_800_123_456n],
          [0n, 0n],
          [-1n, -1n],
          [-1_000n, -1_000n],
          [new Date(-1), -1_000n],
          [9_007_199_254_740_993n, 9_007_199_254_740_993n],
          [8_640_000_000_000_000_000n, 8_640_000_000_000_000_000n],
          [2n ** 63n - 1n, 2n ** 63n - 1n],
          [-210_866_803_200_000_000n, -210_866_803_200_000_000n]
        ]
        const { positions } = yield* append(times.map(([createdAt]) => happened(stream, { createdAt })))
        yield* settle(last(positions))
        const stored = yield* readStream(stream)
        const read = yield* readAll({ after: 0n, filter: { boundedContexts: [stream.boundedContext] } })
        assert.deepStrictEqual(read.events, stored)
        for (const [index, [, micros]] of times.entries()) {
          const { createdAt, createdAtMicros } = stored[index]!
          assert.strictEqual(createdAtMicros, micros)
          const millis = (micros < 0n ? micros - 999n : micros) / 1000n
          if (millis <= 8_640_000_000_000_000n) assert.strictEqual(BigInt(createdAt.getTime()), millis)
          else assert.isNaN(createdAt.getTime())
        }
      }))

    it.effect("an event without createdAt gets the time of the append, also beside events that have one", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        yield* append([happened(stream)])
        yield* append([happened(stream, { createdAt: 5n }), happened(stream, { createdAt: undefined })])
        const [alone, given, beside] = yield* readStream(stream)
        assert.strictEqual(given!.createdAtMicros, 5n)
        assert.isAtLeast(Number(beside!.createdAtMicros - alone!.createdAtMicros), 0)
        assert.strictEqual(
          alone!.createdAt.getTime(),
          Number(alone!.createdAtMicros / 1000n)
        )
      }))

    it.effect("metadataText keeps every digit, and JSON null is distinguished from missing metadata", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const texts = [
          "12345678901234567890",
          "0.1000000000000000055511151231257827",
          "-1E-7",
          "null",
          "\"null\"",
          "true"
        ]
        yield* append([
          ...texts.map((text) => happened(stream, { metadata: Payloads.rawJson(text) })),
          happened(stream, { metadata: { id: Payloads.rawJson("12345678901234567890"), by: ["a b", null] } }),
          happened(stream, { metadata: null }),
          happened(stream)
        ])
        const stored = yield* readStream(stream)
        yield* settle(stored[stored.length - 1]!.globalPosition)
        const read = yield* readAll({ after: 0n, filter: { boundedContexts: [stream.boundedContext] } })
        assert.deepStrictEqual(read.events, stored)
        for (const [index, text] of texts.entries()) {
          const event = stored[index]!
          // A store may write a number in a different notation.
          assert.strictEqual(event.metadataText?.replace("0.0000001", "1E-7"), text)
          assert.deepStrictEqual(event.metadata, JSON.parse(text))
        }
        assert.include(stored[texts.length]!.metadataText, "12345678901234567890")
        assert.deepStrictEqual(stored[texts.length]!.metadata, { id: 12345678901234567000, by: ["a b", null] })
        assert.deepStrictEqual(
          stored.slice(texts.length + 1).map((event) => [event.metadata, event.metadataText]),
          [[null, null], [null, null]]
        )
      }))

    it.effect("events that no store can represent are refused", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const cyclic: Record<string, unknown> = {}
        cyclic["self"] = cyclic
        const invalid: ReadonlyArray<ReadonlyArray<NewEvent>> = [
          [],
          [happened(stream), happened({ ...stream, aggregateId: "another" })],
          [happened(stream), happened({ ...stream, boundedContext: "another" })],
          [happened(stream), happened({ ...stream, aggregateType: "Another" })],
          [happened({ ...stream, boundedContext: "" })],
          [happened({ ...stream, aggregateType: "" })],
          [happened({ ...stream, aggregateId: "" })],
          [happened(stream, { eventType: "" })],
          [happened({ ...stream, aggregateId: "a\u0000b" })],
          [happened({ ...stream, aggregateId: "a\ud800b" })],
          [happened(stream, { eventType: "a\u0000b" })],
          [happened(stream, { traceId: "a\u0000b" })],
          [happened(stream, { eventId: "no-uuid" })],
          [happened(stream, { eventId: "" })],
          [happened(stream, { eventVersion: 1.5 })],
          [happened(stream, { eventVersion: 2 ** 31 })],
          [happened(stream, { payload: 1n })],
          [happened(stream, { payload: cyclic })],
          [happened(stream, { payload: () => 1 })],
          [happened(stream, { metadata: { deep: ["a\u0000b"] } })],
          [happened(stream, { metadata: { "a\u0000b": 1 } })],
          [happened(stream, { metadata: { half: "\udc00" } })],
          [happened(stream, { metadata: 1n })],
          ...[
            new Date(Number.NaN),
            new Date(-8_640_000_000_000_000),
            "2024-01-01",
            1_700_000_000_000,
            {},
            -210_866_803_200_000_001n,
            2n ** 63n
          ].map((createdAt) => [happened(stream, { createdAt: createdAt as Date })])
        ]
        for (const events of invalid) {
          const error = yield* Effect.flip(append(events))
          assert.strictEqual(error._tag, "InvalidEvents")
          assert.isAbove(error.message.length, 10)
        }
        assert.deepStrictEqual(yield* readStream(stream), [])
      }))

    it.effect("byte payloads of every kind and realm are stored as they were when append was called", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        yield* append(Payloads.bytes.map(([, payload]) => happened(stream, { payload })))
        const stored = yield* readStream(stream)
        for (const [index, [kind]] of Payloads.bytes.entries()) {
          assert.deepStrictEqual([...stored[index]!.payload], Payloads.expectedBytes, kind)
        }
        const payload = Uint8Array.of(1, 2, 3)
        const begun = yield* Effect.forkChild(append([happened(stream, { payload })]), { startImmediately: true })
        payload.fill(0)
        yield* Fiber.join(begun)
        const [last] = yield* readStream(stream, { from: BigInt(stored.length + 1) })
        assert.deepStrictEqual([...last!.payload], [1, 2, 3])
      }))

    it.effect("mutating a read event affects neither the store nor other readers", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const { positions } = yield* append([
          happened(stream, { payload: Uint8Array.of(1, 2), metadata: { by: ["a"] }, createdAt: new Date(5) })
        ])
        yield* settle(last(positions))
        const filter = { boundedContexts: [stream.boundedContext] }
        const readEverything = Effect.gen(function*() {
          return [...(yield* readStream(stream)), ...(yield* readAll({ after: 0n, filter })).events]
        })
        const events = yield* readEverything
        assert.strictEqual(events.length, 2)
        const before = structuredClone(events)
        for (const event of events) {
          event.payload.fill(9)
          ;(event.metadata as { by: Array<string> }).by.push("b")
          event.createdAt.setTime(0)
        }
        assert.deepStrictEqual(yield* readEverything, before)
      }))

    it.effect("JSON values are stored as JSON", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        yield* append(Payloads.jsonValues.map(([, payload]) => happened(stream, { payload })))
        const stored = yield* readStream(stream)
        for (const [index, [kind, , expected]] of Payloads.jsonValues.entries()) {
          assert.deepStrictEqual(JSON.parse(new TextDecoder().decode(stored[index]!.payload)), expected, kind)
        }
      }))

    it.effect("refusing a value without a JSON form reports its path and never its content", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        for (const [payload, path, reason] of Payloads.refused) {
          const refused = yield* Effect.flip(append([happened(stream), happened(stream, { payload })]))
          assert.strictEqual(refused._tag, "InvalidEvents")
          assert.include(refused.message, `Event 2 of 2: ${path} `)
          assert.include(refused.message, reason)
          assert.notInclude(refused.message.replaceAll(path, ""), "secret")
          if (payload === undefined) continue
          const metadata = yield* Effect.flip(append([happened(stream, { metadata: payload })]))
          assert.strictEqual(metadata._tag, "InvalidEvents")
          assert.include(metadata.message, `${path.replace("payload", "metadata")} `)
        }
        const bytes = yield* Effect.flip(append([happened(stream, { metadata: Uint8Array.of(1) })]))
        assert.strictEqual(bytes._tag, "InvalidEvents")
        assert.deepStrictEqual(yield* readStream(stream), [])
      }))

    it.effect("events of a set are stored encoded, with their versions and the stream that the set declares", () =>
      Effect.gen(function*() {
        const { aggregateId, aggregateType, boundedContext } = yield* newStream
        const Carts = EventSet.make({
          Opened: { version: 2, payload: Schema.Struct({ at: Schema.Date }), upcast: { 1: () => ({}) } },
          Paid: Schema.Struct({ cents: Schema.BigInt })
        }, { aggregateType })
        const events = [
          { boundedContext, eventType: "Opened", aggregateId, payload: { at: new Date(0) } },
          { boundedContext, eventType: "Paid", aggregateId, payload: { cents: 12n }, eventId: crypto.randomUUID() }
        ] as const
        yield* EventSet.append(Carts, events, { expectedVersion: "none" })
        const stored = yield* readStream({ aggregateId, aggregateType, boundedContext })
        assert.deepStrictEqual(
          stored.map((event) => [event.eventType, event.eventVersion, text(event)]),
          [["Opened", 2, `{"at":"1970-01-01T00:00:00.000Z"}`], ["Paid", 1, `{"cents":"12"}`]]
        )
        const decoded = yield* EventSet.decodeAll(Carts.pick("Paid"), stored)
        assert.deepStrictEqual(decoded, [{ ...stored[1]!, eventType: "Paid", payload: { cents: 12n } }])
        const refused = yield* Effect.flip(EventSet.append(Carts, [
          { boundedContext, eventType: "Paid", aggregateId, payload: { cents: "1" as never } }
        ]))
        assert.strictEqual(refused._tag, "InvalidEvents")
        assert.strictEqual((yield* readStream({ aggregateId, aggregateType, boundedContext })).length, 2)
      }))
  })
