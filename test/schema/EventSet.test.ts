import { assert, describe, it } from "@effect/vitest"
import { Context, Effect, Option, Result, Schema, SchemaGetter } from "effect"
import type { InvalidEvents } from "../../src/schema/Errors.ts"
import { encodePayload, type Event, type NewEvent } from "../../src/schema/Event.ts"
import * as EventCodec from "../../src/schema/EventCodec.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as EventSet from "../../src/schema/EventSet.ts"

const Current = Schema.Struct({
  name: Schema.String,
  at: Schema.Date,
  total: Schema.BigInt,
  note: Schema.optionalKey(Schema.String),
  tags: Schema.Array(Schema.String)
})

/** Each version adds a property, so that an upcast that is skipped, repeated or run out of order shows. */
const Orders = EventSet.make({
  OrderPlaced: {
    version: 4,
    payload: Schema.Struct({ path: Schema.Array(Schema.Finite), id: Schema.String }),
    upcast: {
      1: (old) => ({ ...old, path: [1] }),
      2: (old) => ({ ...old, path: [...old.path, 2] }),
      3: (old) => ({ ...old, path: [...old.path, 3] })
    },
    storedAs: ["OrderCreated", "OrderMade"]
  },
  OrderPaid: Current,
  OrderRated: Schema.Struct({ ratings: Schema.Record(Schema.String, Schema.Struct({ stars: Schema.Finite })) })
}, { boundedContext: "sales", aggregateType: "Order", retired: ["OrderPinged"] })

const stored = (event: Partial<Event> & Pick<Event, "eventType">, json: unknown = {}): Event => ({
  globalPosition: 7n,
  boundedContext: "sales",
  aggregateType: "Order",
  aggregateId: "1",
  aggregateVersion: 3n,
  eventId: "0192f0c1-0000-7000-8000-000000000001",
  eventVersion: 1,
  payload: Result.getOrThrow(encodePayload(json)),
  traceId: null,
  correlationId: null,
  causationId: null,
  metadata: null,
  metadataText: null,
  createdAt: new Date(0),
  createdAtMicros: 0n,
  ...event
})

const decode = (set: EventSet.Any, event: Event) =>
  Effect.runSync(Effect.result(EventCodec.decode(set, event)) as Effect.Effect<
    Result.Result<Option.Option<EventSet.Decoded<string, unknown>>, EventCodec.DecodeError>
  >)

const decoded = (set: EventSet.Any, event: Event) => Option.getOrThrow(Result.getOrThrow(decode(set, event)))

const failure = (set: EventSet.Any, event: Event): EventCodec.DecodeError => {
  const result = decode(set, event)
  return Result.isFailure(result) ? result.failure : assert.fail("decodes")
}

const encode = (set: EventSet.Any, event: Pick<NewEvent, "eventType" | "payload">) =>
  Effect.runSync(
    Effect.result(EventCodec.encode(set, [event])) as Effect.Effect<
      Result.Result<ReadonlyArray<NewEvent>, InvalidEvents>
    >
  )

describe("EventSet", () => {
  it.prop("an encoded event decodes to the same payload", { payload: Current }, ({ payload }) => {
    const [event] = Result.getOrThrow(encode(Orders, { eventType: "OrderPaid", payload }))
    assert.deepStrictEqual(
      [event!.boundedContext, event!.aggregateType, event!.eventType, event!.eventVersion],
      ["sales", "Order", "OrderPaid", 1]
    )
    assert.deepStrictEqual(decoded(Orders, stored({ eventType: "OrderPaid" }, event!.payload)).payload, payload)
  }, { arbitrary: { runs: 300, seed: "round trip" } })

  it.prop(
    "the upcasts from the stored version on run once each, in order, under every stored name",
    {
      eventVersion: Schema.Literals([1, 2, 3, 4]),
      name: Schema.Literals(["OrderPlaced", "OrderCreated", "OrderMade"])
    },
    ({ eventVersion, name }) => {
      const before = [1, 2, 3].slice(0, eventVersion - 1)
      const event = stored({ eventType: name, eventVersion }, {
        id: "a",
        ...(eventVersion > 1 ? { path: before } : {})
      })
      const { eventType, payload, ...rest } = decoded(Orders, event)
      assert.deepStrictEqual([eventType, payload], ["OrderPlaced", { path: [1, 2, 3], id: "a" }])
      const { eventType: _, payload: __, ...others } = event
      assert.deepStrictEqual(rest, others)
    }
  )

  it.prop("an event matches the set's filter exactly when the set decodes it", {
    set: Schema.Literals(["all", "picked", "strict", "strictly picked"]),
    boundedContext: Schema.Literals(["sales", "other"]),
    aggregateType: Schema.Literals(["Order", "Other"]),
    eventType: Schema.Literals(["OrderPlaced", "OrderCreated", "OrderRated", "OrderPinged", "Unknown"])
  }, ({ set, ...names }) => {
    const Strict = EventSet.make({
      OrderPlaced: { payload: Schema.Unknown, storedAs: ["OrderCreated"] },
      OrderRated: Schema.Unknown
    }, { boundedContext: "sales", aggregateType: "Order", retired: ["OrderPinged"], unknown: "fail" })
    const isStrict = set.startsWith("strict")
    const all: EventSet.Any = isStrict
      ? Strict
      : Orders.with({ OrderPlaced: Schema.Unknown, OrderRated: Schema.Unknown })
    const chosen: EventSet.Any = set.endsWith("picked") ? all.pick("OrderPlaced") : all
    const isOfStream = names.boundedContext === "sales" && names.aggregateType === "Order"
    const isOfPickedType = names.eventType === "OrderPlaced" || names.eventType === "OrderCreated"
    const isOfType = isOfPickedType || (!set.endsWith("picked") && names.eventType === "OrderRated")
    assert.strictEqual(EventFilter.matches(chosen.filter, names), isOfStream && (isStrict || isOfType))
    if (!isOfStream) return
    const result = decode(chosen, stored(names))
    if (isStrict && names.eventType === "Unknown") {
      assert.strictEqual(Result.isFailure(result) && result.failure._tag, "EventUndecodable")
    } else {
      assert.strictEqual(Option.isSome(Result.getOrThrow(result)), isOfType)
    }
  })

  it("the filter before a type was added is that of the other types", () => {
    const Before = EventSet.make({ A: Schema.Unknown, B: { payload: Schema.Unknown, storedAs: ["C"] } }, {
      retired: ["D"]
    })
    const After = EventSet.make(
      { E: Schema.Unknown, B: { payload: Schema.Unknown, storedAs: ["C"] }, A: Schema.Unknown },
      { retired: ["D"] }
    )
    assert.strictEqual(EventFilter.canonical(After.pick("A", "B").filter), EventFilter.canonical(Before.filter))
    assert.notStrictEqual(EventFilter.canonical(After.filter), EventFilter.canonical(Before.filter))
  })

  it("an event of a version above the declared one fails with EventVersionTooNew", () => {
    const error = failure(Orders, stored({ eventType: "OrderCreated", eventVersion: 5 }))
    assert.strictEqual(error._tag, "EventVersionTooNew")
    assert.strictEqual(
      error.message,
      "Event 0192f0c1-0000-7000-8000-000000000001 (type \"OrderCreated\", event version 5) is newer than version 4, the newest one in the event set of this program. Run the version of the application that declares it."
    )
  })

  it("errors name the event and the path, and contain nothing of the payload", () => {
    const Throwing = EventSet.make({
      Thrown: {
        version: 2,
        payload: Schema.Unknown,
        upcast: {
          1: ({ secret }) => {
            throw new RangeError(secret)
          }
        }
      },
      Checked: Schema.Struct({
        list: Schema.Array(Schema.String.check(Schema.makeFilter((text) => text === "" || `bad: ${text}`)))
      })
    })
    const cases: ReadonlyArray<[EventSet.Any, Event, string]> = [
      [
        Orders,
        stored({ eventType: "OrderRated" }, { ratings: { secret: { stars: "secret" } } }),
        "a value has another type at payload.ratings[\"*\"].stars"
      ],
      [Orders, stored({ eventType: "OrderRated" }, { secret: 1 }), "a key is missing at payload.ratings"],
      [Orders, stored({ eventType: "OrderRated" }, "secret"), "a value has another type at payload"],
      [
        Orders,
        stored({ eventType: "OrderRated", payload: new TextEncoder().encode("secret") }),
        "the payload is not JSON"
      ],
      [Orders, stored({ eventType: "OrderRated", payload: Uint8Array.of(34, 0xff, 34) }), "the payload is not JSON"],
      [Orders, stored({ eventType: "OrderRated", eventVersion: 0 }), "versions of payloads begin at 1"],
      [
        Throwing,
        stored({ eventType: "Thrown" }, { secret: "secret" }),
        "the upcast from version 1 has thrown RangeError"
      ],
      [Throwing, stored({ eventType: "Thrown" }, null), "the upcast from version 1 has thrown TypeError"],
      [Throwing, stored({ eventType: "Checked" }, { list: ["", "secret"] }), "a value is not valid at payload.list[1]"]
    ]
    for (const [set, event, problem] of cases) {
      const error = failure(set, event)
      assert.strictEqual(error._tag === "EventUndecodable" && error.problem, problem)
      assert.include(error.message, `${event.eventId} (type "${event.eventType}", event version ${event.eventVersion})`)
      assert.notInclude(JSON.stringify(error) + error.message + String(error.stack), "secret")
    }
    const refused = encode(Throwing, { eventType: "Checked", payload: { list: ["secret"] } })
    assert.strictEqual(
      Result.isFailure(refused) && refused.failure.message,
      "Event 1 of 1 (Checked) does not match its schema: a value is not valid at payload.list[0]."
    )
  })

  it("a narrowed schema decodes after the upcasts, and is not appended", () => {
    const narrow = Orders.with({ OrderPlaced: Schema.Struct({ path: Schema.Array(Schema.Finite) }) })
    assert.deepStrictEqual(
      decoded(narrow, stored({ eventType: "OrderPlaced", eventVersion: 3 }, { id: 5, path: [1, 2] })).payload,
      { path: [1, 2, 3] }
    )
    assert.strictEqual(EventFilter.canonical(narrow.filter), EventFilter.canonical(Orders.filter))
    const refused = encode(narrow, { eventType: "OrderPlaced", payload: { path: [] } })
    assert.include(Result.isFailure(refused) && refused.failure.message, "Append with the original event set.")
  })

  it("an event that is not in the set is not appended", () => {
    for (const eventType of ["OrderPinged", "OrderCreated", "constructor"]) {
      const refused = encode(Orders, { eventType, payload: {} })
      assert.include(
        Result.isFailure(refused) && refused.failure.message,
        "which has: OrderPlaced, OrderPaid, OrderRated."
      )
    }
  })

  it("a contradictory declaration is refused", () => {
    const make = EventSet.make as (events: unknown, options?: EventSet.Options) => unknown
    const payload = Schema.Unknown
    const upcast = (old: unknown) => old
    for (
      const [events, options, message] of [
        [{}, {}, "at least one event type"],
        [{ A: { payload, version: 2 } }, {}, "Event type \"A\" has version 2 and upcasts from: none."],
        [{ A: { payload, version: 3, upcast: { 1: upcast, 3: upcast } } }, {}, "upcasts from: 1, 3."],
        [{ A: { payload, upcast: { 1: upcast } } }, {}, "has version 1 and upcasts from: 1."],
        [{ A: { payload, version: 0 } }, {}, "Give it a version of 1 or more"],
        [{ A: { payload, version: 1.5 } }, {}, "Give it a version of 1 or more"],
        [{ A: { payload, storedAs: ["B"] }, B: payload }, {}, "\"B\" occurs twice"],
        [{ A: payload }, { retired: ["A"] }, "\"A\" occurs twice"],
        [{ A: payload }, { retired: [""] }, "is empty"],
        [{ A: payload }, { unknown: "fail" }, "Give it one of them"]
      ] as const
    ) {
      assert.throws(() => make(events, options), message)
    }
  })

  it("a schema may require a service to decode", () => {
    class Keys extends Context.Service<Keys, { readonly decrypt: (text: string) => string }>()("test/Keys") {}
    const Secret = Schema.String.pipe(Schema.decodeTo(Schema.String, {
      decode: SchemaGetter.transformEffect((text: string) => Effect.map(Keys, ({ decrypt }) => decrypt(text))),
      encode: SchemaGetter.passthrough()
    }))
    const set = EventSet.make({ Told: Schema.Struct({ text: Secret }) })
    const result = Effect.runSync(
      EventCodec.decode(set, stored({ eventType: "Told" }, { text: "x" })).pipe(
        Effect.provideService(Keys, { decrypt: (text) => `${text}!` })
      ) as Effect.Effect<Option.Option<EventSet.Decoded<string, unknown>>>
    )
    assert.deepStrictEqual(Option.getOrThrow(result).payload, { text: "x!" })
  })
})
