import { assert, it } from "@effect/vitest"
import * as Cause from "effect/Cause"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import { type Held, key } from "../../src/schema/Checkpoint.ts"
import { ParkingLimitReached } from "../../src/schema/Errors.ts"
import type { Event } from "../../src/schema/Event.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as ParkedEvent from "../../src/schema/ParkedEvent.ts"
import * as PartitionKey from "../../src/schema/PartitionKey.ts"
import { CheckpointStore, Fenced, HandlerFailure } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { ParkedEvents } from "../../src/services/ParkedEvents.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { decide, held, join, preview } from "./Members.ts"
import type { Time } from "./Suite.ts"
import { unique } from "./Suite.ts"

/** Appends one event to each of the aggregates, and returns the events in position order. */
const append = Effect.fnUntraced(function*(boundedContext: string, ...aggregateIds: ReadonlyArray<string>) {
  const store = yield* EventStore
  const events: Array<Event> = []
  for (const aggregateId of aggregateIds) {
    const event = { boundedContext, aggregateType: "Thing", aggregateId, eventType: "Happened", payload: {} }
    const { positions } = yield* store.append([event])
    events.push(...(yield* store.read({ after: positions[0]! - 1n, upTo: positions[0]! })).events)
  }
  return events
})

const commit = Effect.fnUntraced(function*<E, R>(
  row: Held,
  work: Effect.Effect<unknown, E, R>,
  to = 0n
) {
  const idleTimeout = Duration.seconds(20)
  return yield* (yield* CheckpointStore).commit(row, { from: 0n, idleTimeout }, Effect.as(work, to))
})

const failure = { attempts: 2, since: Duration.minutes(1), errorTag: "NoSuchCountry", errorMessage: "no country ZZ" }

const limits = ParkedEvent.defaultLimits

const partitionBy = PartitionKey.byDefault

const use = <A, E, R>(f: (store: ParkedEvents) => Effect.Effect<A, E, R>) => Effect.flatMap(ParkedEvents, f)

/** Parks the first event with a failure and the others behind it. */
const park = Effect.fnUntraced(function*(row: Held, [first, ...rest]: ReadonlyArray<Event>) {
  yield* commit(row, use((store) => store.park(row, { events: [first!], failure, limits, partitionBy })))
  if (rest.length > 0) yield* commit(row, use((store) => store.park(row, { events: rest, limits, partitionBy })))
})

const list = ({ projection }: Held) => use((store) => store.list(projection))

const request = (row: Held, request: ParkedEvent.Request, selection: ParkedEvent.Selection, dryRun = false) =>
  use((store) => store.request(row.projection, { request, selection, dryRun, requestedBy: "ops" }))

/** The requests about parked events: their positions and what is requested. */
const requested = (row: Held) =>
  Effect.map(
    use((store) => store.requests(row)),
    ({ parked }) => parked.map(({ position, request }) => [position, request])
  )

const positions = (events: ReadonlyArray<Event>) => events.map(({ globalPosition }) => globalPosition)

export const suite = (
  name: string,
  layer: Layer.Layer<EventStore | Stores, unknown>,
  { time }: { readonly time: Time }
) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(`ParkedEvents (${name})`, (it) => {
    it.effect("a projection without parked events has no keys and no requests", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        assert.deepStrictEqual(yield* list(row!), [])
        assert.strictEqual((yield* use((store) => store.keys(row!))).size, 0)
        assert.deepStrictEqual(yield* use((store) => store.requests(row!)), { parked: [], halt: undefined })
        assert.deepStrictEqual(yield* request(row!, "retry", "all"), [])
      }))

    it.effect("lists the failed event with its failure, and the events that queue behind it", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const key = yield* unique("key")
        const events = yield* append("app", key, key)
        yield* park(row!, events)
        const [failed, queued] = yield* list(row!)
        const { keyHash, parkedAt } = failed!
        const described = {
          projection: row!.projection,
          key,
          keyHash,
          eventType: "Happened",
          aggregateType: "Thing",
          aggregateId: key,
          request: undefined,
          requestedAt: undefined,
          requestedBy: undefined
        }
        const { firstAttemptAt, lastAttemptAt } = failed!
        assert.deepStrictEqual(failed, {
          ...described,
          eventId: events[0]!.eventId,
          position: events[0]!.globalPosition,
          aggregateVersion: 1n,
          parkedAt,
          attempts: 2,
          firstAttemptAt,
          lastAttemptAt,
          errorTag: "NoSuchCountry",
          errorMessage: "no country ZZ"
        })
        assert.approximately(lastAttemptAt!.getTime() - firstAttemptAt!.getTime(), 60_000, 1000)
        assert.deepStrictEqual(queued, {
          ...described,
          eventId: events[1]!.eventId,
          position: events[1]!.globalPosition,
          aggregateVersion: 2n,
          parkedAt: queued!.parkedAt,
          attempts: 0,
          firstAttemptAt: undefined,
          lastAttemptAt: undefined,
          errorTag: undefined,
          errorMessage: undefined
        })
        assert.deepStrictEqual(yield* use((store) => store.keys(row!)), new Map([[keyHash, 2]]))
        const page = yield* use((store) => store.list(row!.projection, { after: events[0]!.globalPosition, limit: 1 }))
        assert.deepStrictEqual(page, [queued!])
        assert.deepStrictEqual(
          yield* use((store) => store.list(row!.projection, { limit: 1 })),
          [failed!]
        )
      }))

    it.effect("parks with the progress of the batch, or not at all", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const [event] = yield* append("app", yield* unique("key"))
        const parking = use((store) => store.park(row!, { events: [event!], failure, limits, partitionBy }))
        yield* Effect.flip(commit(row!, Effect.andThen(parking, Effect.fail("later"))))
        assert.deepStrictEqual(yield* list(row!), [])
        const fenced = { ...row!, fence: { ...row!.fence, generationId: row!.fence.generationId + 1n } }
        assert.instanceOf(yield* Effect.flip(commit(fenced, parking)), Fenced)
        assert.deepStrictEqual(yield* list(row!), [])
        yield* commit(row!, parking, event!.globalPosition)
        assert.lengthOf(yield* list(row!), 1)
        const rows = yield* (yield* CheckpointStore).rows(row!.projection)
        assert.deepStrictEqual(rows.map(({ position }) => position), [event!.globalPosition])
      }))

    it.effect("reads the keys under the fence of the range and in the server epoch of the page", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const [event] = yield* append("app", yield* unique("key"))
        yield* park(row!, [event!])
        const fenced = { ...row!, fence: { ...row!.fence, generationId: row!.fence.generationId + 1n } }
        assert.strictEqual((yield* Effect.flip(use((store) => store.keys(fenced))))._tag, "Fenced")
        assert.strictEqual((yield* Effect.flip(use((store) => store.keys(row!, "1@1"))))._tag, "EpochEnded")
        const { epoch } = yield* (yield* EventStore).read({ after: 0n })
        assert.strictEqual((yield* use((store) => store.keys(row!, epoch))).size, 1)
      }))

    it.effect("parking an event again does not change its row", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const [event] = yield* append("app", yield* unique("key"))
        yield* park(row!, [event!])
        const before = yield* list(row!)
        const returned: Array<ReadonlyArray<number>> = []
        const parking = use((store) => store.park(row!, { events: [event!], limits, partitionBy }))
        yield* commit(row!, Effect.map(parking, (hashes) => returned.push(hashes)))
        assert.deepStrictEqual(yield* list(row!), before)
        assert.deepStrictEqual(returned.at(-1), [])
      }))

    it.effect("the claim of a range shows whether it has parked events", () =>
      Effect.gen(function*() {
        const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
        const first = yield* join(replicaSet, "a", [projection])
        const { ownedRows: [row], withoutParked } = yield* decide(first)
        assert.isTrue(withoutParked.has(key(row!)))
        yield* park(row!, yield* append("app", yield* unique("key")))
        const [parked] = yield* list(row!)
        assert.strictEqual((yield* decide(first)).withoutParked.size, 0)
        yield* decide(first, { leaving: true })
        const others = yield* Effect.forEach(["b", "c"], (id) => join(replicaSet, id, [projection]))
        const claims = yield* Effect.forEach(others, (member) => decide(member))
        const shown = claims.flatMap(({ ownedRows, withoutParked }) =>
          ownedRows.map((row) => [withoutParked.has(key(row)), HashRange.includes(row.range, parked!.keyHash)])
        )
        assert.sameDeepMembers(shown, [[true, false], [false, true]])
      }))

    it.effect("only a hand-over shows whether a range has parked events, not a later view of the same fence", () =>
      Effect.gen(function*() {
        const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
        const first = yield* join(replicaSet, "a", [projection])
        yield* decide(first)
        const second = yield* join(replicaSet, "b", [projection])
        yield* decide(second)
        yield* decide(first)
        const { ownedRows, withoutParked } = yield* preview(second)
        assert.deepStrictEqual([...withoutParked].filter((each) => each === key(ownedRows[0]!)).length, 1)
        // A server that loses the last change of the parked events may keep the fence.
        const again = yield* preview(second, { ownedKeys: new Set(ownedRows.map(key)) })
        assert.deepStrictEqual(again.ownedRows, ownedRows)
        assert.isFalse(again.withoutParked.has(key(ownedRows[0]!)))
      }))

    it.effect("a range reads only the keys and requests of its own hashes", () =>
      Effect.gen(function*() {
        const rows = yield* held(2)
        const ids = yield* Effect.forEach(Array.from({ length: 12 }), () => unique("key"))
        const events = yield* append("app", ...ids)
        yield* commit(rows[0]!, use((store) => store.park(rows[0]!, { events, limits, partitionBy })))
        const parked = yield* request(rows[0]!, "retry", "all")
        assert.deepStrictEqual(parked.map(({ position }) => position), positions(events))
        for (const row of rows) {
          const own = parked.filter(({ keyHash }) => HashRange.includes(row.range, keyHash))
          assert.isAbove(own.length, 0)
          assert.isBelow(own.length, 12)
          assert.deepStrictEqual(
            yield* use((store) => store.keys(row)),
            new Map(own.map(({ keyHash }) => [keyHash, 1]))
          )
          assert.deepStrictEqual(yield* requested(row), own.map(({ position }) => [position, "retry"]))
        }
      }))

    const partitionings = [PartitionKey.byDefault, "correlationId", { metadata: "tenant" }] as const

    for (const partitionBy of partitionings) {
      it.effect(`parks an event with the hash that a read returns, by ${PartitionKey.format(partitionBy)}`, () =>
        Effect.gen(function*() {
          const [row] = yield* held()
          const ids = yield* Effect.forEach(Array.from({ length: 3 }), () => unique("key"))
          const boundedContext = yield* unique("app")
          const after = (yield* append(boundedContext, ids[0]!))[0]!.globalPosition
          const store = yield* EventStore
          const stream = { boundedContext, aggregateType: "Thing", eventType: "Happened", payload: {} }
          yield* store.append([{ ...stream, aggregateId: ids[1]!, correlationId: "c-1", metadata: { tenant: "t-1" } }])
          yield* store.append([{ ...stream, aggregateId: ids[2]!, correlationId: "c-1", metadata: { tenant: 2 } }])
          const page = yield* store.read({
            after: after - 1n,
            filter: { boundedContexts: [boundedContext] },
            partitionBy,
            hashes: true
          })
          yield* commit(row!, use((store) => store.park(row!, { events: page.events, limits, partitionBy })))
          const parked = yield* list(row!)
          assert.lengthOf(parked, 3)
          assert.deepStrictEqual(parked.map(({ keyHash }) => keyHash), page.hashes)
          assert.deepStrictEqual(
            parked.map(({ key }) => key),
            page.events.map((event) => PartitionKey.of(partitionBy, event))
          )
        }))
    }

    it.effect("parking more keys or events than the limits allow rolls the batch back", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const [a, b] = [yield* unique("key"), yield* unique("key")]
        const events = yield* append("app", a, a, b)
        yield* commit(row!, use((store) => store.park(row!, { events: events.slice(0, 2), limits, partitionBy })))
        const refused: ReadonlyArray<readonly [ParkedEvent.Limits, string]> = [
          [{ keys: 1, events: 10 }, "1 keys and 10 events"],
          [{ keys: 2, events: 2 }, "2 keys and 2 events"]
        ]
        for (const [limits, text] of refused) {
          const error = yield* Effect.flip(
            commit(row!, use((store) => store.park(row!, { events: events.slice(2), limits, partitionBy })))
          )
          assert.instanceOf(error, HandlerFailure)
          const reached = Cause.squash((error as HandlerFailure).cause)
          assert.instanceOf(reached, ParkingLimitReached)
          assert.include((reached as ParkingLimitReached).message, "2 parked keys and 3 parked events")
          assert.include((reached as ParkingLimitReached).message, text)
          assert.lengthOf(yield* list(row!), 2)
        }
        const exact = { keys: 2, events: 3 }
        yield* commit(row!, use((store) => store.park(row!, { events: events.slice(2), limits: exact, partitionBy })))
        assert.lengthOf(yield* list(row!), 3)
      }))

    it.effect("selects all events, those of a key, of an error, or the first", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const [a, b] = [yield* unique("key"), yield* unique("key")]
        const events = yield* append("app", a, b, a, b)
        yield* park(row!, [events[0]!])
        const other = { ...failure, errorTag: "Timeout" }
        yield* commit(
          row!,
          use((store) => store.park(row!, { events: [events[1]!], failure: other, limits, partitionBy }))
        )
        yield* commit(row!, use((store) => store.park(row!, { events: events.slice(2), limits, partitionBy })))
        const selected: ReadonlyArray<readonly [ParkedEvent.Request, ParkedEvent.Selection, ReadonlyArray<number>]> = [
          ["retry", "all", [0, 1, 2, 3]],
          ["retry", { key: a }, [0, 2]],
          ["retry", { key: "other" }, []],
          ["retry", { errorTag: "Timeout" }, [1, 3]],
          ["drop", { errorTag: "Timeout" }, [1]],
          ["retry", { errorTag: "Other" }, []],
          ["retry", { first: 3 }, [0, 1, 2]],
          ["drop", { first: 0 }, []]
        ]
        for (const [kind, selection, expected] of selected) {
          const found = yield* request(row!, kind, selection, true)
          assert.deepStrictEqual(
            found.map(({ position }) => position),
            expected.map((index) => events[index]!.globalPosition),
            JSON.stringify(selection)
          )
          assert.isTrue(found.every(({ request }) => request === undefined))
        }
        assert.deepStrictEqual(yield* requested(row!), [])
      }))

    it.effect("an event can be retried only if every earlier event of its key has a request, and can always be dropped", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const [a, b] = [yield* unique("key"), yield* unique("key")]
        const events = yield* append("app", a, b, a, b)
        const at = positions(events)
        yield* park(row!, events)
        yield* request(row!, "retry", "all")
        assert.deepStrictEqual(yield* requested(row!), at.map((position) => [position, "retry"]))
        // Withdraws the requests of key a, and records the failure of its first event.
        const recorded = { position: at[0]!, errorTag: "Again", errorMessage: "still no country ZZ" }
        yield* commit(row!, use((store) => store.recordFailure(row!, recorded)))
        assert.deepStrictEqual(yield* requested(row!), [[at[1], "retry"], [at[3], "retry"]])
        yield* request(row!, "drop", { key: a })
        yield* commit(row!, use((store) => store.remove(row!, { position: at[0]!, request: "drop" })))
        assert.deepStrictEqual(yield* requested(row!), [[at[1], "retry"], [at[2], "drop"], [at[3], "retry"]])
      }))

    it.effect("a failed retry is recorded, and keeps requests to drop", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const key = yield* unique("key")
        const [first, second, third] = yield* append("app", key, key, key)
        yield* park(row!, [first!, second!, third!])
        yield* request(row!, "drop", "all")
        yield* request(row!, "retry", { first: 2 })
        const before = yield* list(row!)
        assert.deepStrictEqual(before.map(({ request }) => request), ["retry", "retry", "drop"])
        assert.isTrue(
          before.every(({ requestedAt, requestedBy }) => requestedAt !== undefined && requestedBy === "ops")
        )
        const text = "caf\u00e9 \u{1f600}"
        yield* commit(
          row!,
          use((store) =>
            store.recordFailure(row!, { position: first!.globalPosition, errorTag: "Again", errorMessage: text })
          )
        )
        const after = yield* list(row!)
        assert.deepStrictEqual(after.map(({ request }) => request), [undefined, undefined, "drop"])
        assert.deepStrictEqual(after.map(({ attempts }) => attempts), [3, 0, 0])
        assert.deepStrictEqual(after[0]!.firstAttemptAt, before[0]!.firstAttemptAt)
        assert.deepStrictEqual([after[0]!.errorTag, after[0]!.errorMessage], ["Again", text])
        assert.isUndefined(after[1]!.lastAttemptAt)
      }))

    it.effect("a failed retry keeps a request to drop the event that was made during the retry", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const [event] = yield* append("app", yield* unique("key"))
        yield* park(row!, [event!])
        yield* request(row!, "drop", "all")
        yield* commit(
          row!,
          use((store) =>
            store.recordFailure(row!, { position: event!.globalPosition, errorTag: "Again", errorMessage: "again" })
          )
        )
        const [after] = yield* list(row!)
        assert.deepStrictEqual([after!.request, after!.requestedBy, after!.errorTag], ["drop", "ops", "Again"])
        assert.isDefined(after!.requestedAt)
      }))

    it.effect("removes an event only if it still has the request", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const [event] = yield* append("app", yield* unique("key"))
        const position = event!.globalPosition
        yield* park(row!, [event!])
        const remove = (request: ParkedEvent.Request) =>
          Effect.gen(function*() {
            const removed: Array<boolean> = []
            yield* commit(
              row!,
              Effect.tap(
                use((store) => store.remove(row!, { position, request })),
                (is) => Effect.sync(() => removed.push(is))
              )
            )
            return removed.at(-1)
          })
        assert.isFalse(yield* remove("retry"))
        yield* request(row!, "retry", "all")
        assert.isFalse(yield* remove("drop"))
        assert.lengthOf(yield* list(row!), 1)
        assert.isTrue(yield* remove("retry"))
        assert.deepStrictEqual(yield* list(row!), [])
        assert.isFalse(yield* remove("retry"))
      }))

    it.effect("a request about an event reaches every range that is halted at it", () =>
      Effect.gen(function*() {
        const rows = yield* held(2)
        const checkpoints = yield* CheckpointStore
        const eventId = "id unreadable"
        for (const row of rows) {
          yield* checkpoints.halt(row, { at: 0n, error: "broken", position: 1n, eventId, key: undefined })
        }
        assert.isTrue(yield* use((store) => store.requestOnHalt(rows[0]!.projection, { request: "skip", eventId })))
        const requests = yield* Effect.forEach(rows, (row) => use((store) => store.requests(row)))
        assert.deepStrictEqual(requests.map(({ halt }) => halt?.request), ["skip", "skip"])
      }))

    it.effect("a request about a halted range ends with the halt", () =>
      Effect.gen(function*() {
        const [row] = yield* held()
        const [event] = yield* append("app", yield* unique("key"))
        const { aggregateId, eventId, globalPosition: position } = event!
        const checkpoints = yield* CheckpointStore
        const halt = checkpoints.halt(row!, { at: 0n, error: "broken", position, eventId, key: aggregateId })
        const ask = (request: ParkedEvent.HaltRequest, eventId: string) =>
          use((store) => store.requestOnHalt(row!.projection, { request, eventId }))
        const found = Effect.map(use((store) => store.requests(row!)), (requests) => requests.halt)
        const isSkipRequested = Effect.gen(function*() {
          const is: Array<boolean> = []
          const checked = use((store) => store.isSkipRequested(row!, eventId))
          // Rolled back, because a commit ends the halt.
          const work = Effect.andThen(Effect.map(checked, (each) => is.push(each)), Effect.fail("undo"))
          yield* Effect.flip(commit(row!, work))
          return is.at(-1)
        })
        assert.isFalse(yield* ask("skip", eventId))
        yield* halt
        assert.isUndefined(yield* found)
        assert.isFalse(yield* ask("skip", "another"))
        assert.isTrue(yield* ask("retry", eventId))
        assert.deepStrictEqual(yield* found, { request: "retry", eventId, position })
        assert.isFalse(yield* isSkipRequested)
        assert.isTrue(yield* ask("skip", eventId))
        assert.deepStrictEqual(yield* found, { request: "skip", eventId, position })
        assert.isTrue(yield* isSkipRequested)
        yield* halt
        assert.deepStrictEqual(yield* found, { request: "skip", eventId, position })
        yield* checkpoints.halt(row!, { at: 0n, error: "broken", position: position + 1n, eventId, key: aggregateId })
        assert.isUndefined(yield* found)
        assert.isTrue(yield* ask("retry", eventId))
        yield* halt
        assert.isUndefined(yield* found)
        assert.isTrue(yield* ask("skip", eventId))
        yield* commit(row!, Effect.void, position)
        assert.isUndefined(yield* found)
        assert.isFalse(yield* ask("skip", eventId))
      }))
  })
