import { assert, describe, it } from "@effect/vitest"
import * as Schema from "effect/Schema"
import { FilterChanged } from "../../src/schema/Errors.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"

const List = Schema.optional(Schema.Array(Schema.String))
const Filter = Schema.Struct({ boundedContexts: List, aggregateTypes: List, eventTypes: List })

/** The value of `replacesFilter` in the message. */
const advised = ({ message }: FilterChanged): string =>
  message.slice(message.lastIndexOf("set replacesFilter: ") + 20, message.lastIndexOf(". To build it"))

describe("FilterChanged", () => {
  it.prop(
    "contains the code of the recorded filters",
    { filters: Schema.NonEmptyArray(Filter) },
    ({ filters: [first, ...others] }) => {
      const [recorded, ...alsoRecorded] = [first, ...others].map(EventFilter.canonical)
      const error = new FilterChanged({
        projection: "users",
        given: EventFilter.canonical({ eventTypes: ["A"] }),
        recorded: recorded!,
        ...(others.length === 0 ? {} : { alsoRecorded })
      })
      const value: unknown = new Function(`return ${advised(error)}`)()
      const named = (others.length === 0 ? [value] : value) as ReadonlyArray<EventFilter.EventFilter>
      assert.deepStrictEqual(named.map(EventFilter.canonical), [recorded, ...alsoRecorded])
    }
  )

  it("states what was recorded, and what to do", () => {
    const error = new FilterChanged({
      projection: "users",
      given: EventFilter.canonical({ eventTypes: ["A", "B"] }),
      recorded: EventFilter.canonical({ eventTypes: ["A"], aggregateTypes: ["User"] }),
      alsoRecorded: [EventFilter.canonical({})]
    })
    assert.strictEqual(
      error.message,
      "Projection \"users\" has the filter \"eventTypes: A, B\", but its progress was made under \"eventTypes: A; aggregateTypes: User\" and \"all events\", so that past events which only the new filter selects are missing. To continue from its present position, set replacesFilter: [{ aggregateTypes: [\"User\"], eventTypes: [\"A\"] }, {}]. To build it from the beginning, give the projection a new name. If a newer version has changed the filter, run that version."
    )
  })
  it("advises no replacement of a filter that it cannot read", () => {
    const given = EventFilter.canonical({})
    const { message } = new FilterChanged({ projection: "users", given, recorded: "{\"tags\":[]}" })
    assert.notInclude(message, "replacesFilter")
    assert.include(message, "If a newer version has changed the filter, run that version.")
  })
})
