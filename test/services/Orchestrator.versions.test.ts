/** Workers whose event sets declare different versions, as in a rolling deployment. */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as MemoryWorld from "../../src/layers/memory/MemoryWorld.ts"
import type { Event } from "../../src/schema/Event.ts"
import * as EventSet from "../../src/services/EventSet.ts"
import { assertFailed, lower, makeGate, test, times, upper } from "./Workers.ts"
import { event, pass } from "./World.ts"

const payload = Schema.Unknown
const Old = EventSet.make({ UserCreated: payload })
const New = EventSet.make({ UserCreated: { version: 2, payload, upcast: { 1: (old) => old } } })
const decoding = (set: EventSet.Any) => ({
  before: (stored: Event) => EventSet.decode(set, stored) as Effect.Effect<unknown, unknown>
})

const newer = (aggregateId: string) => event(aggregateId, { eventVersion: 2 })

for (const order of ["before", "after"] as const) {
  test(
    `a worker gives up a projection at an event of a newer version, which a worker that registered ${order} it handles`,
    function*({ appendAll, counting, counts, events, start, world }) {
      const startOld = start({
        projections: [counting(decoding(Old)), counting({ name: "others" })],
        workerId: "old"
      })
      const startYoung = start({
        projections: [counting(decoding(New)), counting({ name: "others" })],
        workerId: "young"
      })
      const [first, second] = order === "after" ? [startOld, startYoung] : [startYoung, startOld]
      const one = yield* first
      yield* pass(500)
      const other = yield* second
      yield* pass(2_000)
      const [old, young] = order === "after" ? [one, other] : [other, one]
      yield* appendAll
      yield* pass(500)
      assert.deepStrictEqual(old.of("ProjectionGivenUp"), [])
      for (const id of [upper, lower]) yield* events.append([event(id), newer(id), event(id)])
      yield* pass(5_000, 100)
      const expected = { ...times(1), [upper]: 4, [lower]: 4 }
      assert.deepStrictEqual(yield* counts(), expected)
      assert.deepStrictEqual(yield* counts("others"), expected)
      const rows = MemoryWorld.committedRows(world, "counts")
      assert.isTrue(rows.every(({ fence, halt }) => fence?.workerId === "young" && halt === undefined))
      assert.isTrue(MemoryWorld.committedRows(world, "others").some(({ fence }) => fence?.workerId === "old"))
      const warnings = old.said("Warn")
      assert.strictEqual(warnings.length, 1)
      for (
        const part of [
          "(type \"UserCreated\", event version 2) is newer than version 1, the newest one in the event set of projection \"counts\" in this worker.",
          "continues with its other projections: others."
        ]
      ) assert.include(warnings[0], part)
      assert.deepStrictEqual(old.said("Error"), [])
      assert.deepStrictEqual(young.of("ProjectionGivenUp"), [])
      assert.isFalse(old.hasEnded() || young.hasEnded())
    }
  )
}

test(
  "events of a newer version wait without a halt until a worker that declares it starts",
  function*({ counting, counts, events, start, world }) {
    const old = yield* start({ projections: [counting(decoding(Old))], workerId: "old" })
    yield* events.append([event(upper), newer(upper), event(upper)])
    yield* pass(5_000, 100)
    // What precedes is committed.
    assert.deepStrictEqual(yield* counts(), { [upper]: 1 })
    const rows = () => MemoryWorld.committedRows(world, "counts")
    assert.isTrue(rows().every(({ fence, halt }) => fence === undefined && halt === undefined))
    assert.deepStrictEqual(old.of("RangeHalted"), [])
    // A restart of the old version changes nothing.
    yield* old.stop
    const again = yield* start({ projections: [counting(decoding(Old))], workerId: "old" })
    yield* pass(5_000, 100)
    assert.strictEqual(again.of("ProjectionGivenUp").length, 1)
    assert.deepStrictEqual(yield* counts(), { [upper]: 1 })
    yield* start({ projections: [counting(decoding(New))], workerId: "young" })
    yield* pass(2_000)
    assert.deepStrictEqual(yield* counts(), { [upper]: 3 })
    assert.isTrue(rows().every(({ fence }) => fence?.workerId === "young"))
  }
)

test("catchUp fails at an event of a newer version", function*({ counting, events, start, world }) {
  yield* events.append([newer(upper)])
  const worker = yield* start({ projections: [counting(decoding(Old))], how: "catchUp" })
  yield* pass(5_000, 100)
  assertFailed(worker, "EventVersionTooNew", ["\"counts\"", "event version 2", "Run the newer version here, too."])
  assert.isTrue(MemoryWorld.committedRows(world, "counts").every(({ halt }) => halt === undefined))
})

test("catchUp returns although a later event is of a newer version", function*({ counting, counts, events, start }) {
  const gate = yield* makeGate
  yield* events.append([event(upper)])
  const before = (stored: Event) =>
    Effect.andThen(stored.globalPosition === 1n ? gate.wait : Effect.void, decoding(Old).before(stored))
  const worker = yield* start({ projections: [counting({ before })], how: "catchUp" })
  yield* gate.reached
  yield* events.append([newer(upper)])
  yield* gate.open
  yield* pass(5_000, 100)
  assert.isTrue(worker.hasSucceeded())
  assert.strictEqual(worker.of("ProjectionGivenUp").length, 1)
  assert.deepStrictEqual(yield* counts(), { [upper]: 1 })
})
