/** Appending: versions, conflicts, repeated appends, transactions and concurrency. */
import { assert, it } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import type { NewEvent } from "../../src/schema/Event.ts"
import type { EventStore } from "../../src/services/EventStore.ts"
import {
  append,
  ascending,
  happened,
  identified,
  last,
  newStream,
  positionsOf,
  readAll,
  readStream,
  settle
} from "./Streams.ts"
import type { Time } from "./Suite.ts"

export interface Options<R> {
  readonly time: Time
  /** Runs an effect in a transaction of the application on this implementation. */
  readonly transact: <A, E, R1>(self: Effect.Effect<A, E, R1>) => Effect.Effect<A, unknown, R1 | R>
}

export const suite = <R = never>(
  name: string,
  layer: Layer.Layer<EventStore | R, unknown>,
  { time, transact }: Options<R>
) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(`EventStore, appending (${name})`, (it) => {
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
        const again = yield* Effect.flip(
          append([happened(other), happened(other, { eventId: eventId.toUpperCase() })])
        )
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

    it.effect("an append joins the caller's transaction", () =>
      Effect.gen(function*() {
        const stream = yield* newStream
        const failed = yield* Effect.flip(transact(Effect.gen(function*() {
          yield* append([happened(stream)])
          yield* append([happened(stream)], { expectedVersion: 1n })
          return yield* Effect.fail("no")
        })))
        assert.strictEqual(failed, "no")
        assert.deepStrictEqual(yield* readStream(stream), [])
        const { appended, within } = yield* transact(Effect.gen(function*() {
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
        yield* transact(Effect.gen(function*() {
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
        yield* transact(Effect.gen(function*() {
          assert.deepStrictEqual(yield* append(earlier, { expectedVersion: "none", onDuplicate: "return" }), original)
          const first = yield* append(own, { expectedVersion: 2n, onDuplicate: "return" })
          assert.deepStrictEqual(yield* append(own, { expectedVersion: 2n, onDuplicate: "return" }), first)
          const both = yield* Effect.flip(append([...own, ...earlier], { onDuplicate: "return" }))
          assert.strictEqual(both._tag, "DuplicateEvent")
          yield* append([happened(stream)], { expectedVersion: 3n })
        }))
        assert.strictEqual((yield* readStream(stream)).length, 4)
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
            () => within === "by itself" ? repeat : transact(Effect.tap(repeat, () => readStream(stream))),
            { concurrency: 8 }
          )
          const stored = yield* readStream(stream)
          assert.deepStrictEqual(stored.map(({ eventId }) => eventId), events.map(({ eventId }) => eventId))
          for (const each of appended) {
            assert.deepStrictEqual(each, {
              stream,
              firstVersion: 1n,
              lastVersion: 3n,
              positions: positionsOf(stored)
            })
          }
        }))
    }
  })
