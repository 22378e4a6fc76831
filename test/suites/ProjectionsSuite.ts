import { assert, it } from "@effect/vitest"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import type * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as Scope from "effect/Scope"
import type { Held } from "../../src/schema/Checkpoint.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import * as LagWindow from "../../src/schema/LagWindow.ts"
import * as Status from "../../src/schema/Status.ts"
import * as Worker from "../../src/schema/Worker.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import { Projections } from "../../src/services/Projections.ts"
import type { Stores } from "../../src/services/Stores.ts"
import * as Members from "./Members.ts"
import type { Time } from "./Suite.ts"
import { unique } from "./Suite.ts"

export interface Options {
  readonly time: Time
}

/** Appends events of one context, each to its own aggregate, and returns the position of the last one. */
const append = Effect.fnUntraced(function*(boundedContext: string, eventTypes: ReadonlyArray<string>) {
  const store = yield* EventStore
  let last = 0n
  for (const [index, eventType] of eventTypes.entries()) {
    const event = { boundedContext, aggregateType: "Thing", aggregateId: `${index}`, eventType, payload: {} }
    last = (yield* store.append([event])).positions[0]!
  }
  return last
})

/** Registers a worker. */
const join = (replicaSet: string, workerId: string, projections: ReadonlyArray<string>) =>
  Effect.map(Members.join(replicaSet, workerId, projections), ({ registration }) => registration)

/** Lets the worker claim its share of a projection, whose start is `position`; returns the rows that it owns. */
const claim = Effect.fnUntraced(function*(
  registration: Worker.Registration,
  projection: string,
  filter: EventFilter.Selection,
  position: bigint,
  leaving = false
) {
  const carried = Members.carried(projection, { filter: EventFilter.canonical(filter), startPosition: position })
  return (yield* Members.decide({ registration, projections: [carried] }, { leaving })).ownedRows
})

const read = Effect.flatMap(Projections, ({ status }) => status)

const ofReplicaSet = (status: Status.Status, replicaSet: string) =>
  status.replicaSets.find((one) => one.replicaSet === replicaSet)

export const suite = (
  name: string,
  layer: Layer.Layer<EventStore | Projections | Stores, unknown>,
  { time }: Options
) =>
  it.layer(layer, { excludeTestServices: time.excludeTestServices })(`Projections (${name})`, (it) => {
    it.effect("lists workers, generations, and the ranges that they own", () =>
      Effect.gen(function*() {
        const [replicaSet, projection, other] = [
          yield* unique("replica-set"),
          yield* unique("projection"),
          yield* unique("projection")
        ]
        assert.isUndefined(ofReplicaSet(yield* read, replicaSet))
        const [a, b] = [yield* join(replicaSet, "a", [projection]), yield* join(replicaSet, "b", [projection])]
        const before = ofReplicaSet(yield* read, replicaSet)!
        assert.deepStrictEqual(before.projections, [])
        assert.isUndefined(before.generation)
        assert.deepStrictEqual(before.workers.map(({ state, workerId }) => [workerId, state]), [
          ["a", "pending"],
          ["b", "pending"]
        ])

        const generation = {
          replicaSet,
          generationId: 1n,
          members: [a, b].map((one) => ({ ...one, projections: [projection] }))
        }
        yield* claim(a, projection, {}, 0n)
        yield* claim(b, projection, {}, 0n)
        yield* (yield* Membership).heartbeat(a, Worker.display(a, "running", generation))
        const after = ofReplicaSet(yield* read, replicaSet)!
        assert.strictEqual(after.generation?.partitions, 2)
        assert.instanceOf(after.generation?.formedAt, Date)
        const [first, second] = after.workers
        assert.deepInclude(first, {
          workerId: "a",
          incarnation: a.incarnation,
          state: "running",
          generationId: 1n,
          partition: 0
        })
        assert.deepInclude(first, { projections: [projection], startedAt: a.startedAt })
        assert.isBelow(Duration.toMillis(first!.silentFor), 60_000)
        assert.notStrictEqual(first!.isPresent, false)
        assert.isNumber(first!.pid)
        assert.deepInclude(second, { workerId: "b", state: "pending" })
        assert.notProperty(second, "generationId")
        assert.notProperty(second, "partition")
        assert.deepStrictEqual(
          after.projections.map(({ filter, projection, ranges }) => [
            projection,
            filter,
            ranges.map((range) => range.owner)
          ]),
          [[projection, EventFilter.canonical({}), ["a", "b"]]]
        )
        assert.isTrue(HashRange.tiles(after.projections[0]!.ranges))
        assert.isFalse(after.projections.some(({ projection }) => projection === other))
      }))

    it.effect("counts the events that a range has not handled, by its filter and its hashes", () =>
      Effect.gen(function*() {
        const [replicaSet, projection, context] = [
          yield* unique("replica-set"),
          yield* unique("projection"),
          yield* unique("context")
        ]
        const start = yield* append(context, ["A"])
        // Also names that JSON has to escape.
        const filter = {
          boundedContexts: [context],
          eventTypes: ["A", "B", "\"\\/\b\f\n\r\t\u0001\u001f\u007f\u0080ü😀[],null"]
        }
        const [a, b] = [yield* join(replicaSet, "a", [projection]), yield* join(replicaSet, "b", [projection])]
        yield* claim(a, projection, filter, start)
        yield* claim(b, projection, filter, start)
        const lags = Effect.map(read, (status) =>
          ofReplicaSet(status, replicaSet)!.projections[0]!.ranges.map(({ lag }) => lag))
        assert.deepStrictEqual(yield* lags, [
          { events: 0n, isEstimate: false },
          { events: 0n, isEstimate: false }
        ])

        const head = yield* append(context, ["A", "C", "B", "C", "A", "B", "A", "A", "B", "B", "A", "C"])
        const status = yield* read
        assert.isTrue(status.head >= head)
        const found = yield* lags
        assert.strictEqual(
          found.reduce((sum, { events }) =>
            sum + events, 0n),
          9n
        )
        for (const { events, oldest } of found) {
          if (events > 0n) assert.isAtMost(oldest!.getTime(), status.at.getTime() + 1000)
          else assert.isUndefined(oldest)
        }
      }))

    it.effect("counts the events of a range by the projection's partition key", () =>
      Effect.gen(function*() {
        const store = yield* EventStore
        for (
          const [partitionBy, keys] of [
            ["aggregateId", 6],
            ["correlationId", 2],
            ["boundedContext", 1],
            [{ metadata: "tenant \"\\ '" }, 2],
            [{ metadata: "absent" }, 6]
          ] as const
        ) {
          const [replicaSet, projection, context] = [
            yield* unique("replica-set"),
            yield* unique("projection"),
            yield* unique("context")
          ]
          const start = yield* append(context, ["A"])
          const workers = yield* Effect.forEach(["a", "b", "c"], (id) => join(replicaSet, id, [projection]))
          const selection = { boundedContexts: [context], partitionBy }
          for (const worker of workers) yield* claim(worker, projection, selection, start)
          let position = start
          for (let index = 0; index < 12; index++) {
            position = (yield* store.append([{
              boundedContext: context,
              aggregateType: "Thing",
              aggregateId: `${context} ${index % 6}`,
              eventType: "A",
              correlationId: `${context} ${index % 2}`,
              metadata: { "tenant \"\\ '": index % 2 },
              payload: {}
            }])).positions[0]!
          }
          while ((yield* store.settledPosition) < position) {
            yield* store.settledBeyond(position - 1n, Duration.millis(50))
          }
          const { ranges } = ofReplicaSet(yield* read, replicaSet)!.projections[0]!
          const expected = yield* Effect.forEach(ranges, ({ end, start: from }) =>
            Effect.map(
              store.read({ after: start, filter: selection, partitionBy, range: { start: from, end }, hashes: true }),
              ({ hashes }) => hashes ?? []
            ))
          assert.strictEqual(new Set(expected.flat()).size, keys)
          assert.deepStrictEqual(
            ranges.map(({ lag }) => lag.events),
            expected.map((hashes) => BigInt(hashes.length))
          )
        }
      }))

    it.effect("a recorded filter that cannot be read counts every event, and hides no other projection", () =>
      Effect.gen(function*() {
        const [replicaSet, context] = [yield* unique("replica-set"), yield* unique("context")]
        const start = yield* append(context, ["A"])
        const texts = [
          "",
          "A",
          "[",
          "[null,null]",
          "[null,null,\"A\"]",
          "[null,null,[\"\\x\"]]",
          "[null,null,[\"a\nb\"]]",
          "{\"a\":1}"
        ]
        const projections = yield* Effect.forEach(texts, () => unique("projection"))
        const a = yield* join(replicaSet, "a", projections)
        const carried = texts.map((filter, index) =>
          Members.carried(projections[index]!, { filter, startPosition: start })
        )
        yield* Members.decide({ registration: a, projections: carried })
        yield* append(context, ["A", "B"])
        const found = ofReplicaSet(yield* read, replicaSet)!.projections
        assert.sameMembers(found.map(({ filter }) => filter), texts)
        for (const { filter, ranges } of found) assert.isTrue(ranges[0]!.lag.events >= 2n, filter)
      }))

    it.effect("reports a halted range with its event, and as a problem", () =>
      Effect.gen(function*() {
        const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
        const a = yield* join(replicaSet, "a", [projection])
        const [held] = yield* claim(a, projection, {}, 0n)
        yield* (yield* CheckpointStore).halt(held as Held, {
          at: 0n,
          error: "Broken",
          position: 7n,
          eventId: "e7",
          key: "x"
        })
        const status = yield* read
        const [range] = ofReplicaSet(status, replicaSet)!.projections[0]!.ranges
        assert.deepInclude(range!.halt, { error: "Broken", position: 7n, eventId: "e7" })
        assert.instanceOf(range!.halt?.since, Date)
        assert.deepStrictEqual(
          Status.problems(status).filter((one) => one.replicaSet === replicaSet),
          [{ problem: "halted", replicaSet, projection, range: range! }]
        )
      }))

    it.effect("shows when a row was last changed", () =>
      Effect.gen(function*() {
        const [replicaSet, projection] = [yield* unique("replica-set"), yield* unique("projection")]
        const a = yield* join(replicaSet, "a", [projection])
        const [held] = yield* claim(a, projection, {}, 0n)
        const unchangedFor = Effect.map(read, (status) => {
          const [range] = ofReplicaSet(status, replicaSet)!.projections[0]!.ranges
          return { changedAt: range!.changedAt.getTime(), millis: status.at.getTime() - range!.changedAt.getTime() }
        })
        yield* time.advance(100)
        const idle = yield* unchangedFor
        assert.isAtLeast(idle.millis, 99)
        const { advance, halt } = yield* CheckpointStore
        yield* advance(held as Held, { from: 0n, to: 1n })
        const advanced = yield* unchangedFor
        assert.isAtLeast(advanced.changedAt, idle.changedAt + 99)
        yield* time.advance(100)
        yield* halt(held as Held, { at: 1n, error: "Broken", position: 2n, eventId: "e2" })
        assert.isAtLeast((yield* unchangedFor).changedAt, advanced.changedAt + 99)
      }))

    it.effect("a range of a worker that has left or died has no owner", () =>
      Effect.gen(function*() {
        const [replicaSet, one, two] = [
          yield* unique("replica-set"),
          yield* unique("projection"),
          yield* unique("projection")
        ]
        const unowned = Effect.map(read, (status) =>
          Status.problems(status).flatMap(({ problem, projection, ...rest }) =>
            rest.replicaSet === replicaSet && problem === "no owner" ? [projection] : []
          ))
        const a = yield* join(replicaSet, "a", [one])
        yield* claim(a, one, {}, 0n)
        const scope = yield* Scope.make()
        const b = yield* join(replicaSet, "b", [two]).pipe(Scope.provide(scope))
        yield* claim(b, two, {}, 0n)
        assert.deepStrictEqual(yield* unowned, [])
        yield* claim(a, one, {}, 0n, true)
        assert.deepStrictEqual(yield* unowned, [one])
        assert.deepStrictEqual(
          ofReplicaSet(yield* read, replicaSet)!.workers.map(({ workerId }) =>
            workerId
          ),
          ["b"]
        )
        yield* Scope.close(scope, Exit.void)
      }))

    it.effect("has a JSON form that keeps every value", () =>
      Effect.gen(function*() {
        const status = yield* read
        const json = Schema.toCodecJson(Status.Status)
        const text = JSON.stringify(yield* Schema.encodeEffect(json)(status))
        assert.deepStrictEqual(yield* Schema.decodeUnknownEffect(json)(JSON.parse(text)), status)
      }))

    // Last, because the events that it appends are in the window of every earlier position.
    it.effect("the last event of a window without a match limits how old the next match can be", () =>
      Effect.gen(function*() {
        const [replicaSet, projection, context] = [
          yield* unique("replica-set"),
          yield* unique("projection"),
          yield* unique("context")
        ]
        const events = yield* EventStore
        const start = yield* append(context, ["A"])
        const a = yield* join(replicaSet, "a", [projection])
        yield* claim(a, projection, { eventTypes: [`only in ${context}`] }, start)
        const lag = Effect.map(read, (status) => ofReplicaSet(status, replicaSet)!.projections[0]!.ranges[0]!.lag)
        const { positions } = yield* events.append(Array.from({ length: LagWindow.largest }, () => (
          { boundedContext: context, aggregateType: "Thing", aggregateId: "many", eventType: "A", payload: {} }
        )))
        assert.deepStrictEqual(yield* lag, { events: 0n, isEstimate: true }, "no event follows the window")
        yield* time.advance(100)
        yield* append(context, ["B"])
        const last = yield* events.read({ after: positions.at(-1)! - 1n, limit: 1, bytes: 1 })
        assert.deepStrictEqual(yield* lag, { events: 0n, isEstimate: true, oldest: last.events[0]!.createdAt })
        yield* append(context, [`only in ${context}`])
        assert.isDefined((yield* lag).oldest, "the match is beyond the window")
      }))
  })
