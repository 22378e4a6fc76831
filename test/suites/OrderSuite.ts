/** What the orchestrator promises about order and concurrency, on any stores. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import type * as Layer from "effect/Layer"
import * as HashRange from "../../src/schema/HashRange.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import type { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { unique } from "./Suite.ts"

/** Enough that every sixteenth of the hash space contains one. */
const aggregates = 128

/** Appends one event to each of many aggregates of a new type. */
const appendMany = Effect.gen(function*() {
  const events = yield* EventStore
  const aggregateType = yield* unique("type")
  for (let index = 0; index < aggregates; index++) {
    yield* events.append([
      {
        boundedContext: "test",
        aggregateType,
        aggregateId: `${aggregateType}-${index}`,
        eventType: "Happened",
        payload: {}
      }
    ])
  }
  return aggregateType
})

const worker = Effect.fnUntraced(function*(
  projection: Projection.Projection<unknown, never>,
  rest: { readonly replicaSet?: string } = {}
) {
  const replicaSet = rest.replicaSet ?? (yield* unique("replica-set"))
  return yield* Orchestrator.make({ replicaSet, projections: [projection] })
})

export const suite = (name: string, layer: Layer.Layer<EventStore | Projections | Stores, unknown>) =>
  // In real time: these tests wait for handlers and workers, never for a time.
  it.layer(layer, { excludeTestServices: true })(`order and concurrency (${name})`, (it) => {
    it.effect("handlers that wait run `concurrency` at a time, in ranges of their own", () =>
      Effect.gen(function*() {
        const aggregateType = yield* appendMany
        const projection = yield* unique("projection")
        const all = yield* Latch.make(false)
        let [running, most] = [0, 0]
        const orchestrator = yield* worker(Projection.make(projection, {
          aggregateTypes: [aggregateType],
          concurrency: 4,
          handle: () =>
            Effect.suspend(() => {
              most = Math.max(most, ++running)
              if (running === 4) all.openUnsafe()
              return all.await
            }).pipe(Effect.ensuring(Effect.sync(() => running--)))
        }))
        yield* orchestrator.catchUp
        assert.strictEqual(most, 4)
        const rows = yield* (yield* CheckpointStore).rows(projection)
        assert.isTrue(HashRange.tiles(rows.map(({ range }) => range)))
      }))

    it.effect("a concurrency that differs from the last run's moves no position", () =>
      Effect.gen(function*() {
        const aggregateType = yield* appendMany
        const projection = yield* unique("projection")
        const handled: Array<string> = []
        const run = (concurrency: number) =>
          worker(Projection.make(projection, {
            aggregateTypes: [aggregateType],
            concurrency,
            handle: ({ aggregateId }) => Effect.sync(() => handled.push(aggregateId))
          })).pipe(Effect.flatMap(({ catchUp }) => catchUp))
        for (const concurrency of [1, 5, 2]) yield* run(concurrency)
        assert.lengthOf(handled, aggregates)
        assert.lengthOf(new Set(handled), aggregates)
      }))
  })
