import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Stream from "effect/Stream"
import * as TxRef from "effect/TxRef"
import * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import type { Event } from "../../src/schema/Event.ts"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import { assertFailed, lower, test, times } from "./Workers.ts"
import { event, pass } from "./World.ts"

const narrow = { eventTypes: ["UserCreated"] }
const widened = { eventTypes: ["UserCreated", "UserDeleted"], replacesFilter: narrow }

test(
  "a changed filter fails with FilterChanged unless replacesFilter names the recorded one",
  function*({ appendAll, counting, counts, start }) {
    const first = yield* start({ projections: [counting(narrow)], how: "catchUp" })
    yield* pass(500)
    assert.isTrue(first.hasEnded())
    const changed = { eventTypes: ["UserCreated", "UserDeleted"] }
    const refused = yield* start({ projections: [counting(changed)] })
    yield* pass(500)
    assertFailed(refused, "FilterChanged", [
      "\"counts\"",
      "UserDeleted",
      "replacesFilter: { eventTypes: [\"UserCreated\"] }"
    ])
    const accepted = yield* start({ projections: [counting({ ...changed, replacesFilter: [{}, narrow] })] })
    yield* appendAll
    yield* pass(500)
    assert.isFalse(accepted.hasEnded())
    assert.deepStrictEqual(yield* counts(), times(1))
    yield* accepted.stop
    yield* pass(500)
    // Once accepted, the new filter is recorded; the order of its lists does not matter.
    const same = yield* start({ projections: [counting({ eventTypes: ["UserDeleted", "UserCreated"] })] })
    yield* pass(500)
    assert.isFalse(same.hasEnded())
  }
)

test(
  "a worker of the previous version does not claim ranges of the new filter, although both versions replace a filter",
  function*({ counting, counts, events, start }) {
    const replacesFilter = { eventTypes: ["Other"] }
    const old = yield* start({ projections: [counting({ ...narrow, replacesFilter })], workerId: "old" })
    yield* pass(500)
    const young = yield* start({ projections: [counting(widened)], workerId: "young" })
    yield* pass(2_000)
    yield* young.stop
    yield* pass(500)
    // Only the new filter selects this event, and only the worker of the previous version is running.
    yield* events.append([event(lower, { eventType: "UserDeleted" })])
    yield* pass(2_000)
    yield* old.stop
    yield* start({ projections: [counting(widened)], workerId: "next" })
    yield* pass(2_000)
    assert.deepStrictEqual(yield* counts(), { [lower]: 1 })
  }
)

test("a generation that only changes a worker's projections is logged as such", function*({ counting, start }) {
  const old = yield* start({ projections: [counting(narrow)], workerId: "old" })
  yield* pass(500)
  yield* start({ projections: [counting(widened)], workerId: "young" })
  yield* pass(2_000)
  assert.deepStrictEqual(old.said("Info").filter((text) => text.endsWith(", reconfiguring...")), [
    "New worker detected, reconfiguring...",
    "Projections of the replica set changed, reconfiguring..."
  ])
})

test("a worker that was alone does not log that it now processes all events", function*({ counting, start, world }) {
  const projections = [counting(narrow), counting({ name: "others" })]
  const alone = yield* start({ projections })
  yield* pass(500)
  // A newer version has claimed the range and left again before this worker could read that it had joined.
  const row = world.rows.get("counts@0")!
  yield* TxRef.update(row, (row) => row === undefined ? row : { ...row, filter: "changed", fence: undefined })
  yield* pass(10_000, 500)
  const processing = alone.said("Info").filter((text) => text.startsWith("Processing"))
  assert.deepStrictEqual(alone.of("ProjectionGivenUp").map(({ projection }) => projection), ["counts"])
  assert.deepStrictEqual(processing, ["Processing events...", "Processing events..."])
})

test(
  "a running worker gives up only the projection whose filter a newer version changes",
  function*({ appendAll, counting, counts, start, world }) {
    const old = yield* start({
      projections: [counting(narrow), counting({ name: "others" })],
      workerId: "old"
    })
    yield* appendAll
    yield* pass(500)
    const young = yield* start({
      projections: [counting(widened), counting({ name: "others" })],
      workerId: "young"
    })
    yield* pass(2_000)
    yield* appendAll
    yield* pass(2_000)
    assert.isFalse(old.hasEnded())
    assert.isFalse(young.hasEnded())
    assert.deepStrictEqual(yield* counts(), times(2))
    assert.deepStrictEqual(yield* counts("others"), times(2))
    const owners = (name: string) =>
      MemoryWorld.committedRows(world, name).map((row) => [row.fence?.workerId, row.range] as const)
    assert.isTrue(owners("counts").every(([owner]) => owner === "young"))
    assert.deepStrictEqual(owners("others"), [
      ["old", HashRange.partition(0, 2)],
      ["young", HashRange.partition(1, 2)]
    ])
    const warnings = old.said("Warn").filter((text) => text.includes("filter"))
    assert.strictEqual(warnings.length, 1)
    for (
      const part of [
        "\"counts\" from \"eventTypes: UserCreated\", which this worker has, to \"eventTypes: UserCreated, UserDeleted\"",
        "Run the newer version",
        "continues with its other projections: others."
      ]
    ) assert.include(warnings[0], part)
    assert.deepStrictEqual(old.of("ProjectionGivenUp").map(({ projection }) => projection), ["counts"])
    assert.deepStrictEqual(young.of("ProjectionGivenUp"), [])
    const [registered, formed, givenUp] = yield* old.orchestrator.activity.pipe(Stream.take(3), Stream.runCollect)
    assert.deepStrictEqual([registered?._tag, formed?._tag, givenUp?._tag], [
      "WorkerRegistered",
      "GenerationChanged",
      "ProjectionGivenUp"
    ])
    // The worker counts as having reached its assignment and forms no further generation.
    const generations = old.of("GenerationChanged").length
    yield* pass(10_000, 500)
    assert.strictEqual(old.of("GenerationChanged").length, generations)
    // A worker that starts with the old filter cannot determine which of the two filters is intended.
    const late = yield* start({ projections: [counting(narrow)], workerId: "late" })
    yield* pass(500)
    assertFailed(late, "FilterChanged", [
      "has the filter \"eventTypes: UserCreated\", but its progress was made under \"eventTypes: UserCreated, UserDeleted\"",
      "replacesFilter: { eventTypes: [\"UserCreated\", \"UserDeleted\"] }",
      "new name",
      "run that version"
    ])
    yield* old.stop
    yield* pass(500)
    assert.isTrue(owners("others").every(([owner]) => owner === "young"))
  }
)

test(
  "an evicted worker registers again without the projections that it gave up",
  function*({ counting, start, world }) {
    const old = yield* start({
      projections: [counting(narrow), counting({ name: "others" })],
      workerId: "old"
    })
    yield* pass(500)
    yield* start({ projections: [counting(widened)], workerId: "young" })
    yield* pass(1_000)
    assert.strictEqual(old.of("ProjectionGivenUp").length, 1)
    const { incarnation } = old.of("WorkerRegistered")[0]!.registration
    yield* MemoryWorld.changeWorker(world, { replicaSet: "main", workerId: "old", incarnation }, (worker) => ({
      ...worker,
      stoppedAt: 0
    }))
    yield* pass(10_000, 100)
    assert.strictEqual(old.of("WorkerRegistered").length, 2)
    assert.deepStrictEqual(old.of("WorkerRegistered")[1]!.registration.projections, ["others"])
    assert.strictEqual(old.of("ProjectionGivenUp").length, 1)
    assert.isFalse(old.hasEnded())
  }
)

test(
  "a worker that gives up its only projection stays registered until it is stopped",
  function*({ appendAll, counting, counts, start }) {
    const old = yield* start({ projections: [counting(narrow)], workerId: "old" })
    yield* appendAll
    yield* pass(500)
    const young = yield* start({ projections: [counting(widened)], workerId: "young" })
    yield* pass(2_000)
    yield* appendAll
    yield* pass(2_000)
    assert.isFalse(old.hasEnded())
    assert.deepStrictEqual(yield* counts(), times(2))
    assert.include(old.said("Warn").join(), "stays registered without a projection")
    assert.deepStrictEqual(
      young.of("GenerationChanged").at(-1)!.generation.members.map((member) => member.projections),
      [
        [],
        ["counts"]
      ]
    )
    yield* old.stop
    yield* pass(500)
    assert.isTrue(old.hasEnded())
    assert.include(old.said("Info"), "Shutdown complete")
  }
)

test(
  "another partition key fails with PartitionKeyChanged, whatever filter is replaced",
  function*({ appendAll, counting, counts, start }) {
    const first = yield* start({ projections: [counting({ partitionBy: "correlationId" })], how: "catchUp" })
    yield* pass(500)
    assert.isTrue(first.hasSucceeded())
    const refused = yield* start({
      projections: [counting({ partitionBy: { metadata: "a" }, replacesFilter: {} })]
    })
    yield* pass(500)
    assertFailed(refused, "PartitionKeyChanged", ["\"counts\"", "correlationId", "metadata a", "new name"])
    const same = yield* start({ projections: [counting({ partitionBy: "correlationId" })] })
    yield* appendAll
    yield* pass(500)
    assert.isFalse(same.hasEnded())
    assert.deepStrictEqual(yield* counts(), times(1))
  }
)

test(
  "a running worker gives up a projection whose partition key another worker has changed",
  function*({ counting, start, world }) {
    const projections = [counting({ partitionBy: "correlationId" }), counting({ name: "others" })]
    const old = yield* start({ projections })
    yield* pass(500)
    // The progress was deleted and made again by a newer version.
    const filter = EventFilter.canonical({ partitionBy: "boundedContext" })
    const row = world.rows.get("counts@0")!
    yield* TxRef.update(row, (row) => row === undefined ? row : { ...row, filter, fence: undefined })
    yield* pass(10_000, 500)
    assert.isFalse(old.hasEnded())
    assert.deepStrictEqual(old.of("ProjectionGivenUp").map(({ projection, remaining }) => [projection, remaining]), [
      ["counts", ["others"]]
    ])
    assert.include(
      old.said("Warn").join(),
      "has changed the partition key of projection \"counts\" from \"correlationId\""
    )
    const late = yield* start({ projections: [counting({ partitionBy: "correlationId" })], how: "catchUp" })
    yield* pass(500)
    assertFailed(late, "PartitionKeyChanged", ["boundedContext"])
  }
)

test("catchUp fails when a newer version changes the filter first", function*({ appendAll, counting, events, start }) {
  const before = (event: Event) => event.aggregateVersion > 1n ? Effect.never : Effect.void
  yield* appendAll
  yield* events.append([event(lower)])
  const projections = [counting({ ...narrow, before })]
  const old = yield* start({ projections, how: "catchUp", drainTimeout: "1 second" })
  yield* pass(500)
  assert.isFalse(old.hasEnded())
  yield* start({ projections: [counting(widened)] })
  yield* pass(10_000, 100)
  assertFailed(old, "FilterChanged", ["Another worker, probably of a newer version, has changed the filter"])
})
