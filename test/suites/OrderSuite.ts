/** What the orchestrator promises about order and concurrency, on any stores. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import type * as Layer from "effect/Layer"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as Ordering from "../../src/schema/Ordering.ts"
import { CheckpointStore, TransientFailure } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import type { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { unique } from "./Suite.ts"

/** Enough that every sixteenth of the hash space contains one. */
const aggregates = 128

/** Appends one event to each of many aggregates of a type. */
const append = Effect.fnUntraced(function*(aggregateType: string) {
  const events = yield* EventStore
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
})

/** The same, for a new type. */
const appendMany = Effect.tap(unique("type"), append)

const worker = Effect.fnUntraced(function*<R>(
  projection: Projection.Projection<unknown, R>,
  rest: { readonly replicaSet?: string } = {}
) {
  const replicaSet = rest.replicaSet ?? (yield* unique("replica-set"))
  return yield* Orchestrator.make({ replicaSet, projections: [projection] })
})

export interface Options<R> {
  /** A number that handlers read and write in their transactions. */
  readonly shared: {
    readonly read: Effect.Effect<number, unknown, R>
    readonly write: (value: number) => Effect.Effect<unknown, unknown, R>
  }
}

export const suite = <R>(
  name: string,
  layer: Layer.Layer<EventStore | Projections | R | Stores, unknown>,
  { shared }: Options<R>
) =>
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

    it.effect("global order: one of several workers handles all events one at a time, and another one continues", () =>
      Effect.gen(function*() {
        const checkpoints = yield* CheckpointStore
        const replicaSet = yield* unique("replica-set")
        const aggregateType = yield* appendMany
        const name = yield* unique("projection")
        const handled: Array<bigint> = []
        let [running, most] = [0, 0]
        const projection = Projection.make(name, {
          aggregateTypes: [aggregateType],
          ordering: "global",
          handle: ({ globalPosition }) =>
            Effect.suspend(() => {
              most = Math.max(most, ++running)
              return Effect.yieldNow
            }).pipe(
              Effect.ensuring(Effect.sync(() => {
                running--
                // An optimistic transaction may repeat its batch before it commits.
                if (!handled.includes(globalPosition)) handled.push(globalPosition)
              }))
            )
        })
        const until = (condition: Effect.Effect<boolean, unknown>) =>
          Effect.repeat(Effect.delay(condition, "10 millis"), { until: (holds) => holds })
        const ownerIs = (id: (workerId: string | undefined) => boolean) =>
          until(Effect.map(checkpoints.rows(name), ([row]) => id(row?.fence?.workerId)))
        const runs = new Map<string, Fiber.Fiber<unknown, unknown>>()
        for (const workerId of ["a", "b", "c"]) {
          const { run } = yield* Orchestrator.make({ replicaSet, projections: [projection], workerId })
          runs.set(workerId, yield* Effect.forkChild(run))
        }
        const owner = Ordering.owner(name, ["a", "b", "c"])!
        yield* ownerIs((id) => id === owner)
        yield* until(Effect.sync(() => handled.length === aggregates))
        yield* Fiber.interrupt(runs.get(owner)!)
        const next = Ordering.owner(name, ["a", "b", "c"].filter((id) => id !== owner))
        yield* ownerIs((id) => id === next)
        yield* append(aggregateType)
        yield* until(Effect.sync(() => handled.length === 2 * aggregates))
        assert.strictEqual(most, 1)
        assert.deepStrictEqual(handled, handled.toSorted((x, y) => x < y ? -1 : 1))
        assert.deepStrictEqual((yield* checkpoints.rows(name)).map(({ range }) => range), [HashRange.whole])
        for (const fiber of runs.values()) yield* Fiber.interrupt(fiber)
      }))

    it.effect("serializable batches of two ranges lose no update of a row that both read and write", () =>
      Effect.gen(function*() {
        const aggregateType = yield* appendMany
        const before = yield* shared.read
        const both = yield* Latch.make(false)
        let calls = 0
        const orchestrator = yield* worker(Projection.make(yield* unique("projection"), {
          aggregateTypes: [aggregateType],
          concurrency: 2,
          isolation: "serializable",
          handle: Effect.fnUntraced(function*() {
            const value = yield* shared.read
            // The first batches of both ranges have read the same value before one of them writes.
            if (++calls === 2) both.openUnsafe()
            yield* both.await
            yield* shared.write(value + 1)
          })
        }))
        yield* orchestrator.catchUp
        assert.strictEqual(yield* shared.read, before + aggregates)
        assert.isAbove(calls, aggregates, "no batch was refused and repeated")
      }))

    it.effect("at least once: a crash between handler and progress handles the events again, in their order", () =>
      Effect.gen(function*() {
        const checkpoints = yield* CheckpointStore
        const replicaSet = yield* unique("replica-set")
        const aggregateType = yield* appendMany
        const name = yield* unique("projection")
        const handledBy = (handled: Array<bigint>) =>
          Projection.make(name, {
            aggregateTypes: [aggregateType],
            delivery: "at-least-once",
            handle: Effect.fnUntraced(function*({ globalPosition }) {
              const { fence, position } = yield* Projection.Delivery
              assert.deepStrictEqual([fence.generationId > 0n, position], [true, globalPosition])
              handled.push(globalPosition)
            })
          })
        const [lost, kept]: [Array<bigint>, Array<bigint>] = [[], []]
        const crashes = yield* Latch.make(false)
        const orchestrator = yield* Effect.provideService(
          Orchestrator.make({ replicaSet, projections: [handledBy(lost)], drainTimeout: 0 }),
          CheckpointStore,
          {
            ...checkpoints,
            advance: (held, options) =>
              lost.length === 0 ? checkpoints.advance(held, options) : Effect.andThen(crashes.open, Effect.never)
          }
        )
        const run = yield* Effect.forkChild(orchestrator.run)
        yield* crashes.await
        yield* Fiber.interrupt(run)
        yield* (yield* worker(handledBy(kept), { replicaSet })).catchUp
        assert.isNotEmpty(lost)
        assert.lengthOf(kept, aggregates)
        assert.deepStrictEqual(kept, kept.toSorted((x, y) => x < y ? -1 : 1))
        assert.deepStrictEqual(lost, kept.slice(0, lost.length))
      }))

    it.effect("at least once: progress that cannot be written now is written later, without a second call", () =>
      Effect.gen(function*() {
        const checkpoints = yield* CheckpointStore
        const aggregateType = yield* appendMany
        const name = yield* unique("projection")
        const handled: Array<bigint> = []
        let refused = 0
        const orchestrator = yield* Effect.provideService(
          worker(Projection.make(name, {
            aggregateTypes: [aggregateType],
            delivery: "at-least-once",
            handle: ({ globalPosition }) => Effect.sync(() => handled.push(globalPosition))
          })),
          CheckpointStore,
          {
            ...checkpoints,
            advance: (held, options) =>
              refused++ === 0
                ? Effect.fail(new TransientFailure({ kind: "conflict", cause: new Error("refused") }))
                : checkpoints.advance(held, options)
          }
        )
        yield* orchestrator.catchUp
        assert.isAbove(refused, 1)
        assert.lengthOf(handled, aggregates)
      }))

    it.effect("at least once: the handler runs outside of a transaction, and a failure keeps what came before", () =>
      Effect.gen(function*() {
        const checkpoints = yield* CheckpointStore
        const aggregateType = yield* appendMany
        const name = yield* unique("projection")
        const before = yield* shared.read
        const handled: Array<bigint> = []
        const orchestrator = yield* worker(Projection.make(name, {
          aggregateTypes: [aggregateType],
          delivery: "at-least-once",
          handle: Effect.fnUntraced(function*({ globalPosition }) {
            yield* shared.write((yield* shared.read) + 1)
            handled.push(globalPosition)
            if (handled.length >= 3) return yield* Effect.fail("broken")
          })
        }))
        const error = yield* Effect.flip(orchestrator.catchUp)
        assert.strictEqual(error._tag, "ProjectionHalted")
        const [row] = yield* checkpoints.rows(name)
        assert.strictEqual(row!.halt!.position, handled[2]!)
        assert.isAtLeast(Number(row!.position), Number(handled[1]!))
        assert.strictEqual(yield* shared.read, before + handled.length)
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
