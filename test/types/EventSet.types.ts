/** Event sets that must or must not compile: checked by `tsc`, never run. */
import { type Array, Context, Data, Effect, Layer, Schema, SchemaGetter } from "effect"
import { SqlClient, type SqlError } from "effect/sql"
import {
  type Errors,
  type Event,
  EventSet,
  type EventStore,
  MemoryStores,
  Orchestrator,
  Projection
} from "pupsourcing-orchestrator"

type Equals<A, B> = (<T>() => T extends A ? 1 : 2) extends (<T>() => T extends B ? 1 : 2) ? true : false
const holds = <_ extends true>(): void => {}

const Name = Schema.Struct({ name: Schema.String })
class Keys extends Context.Service<Keys, { readonly decrypt: (text: string) => string }>()("test/Keys") {}
class Cipher extends Context.Service<Cipher, { readonly encrypt: (text: string) => string }>()("test/Cipher") {}
const Encrypted = Schema.String.pipe(Schema.decodeTo(Schema.String, {
  decode: SchemaGetter.transformEffect((text: string) => Effect.map(Keys, ({ decrypt }) => decrypt(text))),
  encode: SchemaGetter.transformEffect((text: string) => Effect.map(Cipher, ({ encrypt }) => encrypt(text)))
}))

const Users = EventSet.make({
  Registered: { version: 3, payload: Name, upcast: { 1: (old) => old.user, 2: (old) => ({ ...old, name: "" }) } },
  Renamed: { payload: Schema.Struct({ to: Schema.Date }), storedAs: ["NameChanged"] },
  Shared: Schema.Struct({ secret: Encrypted })
}, { boundedContext: "identity", aggregateType: "User" })
const Anywhere = EventSet.make({ Renamed: Name })

// The payload has the type of the schema, by tag.
holds<Equals<EventSet.Tag<typeof Users>, "Registered" | "Renamed" | "Shared">>()
holds<Equals<EventSet.Payload<typeof Users, "Renamed">, { readonly to: Date }>>()
holds<Equals<EventSet.Event<typeof Anywhere>, EventSet.Decoded<"Renamed", { readonly name: string }>>>()
export const narrows = (event: EventSet.Event<typeof Users>): Date | string =>
  event.eventType === "Renamed"
    ? event.payload.to
    : event.eventType === "Shared"
    ? event.payload.secret
    : event.payload.name
holds<Equals<EventSet.Tag<ReturnType<typeof Users.pick<"Shared">>>, "Shared">>()
const narrowed = Users.with({ Shared: Schema.Struct({}) })
holds<Equals<EventSet.Payload<typeof narrowed, "Shared">, {}>>()
holds<Equals<EventSet.Payload<typeof narrowed, "Renamed">, { readonly to: Date }>>()

// The services of the schemas are required where they are used.
export const told = (event: Event.Event) => {
  const decoded = EventSet.decode(Users, event)
  holds<Equals<Effect.Services<typeof decoded>, Keys>>()
  holds<Equals<EventSet.DecodingServices<typeof narrowed>, never>>()
  const appended = EventSet.append(Users, [{ eventType: "Shared", aggregateId: "1", payload: { secret: "s" } }])
  holds<Equals<Effect.Services<typeof appended>, Cipher | EventStore.EventStore>>()
  const encoded = EventSet.encode(Users, { eventType: "Shared", aggregateId: "1", payload: { secret: "s" } })
  holds<Equals<typeof encoded, Effect.Effect<Event.NewEvent, Errors.InvalidEvents, Cipher>>>()
}

// An upcast from each earlier version, and no other. It may declare the type of its payload.
EventSet.make({
  A: { version: 2, payload: Name, upcast: { 1: (old: { readonly user: string }) => ({ name: old.user }) } }
})
EventSet.make({
  // @ts-expect-error the upcast from version 2 is missing
  A: { version: 3, payload: Name, upcast: { 1: (old) => old } }
})
EventSet.make({
  // @ts-expect-error version 2 is the current one
  A: { version: 2, payload: Name, upcast: { 1: (old) => old, 2: (old) => old } }
})
// @ts-expect-error there is no upcast
EventSet.make({ A: { version: 2, payload: Name } })
// @ts-expect-error there is only one version
EventSet.make({ A: { payload: Name, upcast: { 1: (old) => old } } })
// @ts-expect-error not a schema
EventSet.make({ A: { payload: { name: Schema.String } } })

// Only tags of the set.
// @ts-expect-error misspelt
Users.pick("Renmed")
// @ts-expect-error misspelt
Users.with({ Renmed: Name })

// Appended events have a tag, its payload, and what the set does not declare.
const stream = { boundedContext: "identity", aggregateType: "User" }
export const appends = [
  EventSet.append(Users, [{ eventType: "Renamed", aggregateId: "1", payload: { to: new Date(0) } }]),
  EventSet.append(Anywhere, [{ ...stream, eventType: "Renamed", aggregateId: "1", payload: { name: "A" } }]),
  // @ts-expect-error the set does not declare the stream
  EventSet.append(Anywhere, [{ eventType: "Renamed", aggregateId: "1", payload: { name: "A" } }]),
  EventSet.append(Users, [{
    // @ts-expect-error the set declares it
    boundedContext: "a",
    eventType: "Renamed",
    aggregateId: "1",
    payload: { to: new Date(0) }
  }]),
  // @ts-expect-error stored names are not tags
  EventSet.append(Users, [{ eventType: "NameChanged", aggregateId: "1", payload: { to: new Date(0) } }]),
  // @ts-expect-error the payload of another tag
  EventSet.append(Users, [{ eventType: "Renamed", aggregateId: "1", payload: { name: "A" } }]),
  // @ts-expect-error the set decides the version
  EventSet.append(Users, [{ eventVersion: 2, eventType: "Renamed", aggregateId: "1", payload: { to: new Date(0) } }])
]

class NoName extends Data.TaggedError("NoName")<{}> {}
class NoDate extends Data.TaggedError("NoDate")<{}> {}

// The functions by tag receive their events, also as generators; errors and services are the union over them.
const byTag = Projection.make("users", Users, {
  handle: {
    Registered: Effect.fnUntraced(function*(event) {
      holds<Equals<typeof event, EventSet.Event<typeof Users, "Registered">>>()
      const sql = yield* SqlClient.SqlClient
      yield* sql`INSERT INTO users (name) VALUES (${event.payload.name})`
      if (event.payload.name === "") return yield* new NoName()
    }),
    Renamed: (event) => event.payload.to.getTime() === 0 ? Effect.fail(new NoDate()) : Effect.void,
    Shared: ({ eventType }) => {
      holds<Equals<typeof eventType, "Shared">>()
      return Effect.void
    }
  }
})
holds<Equals<Projection.Error<typeof byTag>, NoName | NoDate | SqlError.SqlError | Errors.EventUndecodable>>()
holds<Equals<Projection.Services<typeof byTag>, SqlClient.SqlClient | Keys>>()

// One function of the union; a batch of it.
const byUnion = Projection.make("users", Users.pick("Registered", "Renamed"), {
  handle: (event) => event.eventType === "Renamed" ? Effect.fail(new NoDate()) : Effect.fail(new NoName())
})
holds<Equals<typeof byUnion, Projection.Projection<NoDate | NoName | Errors.EventUndecodable>>>()
const batched = Projection.make("users", Anywhere, {
  startFrom: "now",
  handleBatch: Effect.fnUntraced(function*(events) {
    holds<Equals<typeof events, Array.NonEmptyReadonlyArray<EventSet.Event<typeof Anywhere>>>>()
    if (events[0].payload.name === "") return yield* Projection.failAt(events[0], new NoName())
  })
})
holds<Equals<typeof batched, Projection.Projection<NoName | Errors.EventUndecodable>>>()

// The service of a schema is missing.
const withoutKeys = Orchestrator.layer({
  replicaSet: "main",
  projections: [Projection.make("shared", Users.pick("Shared"), {
    handle: () => Effect.void
  })]
}).pipe(Layer.provide(MemoryStores.layer))
// @ts-expect-error Keys is missing
export const needsKeys = () => Effect.runFork(Effect.provide(Orchestrator.run, withoutKeys))
export const hasKeys = () =>
  Effect.runFork(Effect.provide(
    Orchestrator.run,
    withoutKeys.pipe(Layer.provide(Layer.succeed(Keys, {
      decrypt: (text) => text
    })))
  ))

// The filter that a set replaces is the filter of another one, or a literal.
const done = () => Effect.void
export const replacing = [Users.pick("Shared").filter, {}, { eventTypes: ["Shared"] }, [{}, Users.filter], []]
  .map((replacesFilter) => Projection.make("replacing", Users, { replacesFilter, handle: done }))

export const refused = [
  // @ts-expect-error the function of a tag is missing
  Projection.make("missing", Users, { handle: { Registered: done, Renamed: done } }),
  // @ts-expect-error misspelt
  Projection.make("wrong", Anywhere, { handle: { Renamed: done, Renmed: done } }),
  // @ts-expect-error not a property of the payload
  Projection.make("payload", Anywhere, { handle: { Renamed: ({ payload }) => Effect.succeed(payload.nme) } }),
  // @ts-expect-error both handlers
  Projection.make("both", Anywhere, { handle: done, handleBatch: done }),
  // @ts-expect-error no handler
  Projection.make("none", Anywhere, { startFrom: "now" }),
  // @ts-expect-error the event set selects the events
  Projection.make("filter", Anywhere, { eventTypes: ["Renamed"], handle: done }),
  // @ts-expect-error an event set is not a filter; its filter is
  Projection.make("replaces", Users, { replacesFilter: Anywhere, handle: done }),
  // @ts-expect-error a misspelt list
  Projection.make("misspelt", Users, { replacesFilter: { eventType: ["Shared"] }, handle: done }),
  // @ts-expect-error a partition key cannot be replaced
  Projection.make("key", Users, { replacesFilter: { partitionBy: "correlationId" }, handle: done }),
  // @ts-expect-error not an Effect
  Projection.make("effect", Anywhere, { handle: { Renamed: () => 5 } })
]
