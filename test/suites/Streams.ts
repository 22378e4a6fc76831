/** Streams of the suites of the event store: appending to them, and reading them page by page. */
import { assert } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { type Event, type NewEvent, type StreamId } from "../../src/schema/Event.ts"
import type { ReadOptions } from "../../src/services/EventStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { unique } from "./Suite.ts"

/** The identity of a new stream. */
export const newStream = Effect.gen(function*() {
  return {
    boundedContext: yield* unique("context"),
    aggregateType: "Cart",
    aggregateId: yield* unique("cart")
  } satisfies StreamId
})

export const happened = (stream: StreamId, rest?: Partial<NewEvent>): NewEvent => ({
  eventType: "Happened",
  payload: {},
  ...stream,
  ...rest
})

export const identified = (stream: StreamId, count: number): ReadonlyArray<NewEvent> =>
  Array.from({ length: count }, () => happened(stream, { eventId: globalThis.crypto.randomUUID() }))

export const append = Effect.fnUntraced(function*(...parameters: Parameters<EventStore["Service"]["append"]>) {
  return yield* (yield* EventStore).append(...parameters)
})

export const readStream = Effect.fnUntraced(function*(...parameters: Parameters<EventStore["Service"]["readStream"]>) {
  return yield* (yield* EventStore).readStream(...parameters)
})

/** Reads all matching events page by page. */
export const readAll = Effect.fnUntraced(function*(options: ReadOptions) {
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
export const settle = Effect.fnUntraced(function*(position: bigint) {
  const store = yield* EventStore
  let settled = yield* store.settledPosition
  while (settled < position) settled = yield* store.settledBeyond(settled, Duration.millis(50))
  return settled
})

export const last = (positions: ReadonlyArray<bigint>): bigint => positions[positions.length - 1]!

export const positionsOf = (events: ReadonlyArray<Event>): ReadonlyArray<bigint> =>
  events.map((event) => event.globalPosition)

export const ascending = (positions: ReadonlyArray<bigint>): boolean =>
  positions.every((position, index) => index === 0 || positions[index - 1]! < position)
