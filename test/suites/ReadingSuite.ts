/** Reading: filters, partitions, pages and the settled position. */
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import type { NewEvent } from "../../src/schema/Event.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type { ReadOptions } from "../../src/services/EventStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { append, ascending, happened, last, newStream, positionsOf, readAll, readStream, settle } from "./Streams.ts"
import type { Time } from "./Suite.ts"
import { unique } from "./Suite.ts"

export const suite = (name: string, layer: Layer.Layer<EventStore, unknown>, { time }: { readonly time: Time }) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(`EventStore, reading (${name})`, (it) => {
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
        yield* time.advance(30)
        for (const fiber of waiting) assert.isUndefined(fiber.pollUnsafe())
        const more = yield* append([happened(stream)])
        for (const fiber of waiting) assert.isTrue((yield* Fiber.join(fiber)) >= more.positions[0]!)
      }))

    it.effect("settledBeyond with a range also returns after events of other ranges, within a second", () =>
      Effect.gen(function*() {
        const store = yield* EventStore
        const settled = yield* settle(yield* store.headPosition)
        // Hardly any hash lies in this range.
        const waiting = yield* Effect.forkChild(
          store.settledBeyond(settled, Duration.minutes(10), { start: 0, end: 1 }),
          {
            startImmediately: true
          }
        )
        yield* time.advance(30)
        const { positions } = yield* append([happened(yield* newStream)])
        yield* time.advance(1000)
        assert.isTrue((yield* Fiber.join(waiting)) >= positions[0]!)
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
        yield* time.advance(5)
        yield* Fiber.interrupt(fiber)
        assert.strictEqual(yield* store.settledPosition, settled)
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
