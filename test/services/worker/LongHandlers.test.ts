import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { ParkedEvents } from "../../../src/services/ParkedEvents.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as Workers from "../Workers.ts"
import { event, pass } from "../World.ts"

/** Less time passes in one step than a worker without heartbeats may be silent. */
const wait = (millis: number) => pass(millis, 500)

type Reports = ReadonlyArray<{ readonly projection: string; readonly position: bigint; readonly events: number }>

const summary = (reports: Reports) => reports.map(({ events, position, projection }) => [projection, position, events])

Workers.test("reports a call of 30 seconds once, and again when its time has doubled", function*(world) {
  const gate = yield* Workers.makeGate
  const worker = yield* world.start({ projections: [world.counting({ before: () => gate.wait })] })
  const reports = () => worker.of("HandlerRunsLong")
  const secret = { ...event("slow"), payload: { secret: "payload" } }
  yield* world.events.append([secret])
  yield* gate.reached
  yield* wait(29_000)
  assert.deepStrictEqual(reports(), [])
  yield* wait(5_000)
  assert.deepStrictEqual(summary(reports()), [["counts", 1n, 1]])
  const line = worker.said("Warn").find((line) => line.includes("has run for"))
  assert.match(
    line ?? "",
    /^The handler of projection "counts" in range .* has run for 3\d seconds, since .*Z\. It was called with event .* at position 1, type \w+\./
  )
  assert.notInclude(line!, "payload")
  yield* wait(20_000)
  assert.lengthOf(reports(), 1)
  yield* wait(20_000)
  assert.lengthOf(reports(), 2)
  yield* gate.open
  yield* world.events.append([event("quick")])
  yield* wait(40_000)
  assert.lengthOf(reports(), 2)
})

Workers.test("does not report calls that take 30 seconds only together", function*(world) {
  const worker = yield* world.start({ projections: [world.counting({ before: () => Effect.sleep("5 seconds") })] })
  yield* world.appendAll
  yield* wait(100_000)
  assert.deepStrictEqual(yield* world.counts(), Workers.times(1))
  assert.deepStrictEqual(worker.of("HandlerRunsLong"), [])
})

Workers.test("reports a call of handleBatch with its first event", function*(world) {
  yield* world.appendAll
  const gate = yield* Workers.makeGate
  const batches = Projection.make("batches", { boundedContexts: ["app"], handleBatch: () => gate.wait })
  const worker = yield* world.start({ projections: [batches] })
  yield* gate.reached
  yield* wait(35_000)
  assert.deepStrictEqual(summary(worker.of("HandlerRunsLong")), [["batches", 1n, Workers.aggregates.length]])
  assert.include(worker.said("Warn").join(), `called with ${Workers.aggregates.length} events, the first of them`)
  yield* gate.open
})

Workers.test("reports a handler that runs outside of a transaction", function*(world) {
  const gate = yield* Workers.makeGate
  const calls = Projection.make("calls", {
    boundedContexts: ["app"],
    delivery: "at-least-once",
    handle: () => gate.wait
  })
  const worker = yield* world.start({ projections: [calls] })
  yield* world.events.append([event("slow")])
  yield* gate.reached
  yield* wait(35_000)
  assert.deepStrictEqual(summary(worker.of("HandlerRunsLong")), [["calls", 1n, 1]])
  yield* gate.open
})

Workers.test("reports the retry of a parked event", function*(world) {
  const gate = yield* Workers.makeGate
  let isBroken = true
  const worker = yield* world.start({
    projections: [world.counting({
      onFailure: "park",
      before: () => Effect.suspend((): Effect.Effect<unknown, unknown> => isBroken ? Workers.fail() : gate.wait)
    })]
  })
  yield* world.events.append([event("slow")])
  yield* wait(5_000)
  assert.lengthOf(worker.of("EventParked"), 1)
  isBroken = false
  yield* Effect.provideContext(
    Effect.flatMap(ParkedEvents, (parked) => parked.request("counts", { request: "retry", selection: "all" })),
    worker.stores
  )
  yield* gate.reached
  yield* wait(35_000)
  assert.deepStrictEqual(summary(worker.of("HandlerRunsLong")), [["counts", 1n, 1]])
  yield* gate.open
})
