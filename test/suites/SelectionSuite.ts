/** What is recorded with the progress of a projection: its filter and its partition key. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import * as Checkpoint from "../../src/schema/Checkpoint.ts"
import { FilterChanged, PartitionKeyChanged } from "../../src/schema/Errors.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { carried, converge, decide, join, type Member, rowsOf } from "./Members.ts"
import type { Time } from "./Suite.ts"
import { unique } from "./Suite.ts"

const ofTypes = (...eventTypes: ReadonlyArray<string>) => EventFilter.canonical({ eventTypes })

const replacing = (name: string, filter: string, ...replacesFilter: ReadonlyArray<string>) =>
  carried(name, { filter, replacesFilter })

export const suite = (
  name: string,
  layer: Layer.Layer<Stores, unknown>,
  { time }: { readonly time: Time }
) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(
    `CoordinationStore, selections (${name})`,
    (it) => {
      it.effect("a changed filter is refused unless it replaces the recorded one", () =>
        Effect.gen(function*() {
          const replicaSet = yield* unique("replica-set")
          const projection = yield* unique("projection")
          const recorded = EventFilter.canonical({ eventTypes: ["Added"] })
          const given = EventFilter.canonical({ eventTypes: ["Added", "Removed"] })
          const old = yield* join(replicaSet, "old", [carried(projection, { filter: recorded, startPosition: 4n })])
          yield* decide(old)
          yield* decide(old, { leaving: true })
          const worker = yield* join(replicaSet, "new", [carried(projection, { filter: given })])
          assert.deepStrictEqual(
            yield* Effect.flip(decide(worker)),
            new FilterChanged({ projection, recorded, given })
          )
          assert.deepStrictEqual((yield* rowsOf(projection)).map((row) => [row.filter, row.fence]), [[
            recorded,
            undefined
          ]])

          const replacing = {
            ...worker,
            projections: [carried(projection, { filter: given, replacesFilter: [EventFilter.canonical({}), recorded] })]
          }
          const { isComplete, ownedRows: held } = yield* decide(replacing)
          assert.isTrue(isComplete)
          // The projection continues from its position; the start position applies only to its first start.
          assert.deepStrictEqual(held.map((row) => [row.filter, row.position]), [[given, 4n]])
        }))

      it.effect("a worker does not claim progress under the filter that replaced its own, although it replaces a filter as well", () =>
        Effect.gen(function*() {
          const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
          const [before, recorded, given] = [ofTypes("A"), ofTypes("A", "B"), ofTypes("A", "B", "C")]
          const old = yield* join(replicaSet, "old", [replacing(projection, recorded, before)])
          yield* decide(old)
          const young = yield* join(replicaSet, "young", [replacing(projection, given, recorded)])
          yield* decide(young)
          yield* decide(old)
          yield* decide(young)
          assert.deepStrictEqual((yield* rowsOf(projection)).map(({ filter }) => filter), [recorded, given])
          yield* decide(young, { leaving: true })
          assert.deepStrictEqual(
            yield* Effect.flip(decide(old)),
            new FilterChanged({ projection, recorded: given, given: recorded })
          )
          assert.deepStrictEqual((yield* rowsOf(projection)).map(({ filter }) => filter), [recorded, given])
        }))

      it.effect("a worker replaces the filters of two versions only together if both have made progress", () =>
        Effect.gen(function*() {
          const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
          const [first, second, third] = [ofTypes("A"), ofTypes("B"), ofTypes("C")]
          const a = yield* join(replicaSet, "a", [carried(projection, { filter: first })])
          yield* decide(a)
          const b = yield* join(replicaSet, "b", [replacing(projection, second, first)])
          yield* decide(b)
          yield* decide(a)
          yield* decide(b)
          const c = yield* join(replicaSet, "c", [replacing(projection, third, second)])
          assert.deepStrictEqual(
            yield* Effect.flip(decide(c)),
            new FilterChanged({ projection, recorded: first, given: third, alsoRecorded: [second] })
          )
          yield* decide(a, { leaving: true })
          yield* decide(b, { leaving: true })
          yield* decide({ ...c, projections: [replacing(projection, third, first, second)] })
          assert.deepStrictEqual(
            new Set((yield* rowsOf(projection)).map((row) => [row.fence?.workerId, row.filter].join())),
            new Set([`c,${third}`])
          )
        }))

      it.effect("a changed partition key is refused, whatever filters are replaced", () =>
        Effect.gen(function*() {
          const replicaSet = yield* unique("replica-set")
          const projection = yield* unique("projection")
          const recorded = EventFilter.canonical({ partitionBy: { metadata: "tenant \"a\"" } })
          const given = EventFilter.canonical({ partitionBy: { metadata: "tenant" } })
          yield* decide(yield* join(replicaSet, "old", [carried(projection, { filter: recorded })]))
          const worker = yield* join(replicaSet, "new", [
            carried(projection, { filter: given, replacesFilter: [EventFilter.canonical({})] })
          ])
          assert.deepStrictEqual(
            yield* Effect.flip(decide(worker)),
            new PartitionKeyChanged({ projection, recorded, given })
          )
          assert.deepStrictEqual((yield* rowsOf(projection)).map(({ filter }) => filter), [recorded])
        }))

      it.effect("a worker that has given a projection up releases it to the workers that still carry it", () =>
        Effect.gen(function*() {
          const replicaSet = yield* unique("replica-set")
          const [changed, kept] = [yield* unique("changed"), yield* unique("kept")]
          const old = yield* join(replicaSet, "old", [changed, kept])
          yield* decide(old)
          const filter = EventFilter.canonical({ eventTypes: ["Added"] })
          const young = yield* join(replicaSet, "young", [replacing(changed, filter, EventFilter.canonical({})), kept])
          yield* decide(young)
          yield* decide(old)
          yield* decide(young)
          assert.strictEqual((yield* Effect.flip(decide(old)))._tag, "FilterChanged")
          const without: Member = { ...old, projections: [carried(changed, { givenUp: true }), carried(kept)] }
          const given = yield* decide(without)
          assert.deepStrictEqual(given.carry, [kept])
          assert.deepStrictEqual(given.form?.members.map(({ projections }) => projections), [[kept], [changed, kept]])
          yield* converge([without, young])
          assert.deepStrictEqual(
            (yield* rowsOf(changed)).map((row) => [row.fence?.workerId, row.filter]),
            [["young", filter]]
          )
          assert.deepStrictEqual((yield* rowsOf(kept)).map((row) => row.fence?.workerId), ["old", "young"])
          // The old worker can still leave.
          yield* decide(without, { leaving: true })
          yield* converge([young])
          assert.deepStrictEqual((yield* rowsOf(kept)).map((row) => row.fence?.workerId), ["young"])
        }))

      it.effect("another replica set claims a projection that was given up only after its ranges were released", () =>
        Effect.gen(function*() {
          const [here, there] = [yield* unique("here"), yield* unique("there")]
          const projection = yield* unique("projection")
          const old = yield* join(there, "old", [projection])
          const { ownedRows } = yield* decide(old)
          const without: Member = { ...old, projections: [carried(projection, { givenUp: true })] }
          // A batch of the range is still running.
          yield* decide(without, { activeKeys: new Set(ownedRows.map(Checkpoint.key)) })
          const worker = yield* join(here, "worker", [projection])
          const waiting = yield* decide(worker)
          assert.deepStrictEqual([waiting.ownedRows, waiting.isComplete], [[], false])
          assert.deepStrictEqual(
            (yield* rowsOf(projection)).map((row) => row.fence),
            ownedRows.map(({ fence }) => fence)
          )

          yield* decide(without)
          assert.isTrue((yield* decide(worker)).isComplete)
          assert.deepStrictEqual((yield* rowsOf(projection)).map((row) => row.replicaSet), [here])
        }))
    }
  )
