import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import * as EventFilter from "../../src/schema/EventFilter.ts"

/** Few values, including some that would be ambiguous if lists were joined with a separator instead of quoted. */
const Value = Schema.Literals(["a", "b", "c", "a,b", "\"a\",\"b\"", "[]", "null", ""])
const List = Schema.Union([Schema.Array(Value), Schema.Undefined])
const Filter = Schema.Struct({ boundedContexts: List, aggregateTypes: List, eventTypes: List })
const Event = Schema.Struct({ boundedContext: Value, aggregateType: Value, eventType: Value })

const meaning = (filter: EventFilter.EventFilter): string =>
  [filter.boundedContexts, filter.aggregateTypes, filter.eventTypes]
    .map((list) => list === undefined ? "all" : Value.literals.map((value) => list.includes(value) ? 1 : 0).join(""))
    .join("/")

describe("EventFilter", () => {
  it.prop(
    "two filters have the same canonical text exactly when their lists contain the same values",
    { a: Filter, b: Filter },
    ({ a, b }) => {
      assert.strictEqual(EventFilter.canonical(a) === EventFilter.canonical(b), meaning(a) === meaning(b))
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

  it("the readable text names each list", () => {
    const written = (filter: EventFilter.EventFilter) => EventFilter.format(EventFilter.canonical(filter))
    assert.strictEqual(written({}), "all events")
    assert.strictEqual(written({ eventTypes: ["B", "A"] }), "eventTypes: A, B")
    assert.strictEqual(
      written({ boundedContexts: ["sales"], aggregateTypes: ["C"], eventTypes: ["A", "B"] }),
      "eventTypes: A, B; aggregateTypes: C; boundedContexts: sales"
    )
    for (const other of ["", "old", "[1,2,3]", "null", "[null,null]"]) {
      assert.strictEqual(EventFilter.format(other), other)
    }
  })

  it("a missing list matches everything, an empty one nothing", () => {
    const event = { boundedContext: "sales", aggregateType: "Order", eventType: "OrderPlaced" }
    assert.isTrue(EventFilter.matches({}, event))
    assert.isFalse(EventFilter.matches({ eventTypes: [] }, event))
    assert.notStrictEqual(EventFilter.canonical({}), EventFilter.canonical({ eventTypes: [] }))
  })
})
