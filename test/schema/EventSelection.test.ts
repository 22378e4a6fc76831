import { assert, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as EventSelection from "../../src/schema/EventSelection.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type { PartitionKey } from "../../src/schema/PartitionKey.ts"
import { storedEvent } from "../support/Events.ts"

const name = Schema.Literals(["A", "B", "C"])
const list = Schema.Union([Schema.Undefined, Schema.NonEmptyArray(name)])
const border = Schema.Literals([0, 1, 2, 3, 4])
const selection = Schema.Struct({
  borders: Schema.Tuple([border, border]),
  partitionBy: Schema.Literals(["aggregateId", "correlationId"]),
  boundedContexts: list,
  aggregateTypes: list,
  eventTypes: list
})

const toSelection = ({ borders, partitionBy, ...filter }: typeof selection.Type): EventSelection.EventSelection => ({
  range: { start: Math.min(...borders), end: Math.max(...borders) + 1 },
  partitionBy,
  filter
})

const events = ["A", "B", "C", "D"].flatMap((boundedContext) =>
  ["A", "B", "C", "D"].flatMap((aggregateType) =>
    ["A", "B", "C", "D"].map((eventType) => storedEvent({ boundedContext, aggregateType, eventType }))
  )
)
const hashes = [0, 1, 2, 3, 4, 5]

const unite = (a: EventSelection.EventSelection, b: EventSelection.EventSelection) => {
  const union = EventSelection.unionOf(a)
  const before = EventSelection.toSelection(union)
  if (EventSelection.extend(union, b)) return EventSelection.toSelection(union)
  assert.deepStrictEqual(EventSelection.toSelection(union), before)
  return undefined
}

it.prop("a union contains both selections", [selection, selection], ([first, second]) => {
  const [a, b] = [toSelection(first), toSelection(second)]
  const union = unite(a, b)
  if (union === undefined) return
  for (const event of events) {
    for (const hash of hashes) {
      const isWanted = EventSelection.includes(a, event, hash) || EventSelection.includes(b, event, hash)
      assert.isTrue(!isWanted || EventSelection.includes(union, event, hash))
    }
  }
})

it.prop("the order of two selections does not matter to their union", [selection, selection], ([first, second]) => {
  const [a, b] = [toSelection(first), toSelection(second)]
  const [one, other] = [unite(a, b), unite(b, a)]
  assert.deepStrictEqual(one && canonical(one), other && canonical(other))
})

it.prop("a union contains a selection if it does not change by it", [selection, selection], ([first, second]) => {
  const [a, b] = [toSelection(first), toSelection(second)]
  const united = unite(a, b)
  const isSame = united !== undefined && JSON.stringify(canonical(united)) === JSON.stringify(canonical(a))
  assert.strictEqual(EventSelection.contains(EventSelection.unionOf(a), b), isSame)
})

const canonical = ({ filter, ...rest }: EventSelection.EventSelection) => ({
  ...rest,
  filter: EventFilter.canonical(filter)
})

const select = (
  filter: EventFilter.EventFilter,
  range = HashRange.whole,
  partitionBy: PartitionKey = "aggregateId"
) => ({
  filter,
  range,
  partitionBy
})

it("selections have a union only if it contains little more than both", () => {
  const all = select({})
  const users = select({ aggregateTypes: ["User"] })
  const orders = select({ aggregateTypes: ["Order"] })
  const created = select({ eventTypes: ["Created"] })
  const [left, middle, right] = [0, 1, 2].map((key) => HashRange.partition(key, 3)) as [
    HashRange.HashRange,
    HashRange.HashRange,
    HashRange.HashRange
  ]
  assert.deepStrictEqual(unite(all, users), all)
  assert.deepStrictEqual(unite(users, orders), select({ aggregateTypes: ["Order", "User"] }))
  assert.isUndefined(unite(users, created), "their union would be all events")
  assert.deepStrictEqual(
    unite(select({}, left), select({}, middle)),
    select({}, { start: left.start, end: middle.end })
  )
  assert.isUndefined(unite(select({}, left), select({}, right)), "the range between is not wanted")
  assert.isUndefined(unite(all, select({}, HashRange.whole, "correlationId")))
})
