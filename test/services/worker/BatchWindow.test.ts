import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as TxRef from "effect/TxRef"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as BatchWindow from "../../../src/schema/BatchWindow.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as StoreErrors from "../../support/StoreErrors.ts"
import { Broken, enter, event, pass, restorePoint, runner, type RunnerOptions } from "../World.ts"
import { ids } from "./Failures.ts"

/** A worker whose batch handler records its calls. */
const waiting = Effect.fnUntraced(function*(
  batchWindow: Projection.BatchWindow,
  options: RunnerOptions = {},
  { fails = () => false, onFailure = "halt" }: {
    readonly onFailure?: "halt" | "park"
    readonly fails?: (aggregateId: string) => boolean
  } = {}
) {
  const calls: Array<ReadonlyArray<string>> = []
  const world = yield* MemoryStores.makeWorld
  const worker = yield* runner(
    world,
    Projection.make("users", {
      aggregateTypes: ["User"],
      batchWindow,
      onFailure,
      handleBatch: (events) =>
        Effect.suspend(() => {
          const called = events.map(({ aggregateId }) => aggregateId)
          calls.push(called)
          return called.some(fails) ? Effect.fail(new Broken({ message: "broken" })) : Effect.void
        })
    }),
    options
  )
  const append = (ids: ReadonlyArray<string>, rest: Parameters<typeof event>[1] = {}) =>
    Effect.forEach(ids, (id) => worker.events.append([event(id, rest)]))
  return { ...worker, world, calls, append }
})

describe("a batch window", () => {
  it.effect("lets events wait for more until its time has passed since the first", () =>
    Effect.gen(function*() {
      const worker = yield* waiting({ time: "1 second" })
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(500)
      for (const id of ["a", "b", "c"]) {
        yield* worker.append([id])
        yield* pass(250)
      }
      assert.isEmpty(worker.calls)
      yield* worker.append(["d"], { aggregateType: "Other" })
      yield* pass(300)
      assert.deepStrictEqual(worker.calls, [["a", "b", "c"]])
      assert.strictEqual((yield* worker.row).position, 4n)
      yield* worker.append(["e"])
      yield* pass(900)
      assert.lengthOf(worker.calls, 1, "each wait lasts its own time")
      yield* pass(200)
      assert.deepStrictEqual(worker.calls, [["a", "b", "c"], ["e"]])
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))

  it.effect("ends at its number of events, which no batch exceeds while they wait", () =>
    Effect.gen(function*() {
      const worker = yield* waiting({ time: "1 hour", events: 3 })
      const fiber = yield* Effect.forkChild(worker.run)
      yield* worker.append(["a"])
      yield* pass(5_000, 1_000)
      yield* worker.append(["b", "c", "d"])
      yield* pass(1_000)
      assert.deepStrictEqual(worker.calls, [["a", "b", "c"]])
      yield* worker.append(["e", "f"])
      yield* pass(1_000)
      assert.deepStrictEqual(worker.calls, [["a", "b", "c"], ["d", "e", "f"]])
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))

  it.effect("ends at its number of bytes", () =>
    Effect.gen(function*() {
      const worker = yield* waiting({ time: "1 hour", bytes: 100 })
      const fiber = yield* Effect.forkChild(worker.run)
      // The payload of each event has 42 bytes.
      yield* worker.append(["a"])
      yield* pass(2_000)
      yield* worker.append(["b"])
      yield* pass(2_000)
      assert.isEmpty(worker.calls)
      yield* worker.append(["c"])
      yield* pass(2_000)
      assert.deepStrictEqual(worker.calls.map(({ length }) => length >= 2), [true])
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))

  it.effect("ends when the next event would make the batch larger than `batchBytes`", () =>
    Effect.gen(function*() {
      const worker = yield* waiting({ time: "1 hour" }, { settings: { batchBytes: 1_000 } })
      const fiber = yield* Effect.forkChild(worker.run)
      yield* worker.append(["a"], { payload: "x".repeat(500) })
      yield* pass(1_000)
      yield* worker.append(["b"], { payload: "x".repeat(50_000) })
      yield* pass(1_000)
      // Without `bytes`, the sizes of events are unknown until they are read, at the end of the window.
      yield* pass(3_600_000, 60_000)
      assert.deepStrictEqual(worker.calls, [["a"], ["b"]])
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))

  it.effect("does not delay requests about parked events", () =>
    Effect.gen(function*() {
      let isBroken = true
      const worker = yield* waiting({ time: "1 hour", events: 2 }, {}, {
        onFailure: "park",
        fails: (id) => isBroken && id === "a"
      })
      const fiber = yield* Effect.forkChild(worker.run)
      yield* worker.append(["a", "b"])
      yield* pass(2_000)
      assert.lengthOf(yield* worker.parkedEvents.list("users"), 1)
      isBroken = false
      worker.calls.length = 0
      yield* worker.append(["c"])
      yield* pass(2_000)
      yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
      yield* pass(2_000)
      assert.isEmpty(yield* worker.parkedEvents.list("users"))
      assert.deepStrictEqual(worker.calls, [["a"]], "the newest event waits on")
      yield* worker.append(["d"])
      yield* pass(2_000)
      assert.deepStrictEqual(worker.calls, [["a"], ["c", "d"]])
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))

  it.effect("does not delay a backlog", () =>
    Effect.gen(function*() {
      const worker = yield* waiting({ time: "1 hour" }, { settings: { batchSize: 10 } })
      yield* worker.append(ids(25))
      const fiber = yield* Effect.forkChild(worker.run)
      yield* pass(500)
      assert.deepStrictEqual(worker.calls.flat(), ids(20), "only the newest events wait")
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))

  it.effect("ends at once when the range is released, and the next owner handles the events", () =>
    Effect.gen(function*() {
      const worker = yield* waiting({ time: "1 hour" })
      const fiber = yield* Effect.forkChild(worker.run)
      yield* worker.append(["a"])
      yield* pass(2_000)
      yield* worker.draining.open
      yield* pass(1)
      assert.strictEqual(yield* Fiber.join(fiber), "drained")
      assert.isEmpty(worker.calls)
      assert.strictEqual((yield* worker.row).position, 0n)
    }))

  it.effect.each(["read", "settledBeyond"] as const)(
    "ends when %s fails, and its events are handled first",
    (operation) =>
      Effect.gen(function*() {
        let fails = false
        let failures = 0
        const fail = Effect.suspend(() => {
          failures++
          return Effect.fail(StoreErrors.unavailable("connection lost"))
        })
        const worker = yield* waiting({ time: "1 hour", events: 3 }, {
          events: (real) => ({
            read: (options) => operation === "read" && fails && options.after > 0n ? fail : real.read(options),
            // A reader that waits when the connection is lost receives the failure at once.
            settledBeyond: (...args) =>
              Effect.raceFirst(
                real.settledBeyond(...args),
                operation === "read" ? Effect.never : Effect.sleep("1 second").pipe(
                  Effect.repeat({ until: () => fails }),
                  Effect.andThen(fail)
                )
              )
          })
        })
        const fiber = yield* Effect.forkChild(worker.run)
        yield* worker.append(["a"])
        yield* pass(2_000)
        fails = true
        if (operation === "read") yield* worker.append(["b", "c", "d"])
        yield* pass(2_000)
        assert.deepStrictEqual(worker.calls, [["a"]])
        assert.isBelow(failures, 20)
        fails = false
        if (operation === "settledBeyond") yield* worker.append(["b", "c", "d"])
        yield* pass(10_000, 500)
        assert.deepStrictEqual(worker.calls, [["a"], ["b", "c", "d"]])
        assert.strictEqual(yield* worker.drain(fiber), "drained")
      })
  )

  it.effect("discards events that were read in an earlier server epoch", () =>
    Effect.gen(function*() {
      const worker = yield* waiting({ time: "1 hour", events: 3 })
      const fiber = yield* Effect.forkChild(worker.run)
      const restore = restorePoint(worker.world)
      yield* worker.append(["lost"])
      yield* pass(2_000)
      yield* restore
      yield* worker.append(["a", "b", "c", "d"])
      yield* pass(20_000, 500)
      assert.notInclude(worker.calls.flat(), "lost")
      assert.deepStrictEqual(worker.calls, [["a", "b", "c", "d"]])
      assert.strictEqual(yield* worker.drain(fiber), "drained")
    }))

  describe("whose page is kept while the server epoch ends", () => {
    /** An event is parked, then one of its key waits, with progress before it that is not written yet. */
    const untilWaiting = Effect.fnUntraced(function*() {
      const state = { isBroken: true }
      const worker = yield* waiting({ time: "5 seconds" }, {}, { onFailure: "park", fails: () => state.isBroken })
      const fiber = yield* Effect.forkChild(worker.run)
      yield* worker.append(["a"])
      yield* pass(7_050)
      // The first progress after an event is written at once.
      yield* worker.append(["passed over"], { aggregateType: "Other" })
      yield* pass(3_000)
      state.isBroken = false
      worker.calls.length = 0
      assert.lengthOf(yield* worker.parkedEvents.list("users"), 1)
      const restore = restorePoint(worker.world)
      yield* worker.append(["passed over"], { aggregateType: "Other" })
      yield* pass(50)
      yield* worker.append(["a"])
      yield* pass(100)
      return { ...worker, fiber, restore }
    })

    it.effect("discards it although a request is executed in the next epoch", () =>
      Effect.gen(function*() {
        const worker = yield* untilWaiting()
        yield* worker.restore
        yield* worker.append(["b", "c"])
        yield* worker.parkedEvents.request("users", { request: "retry", selection: "all" })
        yield* pass(7_000)
        assert.deepStrictEqual(worker.calls, [["a"], ["b", "c"]])
        assert.strictEqual(yield* worker.drain(worker.fiber), "drained")
      }))

    it.effect("discards it, with the parked keys that were read on another server", () =>
      Effect.gen(function*() {
        const worker = yield* untilWaiting()
        const { world } = worker
        // For two seconds, the statements that write reach a server that lacks the parked event.
        const [ref, epoch] = [world.parked.get("users")!, world.epoch]
        const parked = ref.value
        world.epoch = "another"
        yield* Effect.tx(TxRef.set(ref, []))
        yield* pass(2_000)
        world.epoch = epoch
        yield* Effect.tx(TxRef.set(ref, parked))
        yield* pass(20_000)
        assert.isEmpty(worker.calls)
        assert.lengthOf(yield* worker.parkedEvents.list("users"), 2, "the later event queues behind the parked one")
        assert.strictEqual(yield* worker.drain(worker.fiber), "drained")
      }))
  })

  it.effect("does not delay `catchUp`", () =>
    Effect.gen(function*() {
      const { events, stores } = yield* enter(yield* MemoryStores.makeWorld)
      const calls: Array<number> = []
      const projection = Projection.make("users", {
        batchWindow: { time: "1 hour" },
        handleBatch: ({ length }) => Effect.sync(() => calls.push(length))
      })
      yield* Effect.forEach(ids(3), (id) => events.append([event(id)]))
      const orchestrator = yield* Effect.provide(
        Orchestrator.make({ replicaSet: "main", projections: [projection] }),
        stores
      )
      const fiber = yield* Effect.forkChild(orchestrator.catchUp)
      yield* pass(10_000)
      assert.deepStrictEqual(calls, [3])
      assert.isTrue(Exit.isSuccess(fiber.pollUnsafe()!))
    }))
})

it("a window must have a positive time of at most an hour, and whole numbers", () => {
  assert.isUndefined(BatchWindow.problem({ time: "1 second", events: 1, bytes: 1 }))
  assert.isUndefined(BatchWindow.problem({ time: "1 hour" }))
  for (const time of [0, -1, Number.NaN, Infinity, "2 hours"] as const) {
    assert.match(BatchWindow.problem({ time }) ?? "", /a time that is longer than zero/)
  }
  for (const counts of [{ events: 0 }, { events: 1.5 }, { bytes: 0 }, { bytes: Number.NaN }]) {
    assert.match(BatchWindow.problem({ time: "1 second", ...counts }) ?? "", /whole numbers/)
  }
})

it("the room of a page counts the bytes of metadata, not its characters", () => {
  const page = [{ payload: new Uint8Array(10), metadataText: "{\"name\":\"Zoë\"}" }]
  const settings = { batchSize: 10, batchBytes: 100 }
  assert.deepStrictEqual(BatchWindow.room({ time: "1 second" }, settings, page), { limit: 9, bytes: 75 })
})
