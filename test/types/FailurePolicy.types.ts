/** What the types of a projection's failure policy accept. */
import { Data, Effect, Schedule, Schema } from "effect"
import { EventSet, Projection } from "pupsourcing-orchestrator"

class NoSuchCountry extends Data.TaggedError("NoSuchCountry")<{ readonly code: string }> {}
class Timeout extends Data.TaggedError("Timeout") {}

const handle = (): Effect.Effect<void, NoSuchCountry | Timeout> => Effect.fail(new Timeout())

const typed: Projection.Projection<NoSuchCountry | Timeout> = Projection.make("typed", {
  handle,
  onFailure: (error, event) => error._tag === "Timeout" || event.eventType === "Old" ? "halt" : "park"
})

Projection.make("batches", {
  handleBatch: handle,
  onFailure: (error) => error._tag === "NoSuchCountry" ? "skip" : "halt"
})

Projection.make("retried", {
  handle,
  retry: Schedule.recurs(3).pipe(
    Schedule.setInputType<NoSuchCountry | Timeout>(),
    Schedule.while(({ input }) => input._tag === "Timeout")
  )
})

/** The options have no influence on the error type. */
const infallible: Projection.Projection = Projection.make("infallible", {
  handle: () => Effect.void,
  retry: Schedule.recurs(3),
  onFailure: "park"
})

/** By tag, also for a generator inside the options. */
Projection.make("by tag", {
  handle: Effect.fnUntraced(function*(event) {
    if (event.eventType === "Old") return yield* new NoSuchCountry({ code: "XX" })
    return yield* new Timeout()
  }),
  onFailure: { NoSuchCountry: "park" }
})

Projection.make("by tag, batches", {
  handleBatch: Effect.fnUntraced(function*(events) {
    return yield* Projection.failAt(events[0], new Timeout())
  }),
  onFailure: { Timeout: "skip" }
})

Projection.make("wrong tag in the list", {
  handle,
  // @ts-expect-error: the handler does not fail with this tag
  onFailure: { NoSuchCity: "park" }
})

Projection.make("wrong decision for a tag", {
  handle,
  // @ts-expect-error: there is no such decision
  onFailure: { Timeout: "ignore" }
})

Projection.make("no typed error", {
  handle: () => Effect.void,
  // @ts-expect-error: the handler does not fail
  onFailure: { Timeout: "park" }
})

Projection.make("no typed error, wrong decision", {
  handle: () => Effect.void,
  // @ts-expect-error: there is no such decision
  onFailure: "ignore"
})

Projection.make("wrong decision", {
  handle,
  // @ts-expect-error: there is no such decision
  onFailure: "ignore"
})

Projection.make("wrong tag", {
  handle,
  // @ts-expect-error: the handler does not fail with this tag
  onFailure: (error) => error._tag === "Other" ? "skip" : "halt"
})

const Users = EventSet.make({ UserRegistered: Schema.Struct({ email: Schema.String }) })

Projection.make("event set", Users, {
  handle: { UserRegistered: handle },
  onFailure: (error) => error._tag === "EventUndecodable" || error._tag === "Timeout" ? "park" : "halt"
})

Projection.make("event set, by tag", Users, {
  handle: {
    UserRegistered: Effect.fnUntraced(function*({ payload }) {
      return yield* new NoSuchCountry({ code: payload.email })
    })
  },
  onFailure: { EventUndecodable: "skip", NoSuchCountry: "park" }
})

Projection.make("event set, wrong tag", Users, {
  handle: { UserRegistered: handle },
  // @ts-expect-error: no handler fails with this tag
  onFailure: { NoSuchCity: "park" }
})

export { infallible, typed }
