/** What the orchestrator promises about events that cannot be handled, on any stores. */
import { assert, it } from "@effect/vitest"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import type * as Layer from "effect/Layer"
import * as Logger from "effect/Logger"
import * as Schedule from "effect/Schedule"
import type { Event } from "../../src/schema/Event.ts"
import type * as ParkedEvent from "../../src/schema/ParkedEvent.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import { ParkedEvents } from "../../src/services/ParkedEvents.ts"
import * as Projection from "../../src/services/Projection.ts"
import type { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import { unique } from "./Suite.ts"

class Poison extends Data.TaggedError("Poison")<{ readonly message: string }> {}

class Unlisted extends Data.TaggedError("Unlisted")<{ readonly message: string }> {}

type Failure = Poison | Unlisted

type Options = Projection.CommonOptions<Failure> & { readonly isBatch?: boolean }

/** The effects of a handler on its read model: the handled events, in their order, in the transaction of the batch. */
export interface Effects<R> {
  readonly record: (projection: string, events: ReadonlyArray<string>) => Effect.Effect<void, never, R>
  readonly read: (projection: string) => Effect.Effect<ReadonlyArray<string>, unknown, R>
}

/** A projection of new aggregates, whose handler fails at the events that the test poisons. */
const makeWith = <R>(effects: Effects<R>) =>
  Effect.fnUntraced(function*({ isBatch = false, ...options }: Options) {
    const events = yield* EventStore
    const store = yield* ParkedEvents
    const [name, boundedContext, replicaSet] = [
      yield* unique("projection"),
      yield* unique("context"),
      yield* unique("set")
    ]
    /** How often the handler was called for each event, which is named `aggregate-version`. */
    const calls = new Map<string, number>()
    /** The events at which the handler fails. */
    const poison = new Map<string, Effect.Effect<never, Failure>>()
    const nameOf = ({ aggregateId, aggregateVersion }: Event) => `${aggregateId}-${aggregateVersion}`
    const fails = (event: string) => poison.set(event, Effect.fail(new Poison({ message: `poison in ${event}` })))
    const handle = (event: Event) =>
      Effect.suspend((): Effect.Effect<void, Failure, R> => {
        const key = nameOf(event)
        calls.set(key, (calls.get(key) ?? 0) + 1)
        return poison.get(key) ?? effects.record(name, [key])
      })
    const common = { boundedContexts: [boundedContext], ...options }
    const projection = Projection.make<Failure, R>(
      name,
      isBatch
        ? {
          ...common,
          handleBatch: (events) =>
            Effect.suspend((): Effect.Effect<void, Failure, R> => {
              for (const event of events) calls.set(nameOf(event), (calls.get(nameOf(event)) ?? 0) + 1)
              const failing = events.find((event) => poison.has(nameOf(event)))
              return failing === undefined
                ? effects.record(name, events.map(nameOf))
                : poison.get(nameOf(failing))!
            })
        }
        : { ...common, handle }
    )
    const list = store.list(name)
    const handled = effects.read(name)
    const sorted = Effect.map(list, (events) =>
      events.map(({ aggregateId, aggregateVersion }) => `${aggregateId}-${aggregateVersion}`))
    const halt = Effect.map(
      Effect.flatMap(CheckpointStore, (checkpoints) =>
        checkpoints.rows(name)),
      (rows) => rows.find((row) => row.halt !== undefined)?.halt
    )
    return {
      name,
      handled,
      calls,
      fails,
      failsUnlisted: (event: string) =>
        poison.set(event, Effect.fail(new Unlisted({ message: `unlisted in ${event}` }))),
      defect: (event: string) => poison.set(event, Effect.die(new Error(`defect in ${event}`))),
      /** The handler fails at the event once `ready` has ended. */
      failsAfter: (event: string, ready: Effect.Effect<void>) =>
        poison.set(event, Effect.andThen(ready, Effect.fail(new Poison({ message: `poison in ${event}` })))),
      heal: (event: string) => poison.delete(event),
      /** The versions of an aggregate that were handled, in this order. */
      of: (aggregateId: string) =>
        Effect.map(handled, (events) =>
          events.filter((event) =>
            event.startsWith(`${aggregateId}-`)
          ).map((event) => Number(event.slice(aggregateId.length + 1)))),
      append: Effect.fnUntraced(function*(aggregateId: string, count = 1, correlationId?: string) {
        for (let index = 0; index < count; index++) {
          yield* events.append([{
            boundedContext,
            aggregateType: "Thing",
            aggregateId,
            eventType: "Happened",
            payload: { secret: "payload" },
            ...(correlationId === undefined ? {} : { correlationId })
          }])
        }
      }),
      /** The parked events. */
      parked: list,
      halt,
      request: (request: ParkedEvent.Request, selection: ParkedEvent.Selection = "all") =>
        store.request(name, { request, selection }),
      requestOnHalt: (request: ParkedEvent.HaltRequest) =>
        Effect.flatMap(halt, (halt) =>
          store.requestOnHalt(name, { eventId: halt!.eventId, request })),
      /** Runs a worker in the background until the returned effect stops it. */
      start: Effect.gen(function*() {
        const orchestrator = yield* Orchestrator.make({
          replicaSet,
          projections: [projection],
          pollInterval: "20 millis"
        })
        const fiber = yield* Effect.forkChild(Effect.provide(orchestrator.run, Logger.layer([])))
        return Fiber.interrupt(fiber)
      }),
      /** Waits until these events are parked, in position order. */
      untilParked: (...expected: ReadonlyArray<string>) =>
        TimeLimits.waitUntil("the events are parked", sorted, (found) =>
          found.join() === expected.join()),
      untilHandled: (event: string) =>
        TimeLimits.waitUntil(`${event} is handled`, handled, (events) => events.includes(event)),
      untilHalted: TimeLimits.waitUntil("the range is halted", halt, (halt) => halt !== undefined)
    }
  })

export const suite = <R = never>(
  name: string,
  layer: Layer.Layer<EventStore | Projections | R | Stores, unknown>,
  effects: Effects<R>
) =>
  // In real time: these tests wait for conditions, never for a time.
  it.layer(layer, { excludeTestServices: true })(`failure policies (${name})`, (it) => {
    const make = makeWith(effects)

    for (const isBatch of [false, true]) {
      const handler = isBatch ? "handleBatch" : "handle"

      it.effect(`parks a failing event, and queues later events of its key behind it (${handler})`, () =>
        Effect.gen(function*() {
          const world = yield* make({ onFailure: "park", isBatch })
          world.fails("a-2")
          yield* world.append("b")
          yield* world.append("a", 3)
          yield* world.append("b", 2)
          const stop = yield* world.start
          yield* world.untilParked("a-2", "a-3")
          yield* world.append("a")
          yield* world.append("b")
          yield* world.untilHandled("b-4")
          yield* world.untilParked("a-2", "a-3", "a-4")
          assert.deepStrictEqual([yield* world.of("a"), yield* world.of("b")], [[1], [1, 2, 3, 4]])
          const [failed, queued] = yield* world.parked
          assert.isAtLeast(failed!.attempts, 1)
          assert.deepStrictEqual([failed!.errorTag, queued!.errorTag, queued!.attempts], ["Poison", undefined, 0])
          assert.include(failed!.errorMessage, "Poison: poison in a-2")
          assert.notInclude(failed!.errorMessage, "secret")

          world.heal("a-2")
          yield* world.request("retry")
          yield* world.untilParked()
          yield* world.append("a")
          yield* world.untilHandled("a-5")
          assert.deepStrictEqual(yield* world.of("a"), [1, 2, 3, 4, 5])
          assert.isUndefined(world.calls.get("a-6"))
          yield* stop
        }))

      it.effect(`skips a failing event, after the events before it were committed (${handler})`, () =>
        Effect.gen(function*() {
          const world = yield* make({ onFailure: "skip", isBatch })
          world.fails("a-2")
          yield* world.append("a", 4)
          const stop = yield* world.start
          yield* world.untilHandled("a-4")
          assert.deepStrictEqual(yield* world.of("a"), [1, 3, 4])
          assert.deepStrictEqual(yield* world.parked, [])
          assert.isUndefined(yield* world.halt)
          yield* stop
        }))
    }

    it.effect("an onFailure function decides about typed errors; a defect halts the range", () =>
      Effect.gen(function*() {
        const asked: Array<string> = []
        const world = yield* make({
          onFailure: (error, { aggregateId }) => {
            asked.push(error.message)
            return aggregateId === "a" ? "park" : "skip"
          }
        })
        world.fails("a-1")
        world.fails("b-1")
        world.defect("c-1")
        for (const aggregateId of ["a", "b", "c", "d"]) yield* world.append(aggregateId)
        const stop = yield* world.start
        yield* world.untilHalted
        assert.deepStrictEqual(asked, ["poison in a-1", "poison in b-1"])
        assert.include((yield* world.halt)!.error, "defect in c-1")
        assert.deepStrictEqual((yield* world.parked).map(({ key }) => key), ["a"])
        assert.deepStrictEqual(yield* world.handled, [])
        yield* stop
      }))

    it.effect("onFailure decides by tag about typed errors; an error whose tag is not listed halts the range", () =>
      Effect.gen(function*() {
        const world = yield* make({ onFailure: { Poison: "park" } })
        world.fails("a-1")
        world.failsUnlisted("b-1")
        for (const aggregateId of ["a", "b", "c"]) yield* world.append(aggregateId)
        const stop = yield* world.start
        yield* world.untilHalted
        assert.include((yield* world.halt)!.error, "unlisted in b-1")
        assert.deepStrictEqual((yield* world.parked).map(({ key }) => key), ["a"])
        assert.deepStrictEqual(yield* world.handled, [])
        yield* stop
      }))

    it.effect("an onFailure function that throws or returns an unknown decision halts the range", () =>
      Effect.gen(function*() {
        for (
          const onFailure of [() => "retry" as Projection.FailureDecision, () => {
            throw new Error("broken")
          }]
        ) {
          const world = yield* make({ onFailure })
          world.fails("a-1")
          yield* world.append("a")
          const stop = yield* world.start
          yield* world.untilHalted
          assert.include((yield* world.halt)!.error, "poison in a-1")
          yield* stop
        }
      }))

    it.effect("retries each event by a schedule that starts from scratch, and then parks it", () =>
      Effect.gen(function*() {
        const inputs: Array<string> = []
        const retry = Schedule.recurs(2).pipe(
          Schedule.setInputType<Failure>(),
          Schedule.tap(({ input }) => Effect.sync(() => inputs.push(input.message)))
        )
        const world = yield* make({ onFailure: "park", retry })
        world.fails("a-1")
        world.fails("b-1")
        yield* world.append("a")
        yield* world.append("b")
        const stop = yield* world.start
        yield* world.untilParked("a-1", "b-1")
        assert.deepStrictEqual((yield* world.parked).map(({ attempts }) => attempts), [3, 3])
        assert.deepStrictEqual(world.calls.get("a-1"), 3)
        assert.deepStrictEqual([...new Set(inputs)], ["poison in a-1", "poison in b-1"])
        yield* stop
      }))

    it.effect("an event that succeeds at a retry is handled in order", () =>
      Effect.gen(function*() {
        const world = yield* make({ onFailure: "park", retry: Schedule.spaced("5 millis") })
        world.fails("a-1")
        yield* world.append("a", 2)
        const stop = yield* world.start
        yield* TimeLimits.waitUntil("two attempts", Effect.sync(() => world.calls.get("a-1") ?? 0), (n) => {
          if (n >= 2) world.heal("a-1")
          return n >= 2
        })
        yield* world.untilHandled("a-2")
        assert.deepStrictEqual(yield* world.of("a"), [1, 2])
        assert.deepStrictEqual(yield* world.parked, [])
        yield* stop
      }))

    it.effect("a retry that fails keeps the event parked and withdraws the retries of its key", () =>
      Effect.gen(function*() {
        const world = yield* make({ onFailure: "park" })
        world.fails("a-1")
        world.fails("b-1")
        yield* world.append("a", 2)
        yield* world.append("b", 2)
        const stop = yield* world.start
        yield* world.untilParked("a-1", "a-2", "b-1", "b-2")
        const [before] = yield* world.parked
        world.heal("b-1")
        yield* world.request("retry")
        yield* world.untilParked("a-1", "a-2")
        const after = yield* TimeLimits.waitUntil(
          "the failure is recorded",
          world.parked,
          (events) => events.every(({ request }) => request === undefined)
        )
        assert.strictEqual(after[0]!.attempts, before!.attempts + 1)
        assert.deepStrictEqual([yield* world.of("a"), yield* world.of("b")], [[], [1, 2]])

        // Dropped events are not handled; later ones still wait for a retry of their own.
        yield* world.request("drop", { first: 1 })
        yield* world.untilParked("a-2")
        yield* world.request("retry", { key: "a" })
        yield* world.untilParked()
        assert.deepStrictEqual(yield* world.of("a"), [2])
        yield* stop
      }))

    it.effect("a later worker queues events behind those that an earlier one has parked, and executes requests about them", () =>
      Effect.gen(function*() {
        const world = yield* make({ onFailure: "park" })
        world.fails("a-1")
        yield* world.append("a", 2)
        const stopFirst = yield* world.start
        yield* world.untilParked("a-1", "a-2")
        yield* stopFirst
        world.heal("a-1")
        yield* world.append("a")
        yield* world.append("b")
        const stopSecond = yield* world.start
        yield* world.untilHandled("b-1")
        yield* world.untilParked("a-1", "a-2", "a-3")
        assert.deepStrictEqual(yield* world.of("a"), [])
        yield* stopSecond
        yield* world.request("retry")
        const stopThird = yield* world.start
        yield* world.untilParked()
        yield* world.append("a")
        yield* world.untilHandled("a-4")
        assert.deepStrictEqual(yield* world.of("a"), [1, 2, 3, 4])
        yield* stopThird
      }))

    it.effect("halts at the event that would exceed a limit, and continues after a drop", () =>
      Effect.gen(function*() {
        const world = yield* make({ onFailure: "park", parkingLimits: { keys: 1, events: 3 } })
        world.fails("a-1")
        world.fails("b-1")
        yield* world.append("a", 2)
        yield* world.append("b", 2)
        const stop = yield* world.start
        yield* world.untilHalted
        const halt = (yield* world.halt)!
        assert.include(halt.error, "ParkingLimitReached: ")
        assert.include(halt.error, "Thing \"b\", version 1")
        yield* world.request("drop")
        yield* world.untilParked("b-1", "b-2")
        assert.isUndefined(yield* world.halt)
        // The limit of events: the fourth event of key b halts the range.
        yield* world.append("b", 2)
        yield* world.untilHalted
        assert.include((yield* world.halt)!.error, "Thing \"b\", version 4")
        yield* world.untilParked("b-1", "b-2", "b-3")
        world.heal("b-1")
        yield* world.request("retry")
        yield* world.untilHandled("b-4")
        assert.deepStrictEqual(yield* world.of("b"), [1, 2, 3, 4])
        yield* stop
      }))

    it.effect("retries or skips the event of a halted range on request, without a restart", () =>
      Effect.gen(function*() {
        const world = yield* make({})
        world.fails("a-1")
        world.fails("a-2")
        yield* world.append("a", 3)
        const stop = yield* world.start
        yield* world.untilHalted
        world.heal("a-1")
        assert.isTrue(yield* world.requestOnHalt("retry"))
        yield* TimeLimits.waitUntil(
          "the range is halted at the next event",
          world.halt,
          (halt) => halt?.error.includes("version 2") === true
        )
        assert.deepStrictEqual(yield* world.of("a"), [1])
        assert.isTrue(yield* world.requestOnHalt("skip"))
        yield* world.untilHandled("a-3")
        assert.deepStrictEqual(yield* world.of("a"), [1, 3])
        assert.isUndefined(yield* world.halt)
        yield* stop
      }))

    it.effect("a skip that is requested while the halted event is retried is executed", () =>
      Effect.gen(function*() {
        const world = yield* make({})
        world.fails("a-1")
        yield* world.append("a", 2)
        const stop = yield* world.start
        yield* world.untilHalted
        const [retried, requested] = [Latch.makeUnsafe(false), Latch.makeUnsafe(false)]
        world.failsAfter("a-1", Effect.andThen(retried.open, requested.await))
        assert.isTrue(yield* world.requestOnHalt("retry"))
        yield* retried.await
        assert.isTrue(yield* world.requestOnHalt("skip"))
        yield* requested.open
        yield* world.untilHandled("a-2")
        assert.deepStrictEqual(yield* world.of("a"), [2])
        yield* stop
      }))

    it.effect("queues by the partition key of the projection", () =>
      Effect.gen(function*() {
        const world = yield* make({ onFailure: "park", partitionBy: "correlationId" })
        world.fails("a-1")
        yield* world.append("a", 1, "order-1")
        yield* world.append("b", 1, "order-1")
        yield* world.append("c", 1, "order-2")
        const stop = yield* world.start
        yield* world.untilHandled("c-1")
        yield* world.untilParked("a-1", "b-1")
        assert.deepStrictEqual((yield* world.parked).map(({ key }) => key), ["order-1", "order-1"])
        world.heal("a-1")
        yield* world.request("retry", { key: "order-1" })
        yield* world.untilParked()
        assert.deepStrictEqual(yield* world.handled, ["c-1", "a-1", "b-1"])
        yield* stop
      }))

    it.effect("refuses park with global order, limits that are not positive, and an unknown decision", () =>
      Effect.gen(function*() {
        const refused = (options: Options) =>
          Effect.flip(Orchestrator.make({
            replicaSet: "refused",
            projections: [Projection.make<Failure>("refused", { ...options, handle: () => Effect.void })]
          }))
        assert.include((yield* refused({ ordering: "global", onFailure: "park" })).message, "ordering \"global\"")
        assert.include((yield* refused({ ordering: "global", onFailure: () => "skip" })).message, "ordering \"global\"")
        assert.include(
          (yield* refused({ ordering: "global", onFailure: { Poison: "park" } })).message,
          "ordering \"global\""
        )
        assert.include(
          (yield* refused({ onFailure: { Poison: "ignore" as Projection.FailureDecision } })).message,
          "onFailure of \"refused\" is {\"Poison\":\"ignore\"}"
        )
        assert.include((yield* refused({ parkingLimits: { keys: 0 } })).message, "parkingLimits.keys")
        assert.include(
          (yield* refused({ onFailure: "ignore" as Projection.FailureDecision })).message,
          "onFailure of \"refused\" is \"ignore\""
        )
      }))
  })
