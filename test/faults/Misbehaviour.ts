/** What the handler of a fault test does wrong, in addition to its work. */
import { Console, Effect, Schema } from "effect"
import { SqlClient } from "effect/sql"
import type { Event } from "../../src/schema/Event.ts"
import type * as Projection from "../../src/services/Projection.ts"

export const Misbehaviour = Schema.Struct({
  kind: Schema.Literals([
    /** Blocks the process once, in the middle of a batch's transaction. */
    "blocks",
    /** Blocks the process at each event of an aggregate with the prefix `poison`. */
    "blocks at poison",
    /** Runs no statement for this long, once, in the middle of a batch's transaction. */
    "sleeps",
    /** Starts fibers that outlive the batch and write its lines again. */
    "leaves fibers"
  ]),
  millis: Schema.Number
})

export type Misbehaviour = typeof Misbehaviour.Type

const block = (millis: number) =>
  Effect.sync(() => {
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, millis)
  })

/** In the middle of the first event that the process handles. */
const once = (name: string, pause: Effect.Effect<void>) => {
  let done = false
  return (event: Event) =>
    Effect.suspend(() => {
      if (done) return Effect.void
      done = true
      return Console.log(`${name} at ${event.globalPosition}`).pipe(
        Effect.andThen(pause),
        Effect.andThen(Console.log(`continues at ${event.globalPosition}`))
      )
    })
}

const writeLater = (projection: string, millis: number) => (event: Event) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    yield* Effect.sleep(millis)
    yield* sql`
      INSERT INTO journal (projection, worker, aggregate_id, version, position)
      VALUES (${projection}, 'late', ${event.aggregateId}, ${event.aggregateVersion}::bigint,
        ${event.globalPosition}::bigint)`
  }).pipe(
    Effect.matchEffect({
      onFailure: (error) => Console.log(`refused what came late: ${String(error.reason.cause)}`),
      onSuccess: () => Console.log("wrote what came late")
    }),
    Effect.forkDetach
  )

/** Prefix of the aggregates at whose events some handlers misbehave. */
export const poison = "poison"

const besides = (name: string, { kind, millis }: Misbehaviour) => {
  switch (kind) {
    case "blocks":
      return once(kind, block(millis))
    case "blocks at poison":
      return ({ aggregateId, globalPosition }: Event) =>
        aggregateId.startsWith(poison)
          ? Effect.andThen(Console.log(`${kind} at ${globalPosition}`), block(millis))
          : Effect.void
    case "sleeps":
      return once(kind, Effect.sleep(millis))
    case "leaves fibers":
      return writeLater(name, millis)
  }
}

/** Misbehaves after each event that was handled. */
const handlerWith = <E, R>(
  handler: Projection.Handler<E, R>,
  misbehave: (event: Event) => Effect.Effect<unknown, never, SqlClient.SqlClient>
): Projection.Handler<E, R | SqlClient.SqlClient> =>
  handler._tag === "One"
    ? { _tag: "One", handle: (event) => Effect.andThen(handler.handle(event), misbehave(event)) }
    : {
      _tag: "Batch",
      handleBatch: (events) => Effect.andThen(handler.handleBatch(events), Effect.forEach(events, misbehave))
    }

/** Adds the misbehaviour to a projection's handler. */
export const apply = (misbehaviour: Misbehaviour) => <E, R>(projection: Projection.Projection<E, R>) => {
  const misbehave = besides(projection.name, misbehaviour)
  return {
    ...projection,
    handler: handlerWith(projection.handler, misbehave)
  }
}
