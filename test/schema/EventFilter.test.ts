import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as PartitionKey from "../../src/schema/PartitionKey.ts"

/** Few values, including some that would be ambiguous if lists were joined with a separator instead of quoted. */
const Value = Schema.Literals(["a", "b", "c", "a,b", "\"a\",\"b\"", "[]", "null", ""])
const List = Schema.Union([Schema.Array(Value), Schema.Undefined])
const Key = Schema.Union([
  Schema.Literals(["aggregateId", "correlationId", "boundedContext"]),
  Schema.Struct({ metadata: Schema.Literals(["a", "aggregateId", "\"b\",]"]) })
])
const Filter = Schema.Struct({ boundedContexts: List, aggregateTypes: List, eventTypes: List })
const Selection = Schema.Struct({ ...Filter.fields, partitionBy: Schema.Union([Key, Schema.Undefined]) })
const Event = Schema.Struct({ boundedContext: Value, aggregateType: Value, eventType: Value })

const meaning = ({ partitionBy = "aggregateId", ...filter }: EventFilter.Selection): string =>
  [typeof partitionBy === "object" ? `member ${partitionBy.metadata}` : partitionBy, lists(filter)].join(" of ")

const lists = (filter: EventFilter.EventFilter): string =>
  [filter.boundedContexts, filter.aggregateTypes, filter.eventTypes]
    .map((list) => list === undefined ? "all" : Value.literals.map((value) => list.includes(value) ? 1 : 0).join(""))
    .join("/")

describe("EventFilter", () => {
  it.prop(
    "two filters have the same canonical text exactly when their lists and their partition keys are the same",
    { a: Selection, b: Selection },
    ({ a, b }) => {
      assert.strictEqual(EventFilter.canonical(a) === EventFilter.canonical(b), meaning(a) === meaning(b))
      const parsed = EventFilter.parse(EventFilter.canonical(a))
      assert.strictEqual(parsed && meaning(parsed), meaning(a))
      assert.isTrue(
        PartitionKey.equals(EventFilter.partitionKey(EventFilter.canonical(a)), a.partitionBy ?? "aggregateId")
      )
    },
    { arbitrary: { runs: 1000, seed: "canonical" } }
  )

  it.prop("the order and repetition of values in a list do not matter", { filter: Filter }, ({ filter }) => {
    const shuffled: EventFilter.EventFilter = {
      boundedContexts: filter.boundedContexts?.toReversed(),
      aggregateTypes: filter.aggregateTypes && [...filter.aggregateTypes, ...filter.aggregateTypes],
      ...(filter.eventTypes === undefined ? {} : { eventTypes: filter.eventTypes })
    }
    assert.strictEqual(EventFilter.canonical(shuffled), EventFilter.canonical(filter))
  })

  it.prop(
    "an event matches when every given list contains its value",
    { event: Event, filter: Filter },
    ({ event, filter }) => {
      const passes = (list: ReadonlyArray<string> | undefined, value: string) =>
        list === undefined || list.some((one) => one === value)
      assert.strictEqual(
        EventFilter.matches(filter, event),
        passes(filter.boundedContexts, event.boundedContext) && passes(filter.aggregateTypes, event.aggregateType) &&
          passes(filter.eventTypes, event.eventType)
      )
    },
    { arbitrary: { runs: 1000, seed: "matches" } }
  )

  it("the default partition key does not change the canonical text", () => {
    const filter = { eventTypes: ["A"] }
    assert.strictEqual(EventFilter.canonical({ ...filter, partitionBy: "aggregateId" }), "[null,null,[\"A\"]]")
    assert.strictEqual(
      EventFilter.canonical({ ...filter, partitionBy: { metadata: "tenantId" } }),
      "[null,null,[\"A\"],{\"metadata\":\"tenantId\"}]"
    )
  })

  it("the readable text names each list", () => {
    const written = (selection: EventFilter.Selection) => EventFilter.format(EventFilter.canonical(selection))
    assert.strictEqual(written({}), "all events")
    assert.strictEqual(written({ eventTypes: ["B", "A"] }), "eventTypes: A, B")
    assert.strictEqual(
      written({ boundedContexts: ["sales"], aggregateTypes: ["C"], eventTypes: ["A", "B"] }),
      "eventTypes: A, B; aggregateTypes: C; boundedContexts: sales"
    )
    assert.strictEqual(written({ partitionBy: "correlationId" }), "all events; partitionBy: correlationId")
    assert.strictEqual(
      written({ eventTypes: ["A"], partitionBy: { metadata: "tenantId" } }),
      "eventTypes: A; partitionBy: metadata tenantId"
    )
    const others = ["[null,null,null,\"aggregateId\"]", "[null,null,null,null]", "[null,null,null,{\"metadata\":\"\"}]"]
    for (const other of ["", "old", "[1,2,3]", "null", "[null,null]", ...others]) {
      assert.strictEqual(EventFilter.format(other), other)
      assert.strictEqual(EventFilter.partitionKey(other), "aggregateId")
    }
  })

  it("a missing list matches everything, an empty one nothing", () => {
    const event = { boundedContext: "sales", aggregateType: "Order", eventType: "OrderPlaced" }
    assert.isTrue(EventFilter.matches({}, event))
    assert.isFalse(EventFilter.matches({ eventTypes: [] }, event))
    assert.notStrictEqual(EventFilter.canonical({}), EventFilter.canonical({ eventTypes: [] }))
  })
})
