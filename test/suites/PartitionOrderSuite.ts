/** What a projection with a partition key promises while workers share it, on any stores. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import type * as Layer from "effect/Layer"
import type { Event } from "../../src/schema/Event.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type { PartitionKey } from "../../src/schema/PartitionKey.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import * as Projection from "../../src/services/Projection.ts"
import type { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"
import { waitUntil } from "../../src/testing/TimeLimits.ts"
import { unique } from "./Suite.ts"

/** What a handler has written about an event. */
export interface Line {
  readonly key: string
  readonly position: bigint
  readonly worker: string
}

/** A read model whose writes commit with the batch. */
export interface Model<R> {
  readonly write: (projection: string, line: Line) => Effect.Effect<unknown, unknown, R>
  /** The lines of a projection; those of one key in the order in which they were written. */
  readonly lines: (projection: string) => Effect.Effect<ReadonlyArray<Line>, unknown, R>
}

const partitionBy: PartitionKey = { metadata: "customer" }

const aggregates = 12
/** Has no common factor with `aggregates`, so that a customer has events in every aggregate. */
const customers = 25

/** Events of a new type in several aggregates; some have no customer. Each aggregate has events of several customers. */
const given = Effect.gen(function*() {
  const store = yield* EventStore
  const aggregateType = yield* unique("type")
  const keys = new Map<bigint, string>()
  let next = 0
  const append = Effect.fnUntraced(function*(count: number) {
    for (const end = next + count; next < end; next++) {
      const aggregateId = `${aggregateType}-${next % aggregates}`
      const customer = next % 5 === 0 ? undefined : `${aggregateType} customer ${(next * 7) % customers}`
      const { positions } = yield* store.append([{
        boundedContext: "test",
        aggregateType,
        aggregateId,
        eventType: "Happened",
        metadata: customer === undefined ? undefined : { customer },
        payload: {}
      }])
      keys.set(positions[0]!, customer ?? aggregateId)
    }
  })
  return { aggregateType, append, keys }
})

type Given = Effect.Success<typeof given>

const keyOf = ({ aggregateId, metadata }: Event): string =>
  (metadata as { readonly customer: string } | null)?.customer ?? aggregateId

/** Starts workers of one projection. */
const workersOf = Effect.fnUntraced(function*<R>(
  model: Model<R>,
  { aggregateType }: Given,
  fails: (key: string) => boolean = () => false
) {
  const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
  const start = Effect.fnUntraced(function*(workerId: string) {
    const orchestrator = yield* Orchestrator.make({
      replicaSet,
      workerId,
      pollInterval: "100 millis",
      batchSize: 5,
      projections: [Projection.make(projection, {
        aggregateTypes: [aggregateType],
        partitionBy,
        handle: (event) => {
          const key = keyOf(event)
          return fails(key)
            ? Effect.fail("this customer cannot be handled")
            : model.write(projection, { key, position: event.globalPosition, worker: workerId })
        }
      })]
    })
    return yield* Effect.forkScoped(orchestrator.run)
  })
  const lines = model.lines(projection)
  const rows = Effect.flatMap(CheckpointStore, (store) => store.rows(projection))
  return {
    start,
    lines,
    rows,
    sharedBy: (...ids: ReadonlyArray<string>) =>
      waitUntil(
        `${ids.join(" and ")} share the ranges`,
        rows,
        (rows) =>
          rows.length >= ids.length && rows.every(({ fence }) => ids.includes(fence?.workerId ?? "")) &&
          ids.every((id) => rows.some(({ fence }) => fence?.workerId === id))
      ),
    handled: (count: number) => waitUntil("every event is handled", lines, (lines) => lines.length >= count)
  }
})

const keysOf = (lines: ReadonlyArray<Line>): ReadonlySet<string> => new Set(lines.map(({ key }) => key))

const isAscending = (lines: ReadonlyArray<Line>): boolean =>
  lines.every(({ position }, index) => index === 0 || lines[index - 1]!.position < position)

export const suite = <R = never>(
  name: string,
  layer: Layer.Layer<EventStore | Projections | R | Stores, unknown>,
  makeModel: Effect.Effect<Model<R>, unknown, R>
) =>
  // In real time: these tests wait for handlers and workers, never for a time.
  it.layer(layer, { excludeTestServices: true })(`order by a partition key (${name})`, (it) => {
    it.effect("each key's events are handled once and in position order while workers join and leave", () =>
      Effect.scoped(Effect.gen(function*() {
        const events = yield* given
        const workers = yield* workersOf(yield* makeModel, events)
        const a = yield* workers.start("a")
        yield* events.append(40)
        yield* workers.sharedBy("a")
        const appending = yield* Effect.forkScoped(events.append(120))
        const b = yield* workers.start("b")
        yield* workers.sharedBy("a", "b")
        yield* workers.start("c")
        yield* workers.sharedBy("a", "b", "c")
        yield* Fiber.interrupt(b)
        yield* Fiber.join(appending)
        yield* events.append(40)
        yield* Fiber.interrupt(a)
        yield* workers.sharedBy("c")
        yield* events.append(40)
        const lines = yield* workers.handled(240)
        assert.sameMembers(lines.map(({ position }) => position), [...events.keys.keys()])
        for (const key of keysOf(lines)) {
          const own = lines.filter((line) => line.key === key)
          assert.isTrue(isAscending(own), key)
          assert.deepStrictEqual(
            own.map(({ position }) => position),
            [...events.keys].flatMap(([position, of]) => of === key ? [position] : [])
          )
        }
      })))

    it.effect("a key's events are handled by one of two workers, whichever aggregates they belong to", () =>
      Effect.scoped(Effect.gen(function*() {
        const events = yield* given
        const workers = yield* workersOf(yield* makeModel, events)
        yield* workers.start("a")
        yield* workers.start("b")
        yield* workers.sharedBy("a", "b")
        yield* events.append(100)
        const lines = yield* workers.handled(100)
        const [a, b] = ["a", "b"].map((id) => keysOf(lines.filter(({ worker }) => worker === id)))
        assert.isAbove(a!.size, 0)
        assert.isAbove(b!.size, 0)
        assert.strictEqual(a!.size + b!.size, keysOf(lines).size, "no key was handled by both")
        // More keys than aggregates, so the aggregates cannot have determined the worker.
        assert.isAbove(keysOf(lines).size, aggregates)
      })))

    it.effect("a halt stays with the range that contains the key of its event", () =>
      Effect.scoped(Effect.gen(function*() {
        const store = yield* EventStore
        const events = yield* given
        yield* events.append(100)
        const head = yield* store.headPosition
        const hashesBy = (partitionBy: PartitionKey) =>
          Effect.map(
            store.read({
              after: 0n,
              upTo: head,
              partitionBy,
              hashes: true,
              filter: { aggregateTypes: [events.aggregateType] }
            }),
            ({ events, hashes }) =>
              new Map(events.map(({ globalPosition }, index) => [globalPosition, hashes![index]!]))
          )
        yield* waitUntil("the events are settled", store.settledPosition, (settled) => settled >= head)
        const [byKey, byAggregate] = [yield* hashesBy(partitionBy), yield* hashesBy("aggregateId")]
        const half = (hash: number | undefined) => hash! < HashRange.hashSpace / 2
        // The first event of its key, whose aggregate belongs to the other worker.
        const [position, poison] = [...events.keys].find(([position, key]) =>
          half(byKey.get(position)) !== half(byAggregate.get(position)) &&
          [...events.keys].find(([, other]) => other === key)![0] === position
        )!
        const workers = yield* workersOf(yield* makeModel, events, (key) => key === poison)
        yield* workers.start("a")
        yield* waitUntil("the only range is halted", workers.rows, ([row]) => row?.halt?.position === position)
        assert.strictEqual((yield* workers.rows)[0]?.halt?.hash, byKey.get(position))
        yield* workers.start("b")
        const rows = yield* waitUntil(
          "one of two ranges is halted, and the other one has handled its events",
          workers.rows,
          (rows) =>
            rows.length === 2 && rows.every(({ halt, position }) => halt !== undefined || position >= head) &&
            rows.some(({ halt }) => halt === undefined)
        )
        const halted = rows.filter(({ halt }) => halt !== undefined)
        assert.lengthOf(halted, 1)
        assert.strictEqual(half(halted[0]!.range.start), half(byKey.get(position)))
        assert.notInclude([...keysOf(yield* workers.lines)], poison)
      })))
  })
