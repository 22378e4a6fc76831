/** What a projection of typed events receives, and where it fails, on any stores. */
import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as SchemaGetter from "effect/SchemaGetter"
import type { NewEvent } from "../../src/schema/Event.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import * as EventSet from "../../src/services/EventSet.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import type { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { unique } from "./Suite.ts"

class Refused extends Data.TaggedError("Refused")<{ readonly name: string }> {}

const Registered = Schema.Struct({ email: Schema.String, name: Schema.String })
const Renamed = Schema.Struct({ name: Schema.String })

/** An event set of a new aggregate type, and what is handled of it. */
const given = Effect.gen(function*() {
  const aggregateType = yield* unique("user")
  const store = yield* EventStore
  const options = { boundedContext: "test", aggregateType } as const
  const events = {
    Registered: {
      version: 2,
      payload: Registered,
      upcast: { 1: (old: object) => ({ ...old, name: "" }) },
      storedAs: ["Created"]
    },
    Renamed
  } as const
  const log: Array<string> = []
  return {
    aggregateType,
    options,
    Users: EventSet.make(events, { ...options, retired: ["Pinged"] }),
    Strict: EventSet.make(events, { ...options, retired: ["Pinged"], unknown: "fail" }),
    log,
    note: (text: string) => Effect.sync(() => log.push(text)),
    append: (...events: ReadonlyArray<Partial<NewEvent> & Pick<NewEvent, "eventType">>) =>
      store.append(events.map((event) => ({ ...options, aggregateId: "1", payload: {}, ...event })))
  }
})

/** Runs the projection to the head; returns its row and the error if it fails. */
const catchUp = Effect.fnUntraced(function*<R>(projection: Projection.Projection<unknown, R>) {
  const worker = yield* Orchestrator.make({ replicaSet: yield* unique("replica-set"), projections: [projection] })
  const result = yield* Effect.result(worker.catchUp)
  const [row] = yield* (yield* CheckpointStore).rows(projection.name)
  return { row: row!, error: result._tag === "Failure" ? result.failure : undefined }
})

const history: ReadonlyArray<Partial<NewEvent> & Pick<NewEvent, "eventType">> = [
  { eventType: "Created", payload: { email: "a@x" } },
  { eventType: "Pinged" },
  { eventType: "Renamed", payload: { name: "A" } },
  { eventType: "Unknown" },
  { eventType: "Registered", eventVersion: 2, payload: { email: "b@x", name: "B" } }
]

export const suite = (storeName: string, layer: Layer.Layer<EventStore | Projections | Stores, unknown>) =>
  it.layer(layer, { excludeTestServices: true })(`typed events (${storeName})`, (it) => {
    it.effect("each event is decoded and passed to the function of its tag, and ignored types to none", () =>
      Effect.gen(function*() {
        const { append, log, note, Users } = yield* given
        yield* append(...history)
        const { error } = yield* catchUp(Projection.make(yield* unique("users"), Users, {
          handle: {
            Registered: ({ eventType, eventVersion, payload: { email, name } }) =>
              note(`${eventType} ${eventVersion} ${email} ${name}`),
            Renamed: Effect.fnUntraced(function*({ aggregateVersion, payload }) {
              yield* note(`renamed ${payload.name} at ${aggregateVersion}`)
            })
          }
        }))
        assert.isUndefined(error)
        assert.deepStrictEqual(log, ["Registered 1 a@x ", "renamed A at 3", "Registered 2 b@x B"])
      }))

    it.effect("an encoded event is stored as append stores it", () =>
      Effect.gen(function*() {
        const { aggregateType, Users } = yield* given
        const store = yield* EventStore
        const event = (aggregateId: string) =>
          ({
            eventType: "Registered",
            aggregateId,
            payload: { email: "a@x", name: "A" },
            metadata: { by: "B" }
          }) as const
        yield* EventSet.append(Users, [event("appended")])
        yield* store.append([yield* EventSet.encode(Users, event("encoded"))])
        const streams = yield* Effect.forEach(
          ["appended", "encoded"],
          (aggregateId) => store.readStream({ boundedContext: "test", aggregateType, aggregateId })
        )
        const [appended, encoded] = streams.map((events) =>
          events.map(({ eventType, eventVersion, metadata, payload }) => ({
            eventType,
            eventVersion,
            metadata,
            payload: new TextDecoder().decode(payload)
          }))
        )
        assert.deepStrictEqual(encoded, appended)
        assert.deepStrictEqual(encoded, [
          {
            eventType: "Registered",
            eventVersion: 2,
            metadata: { by: "B" },
            payload: "{\"email\":\"a@x\",\"name\":\"A\"}"
          }
        ])
        const refused = yield* Effect.flip(
          EventSet.encode(Users, { eventType: "Renamed", aggregateId: "1", payload: { name: 5 as unknown as string } })
        )
        assert.strictEqual(refused._tag, "InvalidEvents")
      }))

    it.effect("one function handles the union, and a picked set selects and decodes only its own types", () =>
      Effect.gen(function*() {
        const { append, log, note, Users } = yield* given
        yield* append(...history)
        yield* catchUp(Projection.make(yield* unique("all"), Users, {
          handle: (event) =>
            note(event.eventType === "Renamed" ? `to ${event.payload.name}` : `new ${event.payload.email}`)
        }))
        yield* catchUp(Projection.make(yield* unique("picked"), Users.pick("Renamed"), {
          handle: ({ payload }) => note(payload.name)
        }))
        assert.deepStrictEqual(log, ["new a@x", "to A", "new b@x", "A"])
      }))

    it.effect("a batch handler receives decoded events only, and is not called for an empty batch", () =>
      Effect.gen(function*() {
        const { append, log, note, Strict } = yield* given
        yield* append(history[0]!, history[1]!, history[2]!)
        yield* append({ eventType: "Pinged", aggregateId: "2" })
        const users = Projection.make(yield* unique("users"), Strict, {
          handleBatch: (events) => note(events.map(({ eventType }) => eventType).join())
        })
        assert.isUndefined((yield* catchUp(users)).error)
        yield* append({ eventType: "Pinged" })
        assert.isUndefined((yield* catchUp(users)).error)
        assert.deepStrictEqual(log.join().split(","), ["Registered", "Renamed"])
      }))

    for (const how of ["handle", "handleBatch"] as const) {
      it.effect(`an undecodable payload is the failure of its event, after what precedes has committed (${how})`, () =>
        Effect.gen(function*() {
          const { append, log, note, Users } = yield* given
          const { positions } = yield* append(
            { eventType: "Renamed", payload: { name: "A" } },
            { eventType: "Renamed", payload: { name: "B" } },
            { eventType: "Renamed", payload: { name: { secret: "C" } } },
            { eventType: "Renamed", payload: { name: "D" } }
          )
          const projection = yield* unique("users")
          const { error, row } = yield* catchUp(
            how === "handle"
              ? Projection.make(projection, Users, { handle: (event) => note(event.payload.name) })
              : Projection.make(projection, Users, {
                handleBatch: (events) => note(events.map(({ payload }) => payload.name).join(""))
              })
          )
          assert.strictEqual(error?._tag, "ProjectionHalted")
          assert.strictEqual(row.halt?.position, positions[2])
          assert.strictEqual(row.position, positions[1])
          assert.include(row.halt?.error, "EventUndecodable: Event ")
          assert.include(
            row.halt?.error,
            "(type \"Renamed\", event version 1) cannot be decoded: a value has another type at payload.name."
          )
          assert.notInclude(row.halt?.error, "secret")
          assert.isTrue(log.join("").startsWith("AB") && !log.join("").includes("D"))
        }))

      it.effect(`an event of a newer version ends catchUp without a halt, after what precedes has committed (${how})`, () =>
        Effect.gen(function*() {
          const { append, note, Users } = yield* given
          const { positions } = yield* append(
            { eventType: "Renamed", payload: { name: "A" } },
            { eventType: "Renamed", eventVersion: 2, payload: {} }
          )
          const projection = yield* unique("users")
          const { error, row } = yield* catchUp(
            how === "handle"
              ? Projection.make(projection, Users, { handle: () => note("") })
              : Projection.make(projection, Users, { handleBatch: () => note("") })
          )
          assert.strictEqual(error?._tag, "EventVersionTooNew")
          assert.isUndefined(row.halt)
          assert.strictEqual(row.position, positions[0])
        }))
    }

    it.effect("a set with unknown: \"fail\" fails at a type that it does not contain", () =>
      Effect.gen(function*() {
        const { append, log, note, Strict } = yield* given
        const { positions } = yield* append(...history)
        const { row } = yield* catchUp(Projection.make(yield* unique("users"), Strict, {
          handle: ({ eventType }) => note(eventType)
        }))
        assert.strictEqual(row.halt?.position, positions[3])
        assert.include(
          row.halt?.error,
          "(type \"Unknown\", event version 1) cannot be decoded: the event set does not contain its type."
        )
        // The batch that failed is repeated without the event.
        assert.deepStrictEqual(log.slice(-2), ["Registered", "Renamed"])
      }))

    it.effect("a handler that fails or does not return an Effect halts the range at the event", () =>
      Effect.gen(function*() {
        const { append, note, Users } = yield* given
        yield* append(...history)
        const refused = yield* catchUp(Projection.make(yield* unique("users"), Users, {
          handle: { Registered: ({ payload }) => Effect.fail(new Refused(payload)), Renamed: () => Effect.void }
        }))
        assert.include(refused.row.halt?.error, "Refused")
        const wrong = yield* catchUp(Projection.make(yield* unique("users"), Users, {
          handle: { Registered: () => note(""), Renamed: (() => 5) as never }
        }))
        assert.include(wrong.row.halt?.error, "HandlerResultUnused")
      }))

    it.effect("a schema that requires a service is decoded with that of the orchestrator", () =>
      Effect.gen(function*() {
        class Keys extends Context.Service<Keys, { readonly decrypt: (text: string) => string }>()("test/Keys") {}
        const { append, log, note, options } = yield* given
        const Secret = Schema.String.pipe(Schema.decodeTo(Schema.String, {
          decode: SchemaGetter.transformEffect((text: string) => Effect.map(Keys, ({ decrypt }) => decrypt(text))),
          encode: SchemaGetter.passthrough()
        }))
        const Told = EventSet.make({ Told: Schema.Struct({ secret: Secret }) }, options)
        yield* append({ eventType: "Told", payload: { secret: "abc" } })
        yield* catchUp(Projection.make(yield* unique("told"), Told, {
          handle: { Told: ({ payload }) => note(payload.secret) }
        })).pipe(Effect.provideService(Keys, { decrypt: (text) => text.toUpperCase() }))
        assert.deepStrictEqual(log, ["ABC"])
      }))
  })
