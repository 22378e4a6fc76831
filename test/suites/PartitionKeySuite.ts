/** What a store promises about partition keys: which events share one, and that the ranges divide the events by it. */
import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as PartitionKey from "../../src/schema/PartitionKey.ts"
import { EventStore, type ReadOptions } from "../../src/services/EventStore.ts"
import { type Time, unique } from "./Suite.ts"

/** A metadata name that must be quoted in every way. */
const name = "tenant's \\ \"id\" $1 ?"

/** Metadata with the name of the key that it has; undefined if it has none. */
const metadata: ReadonlyArray<readonly [value: unknown, key: string | undefined]> = [
  [undefined, undefined],
  [null, undefined],
  ["text", undefined],
  [[name], undefined],
  [{}, undefined],
  [{ other: "acme" }, undefined],
  [{ [name]: null }, undefined],
  [{ nested: { [name]: "acme" } }, undefined],
  [{ [name]: "acme" }, "acme"],
  [{ other: [1], [name]: "acme" }, "acme"],
  [{ [name]: "ACME" }, "ACME"],
  [{ [name]: "" }, ""],
  [{ [name]: "o'neill \\ \"co\"" }, "o'neill"],
  [{ [name]: 7 }, "7"],
  [{ [name]: "7" }, "7"],
  [{ [name]: 7.5 }, "7.5"],
  [{ [name]: 1e21 }, "1e21"],
  [{ [name]: "1000000000000000000000" }, "1e21"],
  [{ [name]: true }, "true"],
  [{ [name]: "true" }, "true"],
  [{ [name]: { b: 1, a: [2] } }, "object"],
  [{ [name]: { a: [2], b: 1 } }, "object"]
]

const correlations: ReadonlyArray<string | undefined> = [undefined, "", "order-1", "order-2", "o'neill"]

export const suite = (storeName: string, layer: Layer.Layer<EventStore, unknown>, options: { readonly time: Time }) =>
  it.layer(layer, { excludeTestServices: options.time.excludeTestServices })(`partition keys (${storeName})`, (it) => {
    it.effect("events share a key exactly when the chosen part of them is the same text", () =>
      Effect.gen(function*() {
        const given = yield* appended
        const expected: ReadonlyArray<readonly [PartitionKey.PartitionKey, ReadonlyArray<string>]> = [
          ["aggregateId", given.events.map(({ aggregate }) => aggregate)],
          ["boundedContext", given.events.map(({ context }) => context)],
          ["correlationId", given.events.map(({ aggregate, correlation }) => correlation ?? aggregate)],
          [{ metadata: name }, given.events.map(({ aggregate, key }) => key ?? aggregate)],
          [{ metadata: "absent" }, given.events.map(({ aggregate }) => aggregate)]
        ]
        for (const [partitionBy, keys] of expected) {
          const { events, hashes } = yield* read(given, { partitionBy })
          assert.strictEqual(events.length, keys.length)
          assert.deepStrictEqual(groups(hashes), groups(keys), PartitionKey.format(partitionBy))
          assert.deepStrictEqual(
            groups(events.map((event) => PartitionKey.of(partitionBy, event))),
            groups(keys),
            "the events that are returned have the same keys"
          )
        }
      }))

    it.effect("the ranges divide the events by the hash of their key", () =>
      Effect.gen(function*() {
        const given = yield* appended
        for (const partitionBy of [undefined, "boundedContext", "correlationId", { metadata: name }] as const) {
          const whole = yield* read(given, { partitionBy })
          for (const total of [1, 2, 3, 7]) {
            const parts = yield* Effect.forEach(
              Array.from({ length: total }, (_, key) => HashRange.partition(key, total)),
              (range) =>
                Effect.tap(read(given, { partitionBy, range }), ({ hashes }) =>
                  Effect.sync(() => {
                    for (const hash of hashes) assert.isTrue(HashRange.includes(range, hash))
                  }))
            )
            const union = parts.flatMap(({ events }) => events.map(({ globalPosition }) => globalPosition))
            assert.deepStrictEqual(
              union.sort((x, y) => x < y ? -1 : 1),
              whole.events.map(({ globalPosition }) => globalPosition)
            )
          }
        }
      }))

    it.effect("a read that does not ask for hashes returns none", () =>
      Effect.gen(function*() {
        const { events } = yield* appended
        const page = yield* (yield* EventStore).read({ after: events[0]!.position - 1n })
        assert.notProperty(page, "hashes")
      }))
  })

/** Events of several aggregates, contexts, correlation ids and metadata. */
const appended = Effect.gen(function*() {
  const store = yield* EventStore
  const contexts = [yield* unique("a"), yield* unique("b")]
  const events = yield* Effect.forEach(metadata, ([value, key], index) =>
    Effect.gen(function*() {
      const context = contexts[index % 2]!
      const aggregate = `${context}-${index % 8}`
      const correlation = correlations[index % correlations.length]
      const { positions } = yield* store.append([{
        boundedContext: context,
        aggregateType: "Cart",
        aggregateId: aggregate,
        eventType: "Happened",
        payload: {},
        metadata: value,
        correlationId: correlation
      }])
      return { context, aggregate, correlation, key, position: positions[0]! }
    }))
  return { contexts, events }
})

const read = Effect.fnUntraced(function*(
  { contexts, events }: Effect.Success<typeof appended>,
  options: Pick<ReadOptions, "partitionBy" | "range">
) {
  const store = yield* EventStore
  const upTo = events[events.length - 1]!.position
  while ((yield* store.settledPosition) < upTo) yield* store.settledBeyond(upTo - 1n, Duration.millis(50))
  const page = yield* store.read({
    after: events[0]!.position - 1n,
    upTo,
    filter: { boundedContexts: contexts },
    hashes: true,
    ...options
  })
  assert.strictEqual(page.position, upTo)
  assert.strictEqual(page.hashes?.length, page.events.length)
  return { events: page.events, hashes: page.hashes ?? [] }
})

/** For each value, the index of the first one that is equal: how a list is grouped, whatever its values are. */
const groups = (values: ReadonlyArray<unknown>): ReadonlyArray<number> => values.map((value) => values.indexOf(value))
