/** Event sets that must or must not compile: checked by `tsc`, never run. */
import { Context, Effect, Schema, SchemaGetter } from "effect"
import { type Event, EventSet, type EventStore } from "pupsourcing-orchestrator"

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
  Told: Schema.Struct({ secret: Encrypted })
}, { boundedContext: "identity", aggregateType: "User" })
const Anywhere = EventSet.make({ Renamed: Name })

// The payload has the type of the schema, by tag.
holds<Equals<EventSet.Tag<typeof Users>, "Registered" | "Renamed" | "Told">>()
holds<Equals<EventSet.Payload<typeof Users, "Renamed">, { readonly to: Date }>>()
holds<Equals<EventSet.Event<typeof Anywhere>, EventSet.Decoded<"Renamed", { readonly name: string }>>>()
export const narrows = (event: EventSet.Event<typeof Users>): Date | string =>
  event.eventType === "Renamed"
    ? event.payload.to
    : event.eventType === "Told"
    ? event.payload.secret
    : event.payload.name
holds<Equals<EventSet.Tag<ReturnType<typeof Users.pick<"Told">>>, "Told">>()
const narrowed = Users.with({ Told: Schema.Struct({}) })
holds<Equals<EventSet.Payload<typeof narrowed, "Told">, {}>>()
holds<Equals<EventSet.Payload<typeof narrowed, "Renamed">, { readonly to: Date }>>()

// The services of the schemas are required where they are used.
export const told = (event: Event.Event) => {
  const decoded = EventSet.decode(Users, event)
  holds<Equals<Effect.Services<typeof decoded>, Keys>>()
  holds<Equals<EventSet.DecodingServices<typeof narrowed>, never>>()
  const appended = EventSet.append(Users, [{ eventType: "Told", aggregateId: "1", payload: { secret: "s" } }])
  holds<Equals<Effect.Services<typeof appended>, Cipher | EventStore.EventStore>>()
}

// An upcast from each earlier version, and no other.
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
