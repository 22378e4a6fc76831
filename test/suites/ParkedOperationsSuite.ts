import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type { Held } from "../../src/schema/Checkpoint.ts"
import type { EventNotHalted, ProjectionUnknown, StoreError } from "../../src/schema/Errors.ts"
import { defaultLimits, type ParkedEvent } from "../../src/schema/ParkedEvent.ts"
import * as PartitionKey from "../../src/schema/PartitionKey.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { ParkedEvents } from "../../src/services/ParkedEvents.ts"
import { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { held } from "./Members.ts"
import type { Time } from "./Suite.ts"

/** The row of a worker that holds all of a new projection. */
const whole = Effect.map(held(), ([row]) => row!)

type Errors = EventNotHalted | ProjectionUnknown | StoreError

const idleTimeout = Duration.seconds(20)

/** Appends an event and parks it: with a failure if `errorTag` is given. Returns its position. */
const park = Effect.fnUntraced(function*(row: Held, aggregateId: string, errorTag?: string) {
  const [store, events] = [yield* ParkedEvents, yield* EventStore]
  const event = { boundedContext: "app", aggregateType: "Thing", aggregateId, eventType: "Happened", payload: {} }
  const { positions: [position] } = yield* events.append([event])
  const page = yield* events.read({ after: position! - 1n, upTo: position })
  const failure = errorTag === undefined
    ? undefined
    : { attempts: 1, since: Duration.zero, errorTag, errorMessage: `${errorTag}: no` }
  const parked = store.park(row, {
    events: page.events,
    failure,
    limits: defaultLimits,
    partitionBy: PartitionKey.byDefault
  })
  yield* (yield* CheckpointStore).commit(row, { from: 0n, idleTimeout }, Effect.as(parked, 0n))
  return position!
})

const use = <A, E, R>(f: (projections: Projections["Service"]) => Effect.Effect<A, E, R>) =>
  Effect.flatMap(Projections, f)

const positions = (events: ReadonlyArray<ParkedEvent>) => events.map(({ position }) => position)

const requests = (events: ReadonlyArray<ParkedEvent>) =>
  events.map(({ request, requestedBy }) => [request, requestedBy])

/** The projection in the status. */
const statusOf = ({ projection }: Held) =>
  Effect.map(
    use(({ status }) => status),
    ({ replicaSets }) =>
      replicaSets.flatMap(({ projections }) => projections).find((one) => one.projection === projection)!
  )

const halt = (row: Held, eventId: string) =>
  Effect.flatMap(CheckpointStore, (store) => store.halt(row, { at: 0n, error: "Broken", position: 7n, eventId }))

export const suite = (
  name: string,
  layer: Layer.Layer<EventStore | Projections | Stores, unknown>,
  { time }: { readonly time: Time }
) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(`Projections, operations (${name})`, (it) => {
    it.effect("parked lists the selected events of one projection, in position order", () =>
      Effect.gen(function*() {
        const [row, other] = [yield* whole, yield* whole]
        const { projection } = row
        const list = (...selection: ReadonlyArray<Parameters<Projections["Service"]["parked"]>[1]>) =>
          Effect.map(use(({ parked }) => parked(projection, ...selection)), positions)
        assert.deepStrictEqual(yield* list(), [])
        const [a, b, c, d] = [
          yield* park(row, "a", "Timeout"),
          yield* park(row, "a"),
          yield* park(row, "b", "NotFound"),
          yield* park(row, "c", "Timeout")
        ]
        yield* park(other, "a", "Timeout")
        assert.deepStrictEqual(yield* list(), [a, b, c, d])
        assert.deepStrictEqual(yield* list("all"), [a, b, c, d])
        assert.deepStrictEqual(yield* list({ key: "a" }), [a, b])
        assert.deepStrictEqual(yield* list({ errorTag: "Timeout" }), [a, d])
        assert.deepStrictEqual(yield* list({ first: 3 }), [a, b, c])
        assert.deepStrictEqual(yield* list({ key: "z" }), [])
        assert.isTrue(requests(yield* use(({ parked }) => parked(projection))).every(([one]) => one === undefined))
      }))

    it.effect("retries and removals are recorded with the name of the requester; a dry run only returns the events", () =>
      Effect.gen(function*() {
        const row = yield* whole
        const { projection } = row
        const [a, b, c] = [yield* park(row, "a", "Timeout"), yield* park(row, "a"), yield* park(row, "b", "NotFound")]
        const recorded = Effect.map(use(({ parked }) => parked(projection)), requests)
        const nothing = [undefined, undefined]
        for (const dryRun of [true, false]) {
          const retried = yield* use(({ retryParked }) =>
            retryParked(projection, { errorTag: "Timeout" }, { dryRun, requestedBy: "ada" })
          )
          assert.deepStrictEqual(positions(retried), [a, b])
          assert.deepStrictEqual(
            yield* recorded,
            dryRun ? [nothing, nothing, nothing] : [["retry", "ada"], ["retry", "ada"], nothing]
          )
        }
        for (const dryRun of [true, false]) {
          const dropped = yield* use(({ dropParked }) =>
            dropParked(projection, "all", { dryRun, requestedBy: "grace" })
          )
          assert.deepStrictEqual(positions(dropped), [a, b, c])
        }
        assert.deepStrictEqual(yield* recorded, [["drop", "grace"], ["drop", "grace"], ["drop", "grace"]])
        assert.deepStrictEqual(yield* use(({ retryParked }) => retryParked(projection, { key: "z" })), [])
        yield* use(({ retryParked }) => retryParked(projection, { first: 1 }))
        assert.deepStrictEqual((yield* recorded)[0], ["retry", undefined])
        // A name that PostgreSQL cannot store does not prevent the request.
        yield* use(({ dropParked }) => dropParked(projection, "all", { requestedBy: "a\u0000b" }))
        assert.isTrue((yield* recorded).every(([request, by]) => request === "drop" && by !== undefined))
      }))

    it.effect("an unknown projection is an error that names the projections with progress", () =>
      Effect.gen(function*() {
        const { projection } = yield* whole
        const misspelt = `${projection}x`
        const attempts = yield* Effect.map(Projections, (projections) => [
          projections.parked(misspelt),
          projections.parked(misspelt, { key: "a" }),
          projections.retryParked(misspelt, "all"),
          projections.dropParked(misspelt, "all", { dryRun: true }),
          projections.retryHalted(misspelt, "e7"),
          projections.skipHalted(misspelt, "e7")
        ])
        for (const attempt of attempts) {
          const error = yield* Effect.flip<unknown, Errors, never>(attempt)
          assert(error._tag === "ProjectionUnknown")
          assert.strictEqual(error.projection, misspelt)
          assert.include(error.known, projection)
          assert.include(error.message, `"${misspelt}"`)
        }
      }))

    it.effect("a request about a halted range is shown by the status, and is refused for another event", () =>
      Effect.gen(function*() {
        const row = yield* whole
        const { projection } = row
        const idle = yield* Effect.flip(use(({ skipHalted }) => skipHalted(projection, "e7")))
        assert(idle._tag === "EventNotHalted")
        assert.include(idle.message, "None of its ranges is halted")
        yield* halt(row, "e7")
        const shown = Effect.map(statusOf(row), ({ ranges }) => ranges[0]!.halt?.request)
        const wrong = yield* Effect.flip(use(({ skipHalted }) => skipHalted(projection, "e8")))
        assert(wrong._tag === "EventNotHalted")
        assert.deepStrictEqual(wrong.halted, ["e7"])
        assert.isUndefined(yield* shown)
        yield* use(({ retryHalted }) => retryHalted(projection, "e7"))
        assert.strictEqual(yield* shown, "retry")
        yield* use(({ skipHalted }) => skipHalted(projection, "e7"))
        assert.strictEqual(yield* shown, "skip")
      }))

    it.effect("the status counts parked events and their keys, and shows when the oldest was parked", () =>
      Effect.gen(function*() {
        const [row, other] = [yield* whole, yield* whole]
        assert.isUndefined((yield* statusOf(row)).parked)
        yield* park(row, "a", "Timeout")
        const [first] = yield* use(({ parked }) => parked(row.projection))
        yield* time.advance(20)
        yield* park(row, "a")
        yield* park(row, "b", "Timeout")
        assert.deepStrictEqual((yield* statusOf(row)).parked, { events: 3, keys: 2, oldest: first!.parkedAt })
        assert.isUndefined((yield* statusOf(other)).parked)
      }))
  })
