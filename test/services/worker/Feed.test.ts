import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Schema from "effect/Schema"
import * as TestClock from "effect/testing/TestClock"
import { type EventError, EventUnreadable, type StoreError } from "../../../src/schema/Errors.ts"
import type { Event } from "../../../src/schema/Event.ts"
import type { EventFilter } from "../../../src/schema/EventFilter.ts"
import * as EventSelection from "../../../src/schema/EventSelection.ts"
import * as HashRange from "../../../src/schema/HashRange.ts"
import { byDefault } from "../../../src/schema/PartitionKey.ts"
import type { EventStore, Page, ReadOptions } from "../../../src/services/EventStore.ts"
import * as Feed from "../../../src/services/worker/Feed.ts"
import type * as RangeState from "../../../src/services/worker/RangeState.ts"
import { storedEvent } from "../../support/Events.ts"
import { unavailable } from "../../support/StoreErrors.ts"

const partitions = 4

/** The hash of the event at a position: events are divided among the partitions in turn. */
const hashAt = (position: bigint): number =>
  HashRange.partition(Number(position % BigInt(partitions)), partitions).start

/** The types of the events are A, B and C in turn. */
const events = (count: number, payload = 0): ReadonlyArray<Event> =>
  Array.from({ length: count }, (_, index) =>
    storedEvent({
      globalPosition: BigInt(index + 1),
      eventType: ["A", "B", "C"][index % 3]!,
      payload: new Uint8Array(payload)
    }))

/** An event store whose reads are recorded, and may be held back or fail. */
const makeStore = (log: ReadonlyArray<Event>) => {
  const reads: Array<ReadOptions> = []
  const ended: Array<string> = []
  const store = {
    epoch: "1",
    log,
    /** The position of an event that cannot be read. */
    unreadable: undefined as bigint | undefined,
    failure: undefined as StoreError | undefined,
    /** The settled position, if it is below that of a read. */
    settled: undefined as bigint | undefined,
    open: Latch.makeUnsafe(true),
    reads,
    ended,
    endEpoch: (epoch: string) => Effect.sync(() => void ended.push(epoch)),
    read: (options: ReadOptions): Effect.Effect<Page, EventError | StoreError> =>
      Effect.suspend(() => {
        reads.push(options)
        return Effect.flatMap(Effect.andThen(Effect.yieldNow, store.open.await), () => pageOf(store, options))
      })
  }
  return store
}
type Store = ReturnType<typeof makeStore>

const pageOf = (
  { epoch, failure, log, settled, unreadable }: Store,
  options: ReadOptions
): Effect.Effect<Page, EventError | StoreError> => {
  if (failure !== undefined) return Effect.fail(failure)
  const { after, filter = {}, limit = 1000, range = HashRange.whole } = options
  const upTo = settled ?? options.upTo!
  const matching = log.filter((event) =>
    event.globalPosition > after && event.globalPosition <= upTo &&
    EventSelection.includes({ range, filter, partitionBy: byDefault }, event, hashAt(event.globalPosition))
  )
  const bad = matching.findIndex(({ globalPosition }) => globalPosition === unreadable)
  if (bad === 0) return Effect.fail(new EventUnreadable({ position: unreadable!, detail: "no date", epoch }))
  const events = matching.slice(0, bad === -1 ? limit : Math.min(limit, bad))
  const position = bad !== -1 && bad <= limit
    ? unreadable! - 1n
    : events.length < limit
    ? upTo
    : events[events.length - 1]!.globalPosition
  return Effect.succeed({
    events,
    position,
    epoch,
    ...(options.hashes === true ? { hashes: events.map(({ globalPosition }) => hashAt(globalPosition)) } : {})
  })
}

interface RangeOptions {
  readonly name?: string
  readonly filter?: EventFilter
  readonly range?: HashRange.HashRange
  readonly after?: bigint
  readonly batchSize?: number
  readonly batchBytes?: number
}

/** A range of a projection, with what the feed needs of it. */
const makeRange = (
  { after = 0n, batchBytes = 1_000_000, batchSize = 10, filter = {}, name = "users", range = HashRange.whole }:
    RangeOptions = {}
) =>
  ({
    projection: { name, filter, partitionBy: byDefault },
    state: { handledUpTo: after, held: { range }, halt: undefined },
    settings: { batchSize, batchBytes },
    draining: Latch.makeUnsafe(false)
  }) as unknown as RangeState.Job

const makeFeed = (store: Store): Feed.Feed => Feed.make(store as unknown as EventStore["Service"])

const positions = (page: Page): ReadonlyArray<number> => page.events.map(({ globalPosition }) => Number(globalPosition))

const next = (feed: Feed.Feed, member: Feed.Member, upTo: bigint, hashes = false) =>
  Feed.read(feed, member, { after: member.after, upTo, hashes })

/** Reads to the end and returns the positions. */
const readAll = Effect.fnUntraced(function*(feed: Feed.Feed, member: Feed.Member, upTo: bigint) {
  const all: Array<number> = []
  while (member.after < upTo) all.push(...positions(yield* next(feed, member, upTo)))
  return all
})

const wanted = (log: ReadonlyArray<Event>, { selection }: Feed.Member): ReadonlyArray<number> =>
  log.filter((event) => EventSelection.includes(selection, event, hashAt(event.globalPosition)))
    .map(({ globalPosition }) => Number(globalPosition))

/** Runs two reads. The store answers when both have begun. */
const atOnce = Effect.fnUntraced(function*<A, B, E, E2>(
  { open }: Store,
  [first, second]: readonly [Effect.Effect<A, E>, Effect.Effect<B, E2>]
) {
  open.closeUnsafe()
  const one = yield* Effect.forkChild(first, { startImmediately: true })
  const other = yield* Effect.forkChild(second, { startImmediately: true })
  open.openUnsafe()
  return [yield* Fiber.join(one), yield* Fiber.join(other)] as const
})

const range = (from: number, to: number): ReadonlyArray<number> =>
  Array.from({ length: to - from + 1 }, (_, index) => from + index)

describe("sharing", () => {
  it.effect("projections at the same position read together", () =>
    Effect.gen(function*() {
      const store = makeStore(events(30))
      const feed = makeFeed(store)
      const members = ["one", "two", "three"].map((name) => Feed.join(feed, makeRange({ name })))
      const pages = yield* Effect.forEach(members, (member) => readAll(feed, member, 30n), { concurrency: 3 })
      for (const page of pages) assert.deepStrictEqual(page, wanted(store.log, members[0]!))
      assert.strictEqual(store.reads.length, 3)
      assert.strictEqual(feed.reads.size, 0, "nothing is kept")
    }))

  it.effect("the ranges of a projection divide a page", () =>
    Effect.gen(function*() {
      const store = makeStore(events(20))
      const feed = makeFeed(store)
      const members = [0, 1, 2, 3].map((key) => Feed.join(feed, makeRange({ range: HashRange.partition(key, 4) })))
      const pages = yield* Effect.forEach(members, (member) => readAll(feed, member, 20n), { concurrency: 4 })
      assert.deepStrictEqual(pages, members.map((member) => wanted(store.log, member)))
      assert.deepStrictEqual(
        store.reads.map(({ limit, range }) => [limit, range]),
        [[10, HashRange.whole], [10, HashRange.whole]]
      )
    }))

  it.effect("a range that is behind reads up to a page that includes it, and takes the rest of a page", () =>
    Effect.gen(function*() {
      const store = makeStore(events(40))
      const feed = makeFeed(store)
      const ahead = Feed.join(feed, makeRange({ name: "ahead", after: 8n }))
      const behind = Feed.join(feed, makeRange({ name: "behind" }))
      assert.deepStrictEqual(positions(yield* next(feed, ahead, 18n)), range(9, 18))
      assert.deepStrictEqual(positions(yield* next(feed, behind, 18n)), range(1, 8))
      assert.deepStrictEqual(positions(yield* next(feed, behind, 18n)), range(9, 18))
      assert.deepStrictEqual(store.reads.map(({ after, upTo }) => [after, upTo]), [[8n, 18n], [0n, 8n]])
      const later = Feed.join(feed, makeRange({ name: "later", after: 22n }))
      assert.deepStrictEqual(positions(yield* next(feed, behind, 28n)), range(19, 28))
      assert.deepStrictEqual(positions(yield* next(feed, later, 28n)), range(23, 28))
      assert.strictEqual(store.reads.length, 3)
    }))

  it.effect("a range reads on if the page that it has waited for ends before its events", () =>
    Effect.gen(function*() {
      const store = makeStore(events(30))
      const feed = makeFeed(store)
      const one = Feed.join(feed, makeRange({ name: "one" }))
      const two = Feed.join(feed, makeRange({ name: "two", after: 15n }))
      const pages = yield* atOnce(store, [next(feed, one, 30n), next(feed, two, 30n)])
      assert.deepStrictEqual(pages.map(positions), [range(1, 10), range(16, 20)])
    }))

  it.effect("a read does not contain events that only a range further ahead selects", () =>
    Effect.gen(function*() {
      const store = makeStore(events(40))
      const feed = makeFeed(store)
      const [left, right] = [HashRange.partition(0, 2), HashRange.partition(1, 2)]
      const behind = Feed.join(feed, makeRange({ range: left }))
      const ahead = Feed.join(feed, makeRange({ range: right, after: 10n }))
      yield* next(feed, behind, 20n)
      assert.deepStrictEqual(store.reads.map(({ range }) => range), [left])
      behind.after = ahead.after
      yield* next(feed, behind, 20n)
      assert.deepStrictEqual(store.reads[1]!.range, HashRange.whole)
    }))

  it.effect("ranges that are far apart, halted or draining are not read for", () =>
    Effect.gen(function*() {
      const store = makeStore(events(100))
      const feed = makeFeed(store)
      const member = Feed.join(feed, makeRange())
      const far = Feed.join(feed, makeRange({ name: "far", after: 21n, filter: { eventTypes: ["A"] } }))
      const halted = makeRange({ name: "halted" })
      Object.assign(halted.state, { halt: { position: 1n } })
      const draining = makeRange({ name: "draining" })
      draining.draining.openUnsafe()
      for (const job of [halted, draining]) Feed.join(feed, job)
      yield* next(feed, member, 10n)
      assert.deepStrictEqual(store.reads.map(({ hashes }) => hashes), [undefined])
      assert.strictEqual(feed.reads.size, 0)
      far.after = 20n
      yield* next(feed, Feed.join(feed, makeRange({ name: "near" })), 30n)
      assert.strictEqual(store.reads[1]!.hashes, true)
      assert.strictEqual(feed.reads.size, 1, "the next page is read ahead")
      for (const member of feed.members) Feed.leave(feed, member)
      assert.strictEqual(feed.reads.size, 0)
    }))

  it.effect("a read does not include ranges that are already where it ends, and its page is not kept for them", () =>
    Effect.gen(function*() {
      const store = makeStore(events(40))
      const feed = makeFeed(store)
      const atEnd = Feed.join(feed, makeRange({ name: "at the end", after: 5n, filter: { eventTypes: ["A"] } }))
      const behind = Feed.join(feed, makeRange({ name: "behind", filter: { eventTypes: ["B"] } }))
      yield* next(feed, behind, 5n)
      assert.deepStrictEqual(store.reads[0]!.filter, { eventTypes: ["B"] })
      assert.strictEqual(feed.reads.size, 0)
      // This page ends before the other range, which the read may have reached.
      Object.assign(behind, { after: 20n })
      Object.assign(atEnd, { after: 36n })
      yield* next(feed, behind, 40n)
      assert.deepStrictEqual([...feed.reads].filter(({ page }) => page !== undefined), [])
    }))

  it.effect("a page without any position is returned, because its positions are not settled any more", () =>
    Effect.gen(function*() {
      const store = makeStore(events(30))
      const feed = makeFeed(store)
      const member = Feed.join(feed, makeRange({ after: 10n }))
      store.settled = 10n
      const page = yield* Effect.raceFirst(
        next(feed, member, 20n),
        Effect.delay(Effect.die("does not end"), "1 second").pipe(TestClock.withLive)
      )
      assert.deepStrictEqual([page.position, page.events], [10n, []])
      assert.strictEqual(store.reads.length, 1)
      store.settled = undefined
      assert.deepStrictEqual(positions(yield* next(feed, member, 20n)), range(11, 20))
      assert.strictEqual(feed.reads.size, 0)
    }))

  it.effect("a page without hashes is not taken by a range that needs them", () =>
    Effect.gen(function*() {
      const store = makeStore(events(10))
      const feed = makeFeed(store)
      const one = Feed.join(feed, makeRange({ name: "one" }))
      const two = Feed.join(feed, makeRange({ name: "two" }))
      yield* next(feed, one, 10n)
      assert.strictEqual((yield* next(feed, two, 10n, true)).hashes?.length, 10)
      assert.deepStrictEqual(store.reads.map(({ hashes }) => hashes), [undefined, true])
      assert.strictEqual(feed.reads.size, 0, "the page without hashes is not kept")
    }))
})

describe("reading ahead", () => {
  it.effect("begins when a page is taken, and not when it reaches the settled position", () =>
    Effect.gen(function*() {
      const store = makeStore(events(30))
      const feed = makeFeed(store)
      const member = Feed.join(feed, makeRange())
      yield* next(feed, member, 20n)
      assert.deepStrictEqual(store.reads.map(({ after }) => after), [0n, 10n])
      yield* next(feed, member, 20n)
      assert.deepStrictEqual(store.reads.map(({ after }) => after), [0n, 10n])
      assert.strictEqual(feed.reads.size, 0)
    }))

  it.effect("keeps four full pages besides the one that is taken", () =>
    Effect.gen(function*() {
      const store = makeStore(events(100, 10_000))
      const feed = makeFeed(store)
      const batchBytes = 40_000
      const fast = Feed.join(feed, makeRange({ name: "fast", batchBytes }))
      Feed.join(feed, makeRange({ name: "slow", batchBytes }))
      for (let page = 0; page < 4; page++) {
        yield* next(feed, fast, 100n)
        const pages = [...feed.reads].filter(({ page }) => page !== undefined)
        const kept = pages.reverse().slice(1).reduce((sum, read) => sum + read.bytes, 0)
        assert.isAtMost(kept, 4 * batchBytes)
      }
    }))

  it.effect("does not end when a slow range keeps pages", () =>
    Effect.gen(function*() {
      const store = makeStore(events(100, 10_000))
      const feed = makeFeed(store)
      const batchBytes = 100_000
      const fast = Feed.join(feed, makeRange({ name: "fast", batchBytes }))
      const slow = Feed.join(feed, makeRange({ name: "slow", batchBytes }))
      for (let page = 1; page <= 8; page++) {
        yield* next(feed, fast, 100n)
        assert.strictEqual(store.reads.length, page + 1, "the next page is read ahead")
      }
      assert.deepStrictEqual(yield* readAll(feed, slow, 100n), range(1, 100))
    }))

  it.effect("does not begin when the pages that no range has taken leave no room", () =>
    Effect.gen(function*() {
      const store = makeStore(events(1000, 10_000))
      const feed = makeFeed(store)
      const members = range(0, 6).map((index) =>
        Feed.join(feed, makeRange({ after: BigInt(100 * index), batchBytes: 120_000 }))
      )
      yield* Effect.forEach(members, (member) => next(feed, member, 1000n))
      assert.deepStrictEqual(
        store.reads.map(({ after }) => Number(after)),
        [0, 10, 100, 110, 200, 210, 300, 310, 400, 500, 600]
      )
    }))

  it.effect("is not prevented by pages that were read ahead for ranges that have halted or drain since", () =>
    Effect.gen(function*() {
      const store = makeStore(events(1000, 10_000))
      const feed = makeFeed(store)
      const jobs = range(1, 4).map((index) => makeRange({ after: BigInt(100 * index), batchBytes: 120_000 }))
      for (const job of jobs) yield* next(feed, Feed.join(feed, job), 1000n)
      const member = Feed.join(feed, makeRange({ batchBytes: 120_000 }))
      yield* next(feed, member, 90n)
      assert.strictEqual(store.reads.at(-1)!.after, 0n, "there is no room")
      for (const { state } of jobs.slice(0, 3)) state.halt = { error: "", position: 1n, eventId: "" }
      jobs[3]!.draining.openUnsafe()
      yield* next(feed, member, 90n)
      assert.deepStrictEqual(store.reads.slice(-2).map(({ after }) => after), [10n, 20n])
      assert.strictEqual(feed.reads.size, 1)
    }))

  it.effect("a read continues for the others when the range that has begun it leaves", () =>
    Effect.gen(function*() {
      const store = makeStore(events(10))
      const feed = makeFeed(store)
      const [one, two] = ["one", "two"].map((name) => Feed.join(feed, makeRange({ name }))) as [
        Feed.Member,
        Feed.Member
      ]
      store.open.closeUnsafe()
      const first = yield* Effect.forkChild(next(feed, one, 10n), { startImmediately: true })
      const second = yield* Effect.forkChild(next(feed, two, 10n), { startImmediately: true })
      yield* Fiber.interrupt(first)
      Feed.leave(feed, one)
      store.open.openUnsafe()
      assert.deepStrictEqual(positions(yield* Fiber.join(second)), range(1, 10))
      assert.strictEqual(store.reads.length, 1)
    }))
})

describe("failures", () => {
  it.effect("an event that cannot be read fails only the ranges that select it", () =>
    Effect.gen(function*() {
      const store = makeStore(events(9))
      store.unreadable = 1n
      const feed = makeFeed(store)
      const selecting = Feed.join(feed, makeRange({ name: "selecting" }))
      const other = Feed.join(feed, makeRange({ name: "other", filter: { eventTypes: ["B", "C"] } }))
      const [failed, page] = yield* atOnce(store, [Effect.flip(next(feed, selecting, 9n)), next(feed, other, 9n)])
      assert.strictEqual(failed._tag, "EventUnreadable")
      assert.deepStrictEqual(positions(page), wanted(store.log, other))
    }))

  it.effect("every range receives a failure of the database at once, and then reads for itself", () =>
    Effect.gen(function*() {
      const store = makeStore(events(9))
      store.failure = unavailable("no connection in time")
      const feed = makeFeed(store)
      const [one, two] = ["one", "two"].map((name) => Feed.join(feed, makeRange({ name }))) as [
        Feed.Member,
        Feed.Member
      ]
      const failed = yield* atOnce(store, [Effect.flip(next(feed, one, 9n)), Effect.flip(next(feed, two, 9n))])
      assert.deepStrictEqual(failed.map(({ _tag }) => _tag), ["StoreError", "StoreError"])
      assert.strictEqual(store.reads.length, 1)
      store.failure = undefined
      yield* atOnce(store, [next(feed, one, 9n), next(feed, two, 9n)])
      assert.strictEqual(store.reads.length, 3)
    }))

  it.effect("a read that has failed is not repeated ahead", () =>
    Effect.gen(function*() {
      const store = makeStore(events(20))
      store.unreadable = 11n
      const feed = makeFeed(store)
      const member = Feed.join(feed, makeRange())
      yield* next(feed, member, 20n)
      assert.deepStrictEqual(store.reads.map(({ after }) => after), [0n, 10n])
      member.after = 0n
      yield* next(feed, member, 20n)
      assert.deepStrictEqual(store.reads.map(({ after }) => after), [0n, 10n, 0n])
      assert.strictEqual((yield* Effect.flip(next(feed, member, 20n)))._tag, "EventUnreadable")
    }))
})

describe("server epochs", () => {
  it.effect("pages of an epoch that has ended are read again", () =>
    Effect.gen(function*() {
      const store = makeStore(events(30))
      const feed = makeFeed(store)
      const member = Feed.join(feed, makeRange())
      yield* next(feed, member, 30n)
      store.epoch = "2"
      yield* Feed.endEpoch(feed, "1")
      assert.deepStrictEqual(store.ended, ["1"])
      assert.strictEqual((yield* next(feed, member, 30n)).epoch, "2")
    }))

  it.effect("a page that arrives after the end of its epoch is not kept", () =>
    Effect.gen(function*() {
      const store = makeStore(events(30))
      const feed = makeFeed(store)
      const member = Feed.join(feed, makeRange())
      store.open.closeUnsafe()
      Feed.join(feed, makeRange({ name: "slow" }))
      const fiber = yield* Effect.forkChild(next(feed, member, 10n), { startImmediately: true })
      yield* Feed.endEpoch(feed, "1")
      store.open.openUnsafe()
      yield* Fiber.join(fiber)
      assert.strictEqual(feed.reads.size, 0)
    }))

  it.effect("a page of another epoch replaces the others", () =>
    Effect.gen(function*() {
      const store = makeStore(events(30))
      const feed = makeFeed(store)
      const member = Feed.join(feed, makeRange())
      Feed.join(feed, makeRange({ name: "slow" }))
      yield* next(feed, member, 10n)
      store.epoch = "2"
      yield* next(feed, member, 20n)
      assert.deepStrictEqual([...feed.reads].map(({ page }) => page?.epoch), ["2"])
    }))
})

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))
const types = Schema.Union([Schema.Undefined, Schema.NonEmptyArray(Schema.Literals(["A", "B", "C"]))])

const schedule = {
  members: Schema.NonEmptyArray(Schema.Struct({
    name: Schema.Literals(["one", "two", "three"]),
    key: Schema.Union([Schema.Undefined, int(0, partitions - 1)]),
    eventTypes: types,
    after: int(0, 60)
  })).pipe(Schema.check(Schema.isMaxLength(6))),
  batchSize: int(1, 12),
  count: int(0, 80),
  unreadable: Schema.Union([Schema.Undefined, int(1, 80)]),
  /** Which member reads next, and how far positions are settled before it does. */
  steps: Schema.Array(Schema.Struct({ member: int(0, 5), settled: int(0, 80) }))
}

it.effect.prop(
  "every range receives its events once and in order, wherever the other ranges are",
  schedule,
  ({ batchSize, count, members, steps, unreadable }) =>
    Effect.gen(function*() {
      const store = makeStore(events(count))
      store.unreadable = unreadable === undefined ? undefined : BigInt(unreadable)
      const feed = makeFeed(store)
      const readers = members.map(({ after, eventTypes, key, name }) => {
        const range = key === undefined ? HashRange.whole : HashRange.partition(key, partitions)
        const job = makeRange({ name, range, batchSize, after: BigInt(after), filter: { eventTypes } })
        return { member: Feed.join(feed, job), from: after, received: new Array<number>() }
      })
      let settled = 0
      const read = Effect.fnUntraced(function*({ member, received }: typeof readers[number]) {
        const upTo = BigInt(settled)
        if (member.after >= upTo) return
        const page = yield* Effect.option(next(feed, member, upTo))
        if (page._tag === "Some") received.push(...positions(page.value))
        // As a range that skips the event.
        else member.after = store.unreadable!
      })
      for (const step of steps) {
        settled = Math.max(settled, Math.min(step.settled, count))
        yield* read(readers[step.member % readers.length]!)
      }
      settled = count
      yield* Effect.forEach(
        readers,
        (reader) =>
          Effect.whileLoop({
            while: () => reader.member.after < BigInt(settled),
            body: () => read(reader),
            step: () => undefined
          }),
        { concurrency: "unbounded", discard: true }
      )
      for (const { from, member, received } of readers) {
        const expected = wanted(store.log, member).filter((position) => position > from && position !== unreadable)
        assert.deepStrictEqual(received, expected)
        Feed.leave(feed, member)
      }
      assert.strictEqual(feed.reads.size, 0)
    })
)
