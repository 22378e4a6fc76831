import { assert, it } from "@effect/vitest"
import * as DateTime from "effect/DateTime"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Tracer from "effect/Tracer"
import { runInNewContext } from "node:vm"
import { type Event, type NewEvent, type StreamId, text } from "../../src/schema/Event.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import { HandledEvent } from "../../src/services/AppendDefaults.ts"
import * as EventSet from "../../src/services/EventSet.ts"
import type { ReadOptions } from "../../src/services/EventStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Traces from "../support/Traces.ts"
import * as Payloads from "./Payloads.ts"
import type { Time } from "./Suite.ts"
import { unique } from "./Suite.ts"

export interface Options<R> {
  readonly time: Time
  /** Runs an effect in a transaction of the application on this implementation. */
  readonly transact: <A, E, R1>(self: Effect.Effect<A, E, R1>) => Effect.Effect<A, unknown, R1 | R>
}

const newStream = Effect.gen(function*() {
  return {
    boundedContext: yield* unique("context"),
    aggregateType: "Cart",
    aggregateId: yield* unique("cart")
  } satisfies StreamId
})

const happened = (stream: StreamId, rest?: Partial<NewEvent>): NewEvent => ({
  eventType: "Happened",
  payload: {},
  ...stream,
  ...rest
})

const identified = (stream: StreamId, count: number): ReadonlyArray<NewEvent> =>
  Array.from({ length: count }, () => happened(stream, { eventId: globalThis.crypto.randomUUID() }))

const append = Effect.fnUntraced(function*(...parameters: Parameters<EventStore["Service"]["append"]>) {
  return yield* (yield* EventStore).append(...parameters)
})

const readStream = Effect.fnUntraced(function*(...parameters: Parameters<EventStore["Service"]["readStream"]>) {
  return yield* (yield* EventStore).readStream(...parameters)
})

/** Reads all matching events page by page. */
const readAll = Effect.fnUntraced(function*(options: ReadOptions) {
  const store = yield* EventStore
  const upTo = options.upTo ?? (yield* store.settledPosition)
  const events: Array<Event> = []
  const pages: Array<number> = []
  let after = options.after
  while (after < upTo) {
    const page = yield* store.read({ ...options, after, upTo })
    assert.isTrue(page.position > after, "each page advances the position")
    assert.isTrue(page.position <= upTo, "no page advances beyond upTo")
    for (const event of page.events) {
      assert.isTrue(after < event.globalPosition && event.globalPosition <= page.position, "events lie in their page")
    }
    events.push(...page.events)
    pages.push(page.events.length)
    after = page.position
  }
  return { events, pages: pages.filter((length) => length > 0) }
})

/** Waits until the position is settled. */
const settle = Effect.fnUntraced(function*(position: bigint) {
  const store = yield* EventStore
  let settled = yield* store.settledPosition
  while (settled < position) settled = yield* store.settledBeyond(settled, Duration.millis(50))
  return settled
})

const last = (positions: ReadonlyArray<bigint>): bigint => positions[positions.length - 1]!

const positionsOf = (events: ReadonlyArray<Event>): ReadonlyArray<bigint> => events.map((event) => event.globalPosition)

const ascending = (positions: ReadonlyArray<bigint>): boolean =>
  positions.every((position, index) => index === 0 || positions[index - 1]! < position)

export const suite = <R = never>(name: string, layer: Layer.Layer<EventStore | R, unknown>, options: Options<R>) =>
  it.layer(layer, { excludeTestServices: options.time.excludeTestServices })(`EventStore (${name})`, (it) => {
    it.effect("append assigns versions from 1 and increasing positions", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const first = yield* append([happened(stream), happened(stream)])
        const second = yield* append([happened(stream)])
        assert.deepStrictEqual(first.stream, stream)
        assert.deepStrictEqual([first.firstVersion, first.lastVersion], [1n, 2n])
        assert.deepStrictEqual([second.firstVersion, second.lastVersion], [3n, 3n])
        assert.strictEqual(first.positions.length, 2)
        assert.isTrue(ascending([...first.positions, ...second.positions]))
        const events = yield* readStream(stream)
        assert.deepStrictEqual(events.map((event) => event.aggregateVersion), [1n, 2n, 3n])
        assert.deepStrictEqual(positionsOf(events), [...first.positions, ...second.positions])
      }))

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

    it.effect("an append with a wrong expectedVersion fails with ConcurrencyConflict and appends nothing", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const conflict = (expectedVersion: "none" | bigint) =>
          Effect.flip(append([happened(stream)], { expectedVersion })).pipe(
            Effect.map((error) => {
              assert(error._tag === "ConcurrencyConflict")
              assert.strictEqual(error.aggregateId, stream.aggregateId)
              return [error.expected, error.actual]
            })
          )
        assert.deepStrictEqual(yield* conflict(1n), ["1", 0n])
        yield* append([happened(stream)], { expectedVersion: "none" })
        assert.deepStrictEqual(yield* conflict("none"), ["none", 1n])
        yield* append([happened(stream), happened(stream)], { expectedVersion: 1n })
        assert.deepStrictEqual(yield* conflict(1n), ["1", 3n])
        assert.deepStrictEqual(yield* conflict(4n), ["4", 3n])
        yield* append([happened(stream)], { expectedVersion: 3n })
        yield* append([happened(stream)], { expectedVersion: "any" })
        assert.strictEqual((yield* readStream(stream)).length, 5)
      }))

    it.effect("each part of a StreamId distinguishes streams", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const others = [
          { ...stream, boundedContext: `${stream.boundedContext}-` },
          { ...stream, aggregateType: "Other" },
          { ...stream, aggregateId: `${stream.aggregateId}-` }
        ]
        for (const each of [stream, ...others]) {
          const appended = yield* append([happened(each)], { expectedVersion: "none" })
          assert.strictEqual(appended.lastVersion, 1n)
        }
        assert.strictEqual((yield* readStream(stream)).length, 1)
      }))

    it.effect("an event id can be stored only once", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const other = yield* newStream
        const eventId = globalThis.crypto.randomUUID()
        yield* append([happened(stream, { eventId })])
        const again = yield* Effect.flip(append([happened(other), happened(other, { eventId: eventId.toUpperCase() })]))
        assert.strictEqual(again._tag, "DuplicateEvent")
        const twice = globalThis.crypto.randomUUID()
        const within = yield* Effect.flip(
          append([happened(other, { eventId: twice }), happened(other, { eventId: twice })])
        )
        assert.strictEqual(within._tag, "DuplicateEvent")
        assert.deepStrictEqual(yield* readStream(other), [])
        assert.strictEqual((yield* append([happened(other)], { expectedVersion: "none" })).lastVersion, 1n)
      }))

    it.effect("repeating an append with its event ids fails with DuplicateEvent for every expectedVersion", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const events = [happened(stream), happened(stream, { eventId: globalThis.crypto.randomUUID() })]
        yield* append(events, { expectedVersion: "none" })
        for (const expectedVersion of ["none", 0n, 1n, 2n, 7n, "any"] as const) {
          const repeated = yield* Effect.flip(append(events, { expectedVersion }))
          assert.strictEqual(repeated._tag, "DuplicateEvent")
        }
        const other = yield* Effect.flip(append([happened(stream)], { expectedVersion: 0n }))
        assert.strictEqual(other._tag, "ConcurrencyConflict")
        assert.strictEqual((yield* readStream(stream)).length, 2)
      }))

    it.effect("onDuplicate return returns the append that is repeated, for every expectedVersion", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        yield* append([happened(stream)])
        const events = identified(stream, 3)
        const original = yield* append(events, { expectedVersion: 1n, onDuplicate: "return" })
        assert.deepStrictEqual([original.firstVersion, original.lastVersion], [2n, 4n])
        yield* append([happened(stream)])
        for (const expectedVersion of [undefined, "none", 0n, 1n, 5n, 7n, "any"] as const) {
          assert.deepStrictEqual(yield* append(events, { expectedVersion, onDuplicate: "return" }), original)
        }
        const upper = events.map((event) => ({ ...event, eventId: event.eventId!.toUpperCase() }))
        assert.deepStrictEqual(yield* append(upper, { onDuplicate: "return" }), original)
        const part = yield* append(events.slice(1), { onDuplicate: "return" })
        assert.deepStrictEqual(part, { ...original, firstVersion: 3n, positions: original.positions.slice(1) })
        assert.strictEqual((yield* readStream(stream)).length, 5)
      }))

    it.effect("onDuplicate return fails with DuplicateEvent unless the batch is stored as given", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const other = yield* newStream
        const events = identified(stream, 3)
        const [a, b, c] = events as [NewEvent, NewEvent, NewEvent]
        const [added] = identified(stream, 1) as [NewEvent]
        yield* append(events)
        const wrong: ReadonlyArray<ReadonlyArray<NewEvent>> = [
          [b, a],
          [a, c],
          [a, a],
          [added, added],
          [...events, added],
          [added, ...events],
          events.map((event) => ({ ...event, ...other }))
        ]
        for (const batch of wrong) {
          for (const expectedVersion of ["any", "none", 3n] as const) {
            const refused = yield* Effect.flip(append(batch, { expectedVersion, onDuplicate: "return" }))
            // Ids that are only repeated within the batch are not stored, so the version is checked first.
            if (batch[0] === batch[1] && batch[0] === added && expectedVersion === "none") continue
            assert.strictEqual(refused._tag, "DuplicateEvent")
          }
        }
        const conflict = yield* Effect.flip(append([added], { expectedVersion: 1n, onDuplicate: "return" }))
        assert.strictEqual(conflict._tag, "ConcurrencyConflict")
        const anonymous = yield* Effect.flip(append([added, happened(stream)], { onDuplicate: "return" }))
        assert.match(anonymous.message, /^Event 2 of 2 has no eventId/)
        assert.strictEqual(anonymous._tag, "InvalidEvents")
        assert.deepStrictEqual([(yield* readStream(stream)).length, (yield* readStream(other)).length], [3, 0])
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

    it.effect("readStream honours from, to and limit", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        yield* append(Array.from({ length: 10 }, (_, index) => happened(stream, { payload: index })))
        const versions = (options: Parameters<EventStore["Service"]["readStream"]>[1]) =>
          Effect.map(readStream(stream, options), (events) => events.map((event) => Number(event.aggregateVersion)))
        assert.deepStrictEqual(yield* versions(undefined), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
        assert.deepStrictEqual(yield* versions({ from: 4n, to: 6n }), [4, 5, 6])
        assert.deepStrictEqual(yield* versions({ from: 8n }), [8, 9, 10])
        assert.deepStrictEqual(yield* versions({ to: 2n }), [1, 2])
        assert.deepStrictEqual(yield* versions({ from: 3n, limit: 2 }), [3, 4])
        assert.deepStrictEqual(yield* versions({ from: 11n }), [])
        assert.deepStrictEqual(yield* versions({ from: 6n, to: 5n }), [])
        assert.deepStrictEqual(yield* versions({ from: -(2n ** 64n), to: 2n ** 64n, limit: 1.5 }), [1])
        assert.deepStrictEqual(yield* versions({ from: 2n ** 64n }), [])
        assert.deepStrictEqual(yield* versions({ to: -(2n ** 64n) }), [])
        for (const limit of [0, -1, Number.NaN]) assert.deepStrictEqual(yield* versions({ limit }), [])
        assert.strictEqual((yield* versions({ limit: Number.POSITIVE_INFINITY })).length, 10)
        assert.deepStrictEqual(yield* readStream(yield* newStream), [])
      }))

    it.effect("an append joins the caller's transaction", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const failed = yield* Effect.flip(options.transact(Effect.gen(function*() {
          yield* append([happened(stream)])
          yield* append([happened(stream)], { expectedVersion: 1n })
          return yield* Effect.fail("no")
        })))
        assert.strictEqual(failed, "no")
        assert.deepStrictEqual(yield* readStream(stream), [])
        const { appended, within } = yield* options.transact(Effect.gen(function*() {
          yield* append([happened(stream)], { expectedVersion: "none" })
          const appended = yield* append([happened(stream)], { expectedVersion: 1n })
          return { appended, within: yield* readStream(stream) }
        }))
        assert.strictEqual(within.length, 2)
        assert.deepStrictEqual(yield* readStream(stream), within)
        yield* settle(last(appended.positions))
        const { events } = yield* readAll({ after: 0n, filter: { boundedContexts: [stream.boundedContext] } })
        assert.strictEqual(events.length, 2)
      }))

    it.effect("the caller's transaction can continue and commit after a refused append", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const eventId = globalThis.crypto.randomUUID()
        yield* append([happened(stream, { eventId })])
        const repeated = [happened(stream), happened(stream, { eventId })]
        yield* options.transact(Effect.gen(function*() {
          for (const expectedVersion of ["any", "none", 1n, 7n] as const) {
            const duplicate = yield* Effect.flip(append(repeated, { expectedVersion }))
            assert.strictEqual(duplicate._tag, "DuplicateEvent")
          }
          for (const expectedVersion of ["none", 0n, 7n, -1n, 2n ** 63n - 1n, 2n ** 63n, -(2n ** 70n)] as const) {
            const conflict = yield* Effect.flip(append([happened(stream)], { expectedVersion }))
            assert(conflict._tag === "ConcurrencyConflict")
            assert.deepStrictEqual([conflict.expected, conflict.actual], [String(expectedVersion), 1n])
          }
          // As from JavaScript, or through `any`.
          const invalid = yield* Effect.flip(append([happened(stream, { traceId: 5 as unknown as string })]))
          assert.strictEqual(invalid._tag, "InvalidEvents")
          yield* append([happened(stream)], { expectedVersion: 1n })
        }))
        assert.strictEqual((yield* readStream(stream)).length, 2)
      }))

    it.effect("onDuplicate return returns the original in the caller's transaction, which continues", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const earlier = identified(stream, 2)
        const original = yield* append(earlier)
        const own = identified(stream, 1)
        yield* options.transact(Effect.gen(function*() {
          assert.deepStrictEqual(yield* append(earlier, { expectedVersion: "none", onDuplicate: "return" }), original)
          const first = yield* append(own, { expectedVersion: 2n, onDuplicate: "return" })
          assert.deepStrictEqual(yield* append(own, { expectedVersion: 2n, onDuplicate: "return" }), first)
          const both = yield* Effect.flip(append([...own, ...earlier], { onDuplicate: "return" }))
          assert.strictEqual(both._tag, "DuplicateEvent")
          yield* append([happened(stream)], { expectedVersion: 3n })
        }))
        assert.strictEqual((yield* readStream(stream)).length, 4)
      }))

    it.effect("read returns the events that match the filter, in position order", () =>
      Effect.gen(function*() {
        const [a, b] = [yield* unique("a"), yield* unique("b")]
        const events: Array<NewEvent> = []
        for (const boundedContext of [a, b]) {
          for (const aggregateType of ["Cart", "User"]) {
            for (const eventType of ["Added", "Removed"]) {
              const aggregateId = yield* unique("id")
              events.push({ boundedContext, aggregateType, aggregateId, eventType, payload: {} })
            }
          }
        }
        const before = yield* (yield* EventStore).headPosition
        for (const event of events) yield* append([event])
        const head = yield* (yield* EventStore).headPosition
        assert.isTrue(head >= before + 8n)
        yield* settle(head)
        const read = Effect.fnUntraced(function*(filter: ReadOptions["filter"]) {
          const { events } = yield* readAll({ after: before, filter })
          assert.isTrue(ascending(positionsOf(events)))
          return events.filter((event) => event.boundedContext === a || event.boundedContext === b).map((event) =>
            `${event.boundedContext === a ? "a" : "b"} ${event.aggregateType} ${event.eventType}`
          )
        })
        const all = [
          "a Cart Added",
          "a Cart Removed",
          "a User Added",
          "a User Removed",
          "b Cart Added",
          "b Cart Removed",
          "b User Added",
          "b User Removed"
        ]
        assert.deepStrictEqual(yield* read(undefined), all)
        assert.deepStrictEqual(yield* read({}), all)
        assert.deepStrictEqual(yield* read({ boundedContexts: [a] }), all.slice(0, 4))
        assert.deepStrictEqual(yield* read({ boundedContexts: [b, a] }), all)
        assert.deepStrictEqual(yield* read({ aggregateTypes: ["User"] }), all.filter((each) => each.includes("User")))
        assert.deepStrictEqual(yield* read({ eventTypes: ["Added"] }), all.filter((each) => each.includes("Added")))
        assert.deepStrictEqual(
          yield* read({ boundedContexts: [b], aggregateTypes: ["Cart", "User"], eventTypes: ["Removed"] }),
          ["b Cart Removed", "b User Removed"]
        )
        assert.deepStrictEqual(yield* read({ boundedContexts: [a], aggregateTypes: ["Nobody"] }), [])
        assert.deepStrictEqual(yield* read({ eventTypes: [] }), [])
      }))

    it.effect("the partitions divide the events, each aggregate in exactly one", () =>
      Effect.gen(function*() {
        const boundedContext = yield* unique("context")
        const before = yield* (yield* EventStore).headPosition
        const ids = Array.from({ length: 64 }, (_, index) => `${boundedContext}-${index}`)
        for (const aggregateId of [...ids, ...ids]) {
          yield* append([happened({ boundedContext, aggregateType: "Cart", aggregateId })])
        }
        const upTo = yield* settle(yield* (yield* EventStore).headPosition)
        const read = (range: HashRange.HashRange | undefined) =>
          Effect.map(
            readAll({ after: before, upTo, range, filter: { boundedContexts: [boundedContext] } }),
            ({ events }) => events
          )
        const whole = yield* read(undefined)
        assert.strictEqual(whole.length, 128)
        assert.deepStrictEqual(yield* read(HashRange.whole), whole)
        for (const total of [2, 3, 7]) {
          const parts = yield* Effect.forEach(
            Array.from({ length: total }, (_, key) => HashRange.partition(key, total)),
            read
          )
          const owners = new Map<string, number>()
          for (const [key, events] of parts.entries()) {
            assert.isAbove(events.length, 0)
            assert.isTrue(ascending(positionsOf(events)))
            for (const event of events) {
              assert.strictEqual(owners.get(event.aggregateId) ?? key, key)
              owners.set(event.aggregateId, key)
            }
          }
          const union = parts.flat().sort((x, y) => x.globalPosition < y.globalPosition ? -1 : 1)
          assert.deepStrictEqual(positionsOf(union), positionsOf(whole))
        }
      }))

    it.effect("a page ends at its limit, and the next one continues from there", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const { positions } = yield* append(Array.from({ length: 7 }, () => happened(stream)))
        const upTo = yield* settle(last(positions))
        const filter = { boundedContexts: [stream.boundedContext] }
        const first = yield* (yield* EventStore).read({ after: positions[0]! - 1n, upTo, filter, limit: 3 })
        assert.deepStrictEqual(positionsOf(first.events), positions.slice(0, 3))
        assert.isTrue(first.position >= positions[2]! && first.position < positions[3]!)
        const { events, pages } = yield* readAll({ after: 0n, upTo, filter, limit: 3 })
        assert.deepStrictEqual(positionsOf(events), positions)
        assert.isTrue(pages.every((length) => length <= 3))
      }))

    it.effect("a page ends at its byte limit, but contains at least one event", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const payload = new Uint8Array(10_000)
        const { positions } = yield* append(Array.from({ length: 6 }, () => happened(stream, { payload })))
        const upTo = yield* settle(last(positions))
        const filter = { boundedContexts: [stream.boundedContext] }
        const two = yield* readAll({ after: 0n, upTo, filter, bytes: 25_000 })
        assert.deepStrictEqual(positionsOf(two.events), positions)
        assert.deepStrictEqual(two.pages, [2, 2, 2])
        const one = yield* readAll({ after: 0n, upTo, filter, bytes: 1 })
        assert.deepStrictEqual(positionsOf(one.events), positions)
        assert.deepStrictEqual(one.pages, [1, 1, 1, 1, 1, 1])
      }))

    it.effect("read returns the events after one position and up to another", () =>
      Effect.gen(function*() {
        const store = yield* EventStore
        const stream = yield* newStream
        const { positions } = yield* append(Array.from({ length: 6 }, () => happened(stream)))
        const settled = yield* settle(last(positions))
        const filter = { boundedContexts: [stream.boundedContext] }
        const { events } = yield* readAll({ after: positions[1]!, upTo: positions[3]!, filter })
        assert.deepStrictEqual(positionsOf(events), positions.slice(2, 4))
        // No event lies between the last position and itself.
        const nothing = yield* store.read({ after: settled, upTo: settled })
        assert.deepStrictEqual([nothing.events, nothing.position], [[], settled])
        const none = yield* readAll({ after: 0n, upTo: settled, filter: { eventTypes: [yield* unique("never")] } })
        assert.deepStrictEqual(none.events, [])
      }))

    it.effect("pages name their server epoch, which lasts when another one is reported as ended", () =>
      Effect.gen(function*() {
        const store = yield* EventStore
        const stream = yield* newStream
        const { positions } = yield* append([happened(stream), happened(stream)])
        const upTo = yield* settle(last(positions))
        const page = yield* store.read({ after: 0n, upTo, limit: 1 })
        const { epoch, position } = page
        yield* store.endEpoch("1@1")
        assert.strictEqual((yield* store.read({ after: position, upTo })).epoch, epoch)
      }))

    it.effect("a position beyond the last event fails with CheckpointAheadOfEvents", () =>
      Effect.gen(function*() {
        const store = yield* EventStore
        yield* append([happened(yield* newStream)])
        const position = (yield* store.headPosition) + 1_000_000n
        const read = yield* Effect.flip(store.read({ after: position }))
        assert.strictEqual(read._tag, "CheckpointAheadOfEvents")
        const waited = yield* Effect.flip(store.settledBeyond(position, Duration.seconds(1)))
        assert(waited._tag === "CheckpointAheadOfEvents")
        assert.strictEqual(waited.position, position)
        assert.isTrue(waited.lastPosition < position)
      }))

    it.effect("settledBeyond returns at once if the settled position is higher, and otherwise waits", () =>
      Effect.gen(function*() {
        const store = yield* EventStore
        const stream = yield* newStream
        const { positions } = yield* append([happened(stream), happened(stream)])
        const settled = yield* settle(last(positions))
        assert.strictEqual(yield* store.settledPosition, settled)
        assert.isTrue((yield* store.settledBeyond(positions[0]!, Duration.minutes(1))) >= positions[1]!)
        // Only a wake-up can end these waits: the test times out before the poll.
        const waiting = yield* Effect.forEach(
          [0, 1, 2],
          () => Effect.forkChild(store.settledBeyond(settled, Duration.minutes(10)), { startImmediately: true })
        )
        yield* options.time.advance(30)
        for (const fiber of waiting) assert.isUndefined(fiber.pollUnsafe())
        const more = yield* append([happened(stream)])
        for (const fiber of waiting) assert.isTrue((yield* Fiber.join(fiber)) >= more.positions[0]!)
      }))

    it.effect("positionBefore returns the position before the first event of a time, or the settled position", () =>
      Effect.gen(function*() {
        const store = yield* EventStore
        const stream = yield* newStream
        const later = 4_000_000_000_000_000n
        const times = [later, later + 3n, later + 1n, later + 2n, later + 9n, later + 4n]
        const { positions } = yield* append(times.map((createdAt) => happened(stream, { createdAt })))
        const settled = yield* settle(last(positions))
        const { events } = yield* readAll({ after: 0n, upTo: settled })
        for (const micros of [-(2n ** 57n), 0n, ...times, later + 10n, 2n ** 63n - 1n]) {
          const first = events.find(({ createdAtMicros }) => createdAtMicros >= micros)
          const expected = first === undefined ? settled : first.globalPosition - 1n
          assert.strictEqual(yield* store.positionBefore(micros), expected, String(micros))
        }
      }))

    it.effect("settledBeyond can be interrupted", () =>
      Effect.gen(function*() {
        const store = yield* EventStore
        const settled = yield* settle(yield* store.headPosition)
        const fiber = yield* Effect.forkChild(store.settledBeyond(settled, Duration.minutes(10)), {
          startImmediately: true
        })
        yield* options.time.advance(5)
        yield* Fiber.interrupt(fiber)
        assert.strictEqual(yield* store.settledPosition, settled)
      }))

    it.effect("concurrent appends to one aggregate get versions without gaps and positions in version order", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const start = yield* Deferred.make<void>()
        const fibers = yield* Effect.forEach(
          Array.from({ length: 20 }, (_, index) => index),
          (index) =>
            Effect.forkChild(
              Effect.andThen(
                Deferred.await(start),
                append([happened(stream, { payload: [index, 0] }), happened(stream, { payload: [index, 1] })])
              ),
              { startImmediately: true }
            )
        )
        yield* Deferred.succeed(start, undefined)
        const appended = yield* Effect.forEach(fibers, Fiber.join)
        const events = yield* readStream(stream)
        assert.deepStrictEqual(
          events.map((event) => event.aggregateVersion),
          Array.from({ length: 40 }, (_, index) => BigInt(index + 1))
        )
        assert.isTrue(ascending(positionsOf(events)))
        for (const each of appended) {
          assert.strictEqual(each.lastVersion, each.firstVersion + 1n)
          const own = events.filter((event) => each.positions.includes(event.globalPosition))
          assert.deepStrictEqual(own.map((event) => event.aggregateVersion), [each.firstVersion, each.lastVersion])
        }
      }))

    it.effect("one of several concurrent appends with the same expectedVersion succeeds", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        yield* append([happened(stream)])
        const outcomes = yield* Effect.forEach(
          Array.from({ length: 8 }, (_, index) => index),
          (index) => Effect.result(append([happened(stream, { payload: index })], { expectedVersion: 1n })),
          { concurrency: "unbounded" }
        )
        assert.strictEqual(outcomes.filter((outcome) => outcome._tag === "Success").length, 1)
        for (const outcome of outcomes) {
          if (outcome._tag === "Failure") assert.strictEqual(outcome.failure._tag, "ConcurrencyConflict")
        }
        assert.strictEqual((yield* readStream(stream)).length, 2)
      }))

    for (const within of ["by itself", "in a transaction"]) {
      it.effect(`of concurrent appends of one batch, one appends and all return the same, each ${within}`, () =>
        Effect.gen(function*() {
          const stream = yield* newStream
          const events = identified(stream, 3)
          const repeat = append(events, { expectedVersion: "none", onDuplicate: "return" })
          const appended = yield* Effect.forEach(
            Array.from({ length: 16 }),
            () => within === "by itself" ? repeat : options.transact(Effect.tap(repeat, () => readStream(stream))),
            { concurrency: 8 }
          )
          const stored = yield* readStream(stream)
          assert.deepStrictEqual(stored.map(({ eventId }) => eventId), events.map(({ eventId }) => eventId))
          for (const each of appended) {
            assert.deepStrictEqual(each, { stream, firstVersion: 1n, lastVersion: 3n, positions: positionsOf(stored) })
          }
        }))
    }

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

    it.effect("concurrent appends to many aggregates are all read, once, each aggregate in order", () =>
      Effect.gen(function*() {
        const boundedContext = yield* unique("context")
        const before = yield* (yield* EventStore).headPosition
        yield* Effect.forEach(
          Array.from({ length: 120 }, (_, index) => index),
          (index) => append([happened({ boundedContext, aggregateType: "Cart", aggregateId: `cart-${index % 30}` })]),
          { concurrency: 12 }
        )
        yield* settle(yield* (yield* EventStore).headPosition)
        const { events } = yield* readAll({ after: before, filter: { boundedContexts: [boundedContext] }, limit: 50 })
        assert.strictEqual(events.length, 120)
        assert.isTrue(ascending(positionsOf(events)))
        const versions = new Map<string, bigint>()
        for (const event of events) {
          assert.strictEqual(event.aggregateVersion, (versions.get(event.aggregateId) ?? 0n) + 1n)
          versions.set(event.aggregateId, event.aggregateVersion)
        }
      }))

    it.effect("finished writers do not hold the settled position back", () =>
      Effect.gen(function*() {
        yield* settle(yield* (yield* EventStore).headPosition)
        assert.deepStrictEqual(yield* (yield* EventStore).openWriters, [])
      }))
  })
