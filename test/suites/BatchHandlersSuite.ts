/** What a handler of batches can rely on, on any stores. Its effects are events that it appends in its transaction. */
import { assert, it } from "@effect/vitest"
import type * as Array from "effect/Array"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import type { Event } from "../../src/schema/Event.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import type { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { waitUntil } from "../../src/testing/TimeLimits.ts"
import { unique } from "./Suite.ts"

class NoCountry extends Data.TaggedError("NoCountry") {}
class TooMany extends Data.TaggedError("TooMany") {}

const eventOf = (aggregateType: string, aggregateId: string, causationId?: string) => ({
  boundedContext: "test",
  aggregateType,
  aggregateId,
  eventType: "Happened",
  payload: {},
  causationId
})

/** Aggregates of a new type, and a projection that appends a copy of each of their events. */
const given = Effect.gen(function*() {
  const events = yield* EventStore
  const aggregateType = yield* unique("type")
  const copyType = `${aggregateType}-copy`
  const name = yield* unique("projection")
  const replicaSet = yield* unique("replica-set")
  const calls: globalThis.Array<ReadonlyArray<string>> = []
  const append = (ids: ReadonlyArray<string>) =>
    Effect.forEach(ids, (id) => events.append([eventOf(aggregateType, id)]), { discard: true })
  const worker = (
    fail: (events: Array.NonEmptyReadonlyArray<Event>) => Effect.Effect<void, unknown>,
    batchWindow?: Projection.BatchWindow
  ) =>
    Orchestrator.make({
      replicaSet,
      projections: [
        Projection.make(name, {
          aggregateTypes: [aggregateType],
          batchWindow,
          handleBatch: Effect.fnUntraced(function*(batch) {
            calls.push(batch.map(({ aggregateId }) => aggregateId))
            for (const { aggregateId, eventId } of batch) {
              yield* events.append([eventOf(copyType, aggregateId, eventId)])
            }
            // The copies were appended before, so that they are rolled back.
            yield* fail(batch)
          })
        })
      ]
    })
  const copies = Effect.map(
    events.read({ after: 0n, filter: { aggregateTypes: [copyType] } }),
    ({ events }) => events.map(({ aggregateId }) => aggregateId)
  )
  const halts = Effect.flatMap(
    CheckpointStore,
    ({ rows }) => Effect.map(rows(name), (rows) => rows.map(({ halt }) => halt))
  )
  return { append, calls, copies, events, halts, worker }
})

const ids = (count: number) => globalThis.Array.from({ length: count }, (_, index) => `thing-${index + 1}`)

const bad = "thing-23"
const failsAt = (batch: ReadonlyArray<Event>) => batch.find(({ aggregateId }) => aggregateId === bad)

export const suite = (name: string, layer: Layer.Layer<EventStore | Projections | Stores, unknown>) =>
  // In real time: these tests wait for workers, never for a time.
  it.layer(layer, { excludeTestServices: true })(`batch handlers (${name})`, (it) => {
    it.effect("get the events in position order, and commit with the progress", () =>
      Effect.gen(function*() {
        const { append, calls, copies, worker } = yield* given
        yield* append([...ids(60), ...ids(60)])
        yield* (yield* worker(() => Effect.void)).catchUp
        assert.deepStrictEqual(yield* copies, [...ids(60), ...ids(60)])
        assert.deepStrictEqual(calls.flat(), [...ids(60), ...ids(60)])
        assert.strictEqual(calls[0]?.length, 100, "nothing is known about the time of the first batch")
        assert.lengthOf(calls, 2)
      }))

    const failures: ReadonlyArray<readonly [string, (event: Event) => Effect.Effect<never, unknown>, number]> = [
      ["an event that is not named", () => Effect.fail(new NoCountry()), 8],
      ["an event that is named", (event) => Projection.failAt(event, new NoCountry()), 3],
      ["an event at which it dies", () => Effect.die(new NoCountry()), 8]
    ]
    it.effect.each(failures)("commit the events before %s, and are halted at it alone", ([, fail, most]) =>
      Effect.gen(function*() {
        const { append, calls, copies, halts, worker } = yield* given
        yield* append(ids(60))
        const failing = yield* worker((batch) => {
          const event = failsAt(batch)
          return event === undefined ? Effect.void : fail(event)
        })
        const error = yield* Effect.flip(failing.catchUp)
        assert.strictEqual(error._tag, "ProjectionHalted")
        assert.include(error.message, "NoCountry")
        assert.include(error.message, bad)
        assert.deepStrictEqual(yield* copies, ids(22))
        assert.deepStrictEqual(calls.at(-1), [bad])
        assert.isAtMost(calls.length, most)
        assert.lengthOf(
          (yield* halts).filter((halt) =>
            halt !== undefined
          ),
          1
        )

        // A fixed handler continues with it, and handles each event once.
        yield* (yield* worker(() => Effect.void)).catchUp
        assert.deepStrictEqual(yield* copies, ids(60))
      }))

    it.effect("that fail for several events together handle them in smaller batches", () =>
      Effect.gen(function*() {
        const { append, copies, worker } = yield* given
        yield* append(ids(40))
        yield* (yield* worker((batch) => batch.length > 7 ? Effect.fail(new TooMany()) : Effect.void)).catchUp
        assert.deepStrictEqual(yield* copies, ids(40))
      }))

    it.effect("wait for more events in a batch window, until it has enough of them, the range is released or `catchUp` runs", () =>
      Effect.gen(function*() {
        const { append, calls, copies, worker } = yield* given
        const window = { time: "1 hour", events: 3 } as const
        const running = yield* Effect.forkScoped((yield* worker(() => Effect.void, window)).run)
        yield* append(ids(2))
        yield* Effect.sleep(100)
        yield* append(ids(1))
        yield* waitUntil("three events are copied", copies, ({ length }) => length === 3)
        assert.deepStrictEqual(yield* copies, ["thing-1", "thing-2", "thing-1"])
        assert.deepStrictEqual(calls.map(({ length }) => length), [3])
        yield* append(ids(1))
        yield* Fiber.interrupt(running)
        assert.lengthOf(yield* copies, 3, "the wait ends with the release")
        yield* (yield* worker(() => Effect.void, window)).catchUp
        assert.lengthOf(yield* copies, 4, "catchUp does not wait")
      }))

    it.effect("append events without a default cause", () =>
      Effect.gen(function*() {
        const { append, events, worker } = yield* given
        const [id = "", derived = ""] = [yield* unique("thing"), yield* unique("derived")]
        yield* append([id])
        yield* (yield* worker(() => Effect.asVoid(events.append([eventOf("Derived", derived)])))).catchUp
        const stream = { boundedContext: "test", aggregateType: "Derived", aggregateId: derived }
        const [event] = yield* events.readStream(stream)
        assert.deepStrictEqual([event?.correlationId, event?.causationId], [null, null])
      }))
  })
