import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as TxRef from "effect/TxRef"
import * as Projection from "../../src/services/Projection.ts"
import { assertFailed, failingHeartbeats, makeGate, test, times, upper } from "./Workers.ts"
import { event, pass } from "./World.ts"

test("a worker waits for a stale registration under its id and replaces it", function*({ appendAll, counts, start }) {
  const settings = { workerId: "pod-0" }
  const failing = { now: true }
  const frozen = yield* start({ ...settings, membership: failingHeartbeats(failing) })
  yield* pass(500)
  const successor = yield* start(settings)
  yield* pass(25_000, 500)
  assert.isFalse(successor.hasEnded())
  assert.deepStrictEqual(successor.of("WorkerRegistered"), [])
  yield* pass(10_000, 500)
  assert.isFalse(successor.hasEnded())
  assert.strictEqual(successor.of("WorkerRegistered").length, 1)
  failing.now = false
  yield* pass(2_000)
  assertFailed(frozen, "WorkerReplaced")
  yield* appendAll
  yield* pass(500)
  assert.deepStrictEqual(yield* counts(), times(1))
})

test(
  "a graceful stop waits for the current batch and commits it",
  function*({ checkpoints, counting, counts, events, start }) {
    const gate = yield* makeGate
    const worker = yield* start({ projections: [counting({ before: () => gate.reach(Effect.sleep("3 seconds")) })] })
    yield* events.append([event("a")])
    yield* events.append([event("b")])
    yield* gate.reached
    yield* worker.stop
    yield* pass(2_500)
    assert.isFalse(worker.hasEnded())
    yield* pass(1_000)
    assert.isTrue(worker.hasEnded())
    assert.strictEqual(yield* events.headPosition, 2n)
    assert.deepStrictEqual(yield* counts(), { a: 1 })
    const [row] = yield* checkpoints.rows("counts")
    assert.deepStrictEqual([row!.fence, row!.position], [undefined, 1n])
    const left = ["BatchCommitted", "RangeStopped", "WorkerLeaving", "WorkerLeft", "WorkerStopped"]
    assert.deepStrictEqual(worker.tags().slice(-5), left)
  }
)

test(
  "a batch that takes longer than drainTimeout is interrupted and rolled back",
  function*({ checkpoints, events, start }) {
    const gate = yield* makeGate
    const written = yield* TxRef.make(0)
    let interrupted = false
    const projection = Projection.make("counts", {
      handle: () =>
        TxRef.update(written, (count) => count + 1).pipe(
          Effect.andThen(gate.reach(Effect.never)),
          Effect.onInterrupt(() =>
            Effect.sync(() => {
              interrupted = true
            })
          )
        )
    })
    const worker = yield* start({ projections: [projection], drainTimeout: "2 seconds" })
    yield* events.append([event("a")])
    yield* gate.reached
    yield* worker.stop
    yield* pass(1_900)
    assert.isFalse(interrupted)
    yield* pass(300)
    assert.isTrue(interrupted)
    assert.isTrue(worker.hasEnded())
    assert.strictEqual(yield* TxRef.get(written), 0)
    const [row] = yield* checkpoints.rows("counts")
    assert.deepStrictEqual([row!.fence, row!.position], [undefined, 0n])
  }
)

test(
  "a worker whose handler does not stop fails; others claim its ranges",
  function*({ counting, counts, events, start }) {
    const gate = yield* makeGate
    const stuck = yield* start({
      projections: [counting({ before: () => Effect.uninterruptible(gate.wait) })],
      coordinationTimeout: "20 seconds"
    })
    yield* events.append([event(upper)])
    yield* gate.reached
    const other = yield* start({ coordinationTimeout: "20 seconds" })
    yield* pass(19_000, 250)
    assert.isFalse(stuck.hasEnded())
    assert.deepStrictEqual(yield* counts(), {})
    // coordinationTimeout, plus the time a handler has to stop: drainTimeout and a grace of five seconds.
    yield* pass(20_000, 250)
    assert.isTrue(stuck.hasEnded(), "the stuck worker has not ended")
    assertFailed(stuck, "CoordinationTimeout", ["the handler of counts does not stop"])
    assert.isFalse(other.hasEnded(), "the worker waiting for it must keep running")
    yield* pass(1_000)
    assert.deepStrictEqual(yield* counts(), { [upper]: 1 })
    // The stuck handler's late writes do not commit.
    yield* gate.open
    yield* pass(1_000)
    assert.deepStrictEqual(yield* counts(), { [upper]: 1 })
  }
)

test("an evicted worker stops its projections, registers again and continues", function*({ appendAll, counts, start }) {
  const failing = { now: false }
  const silent = yield* start({ membership: failingHeartbeats(failing) })
  const other = yield* start()
  yield* pass(500)
  yield* appendAll
  yield* pass(500)
  failing.now = true
  yield* pass(45_000, 500)
  assert.strictEqual(silent.of("Suspended").length, 1)
  assert.strictEqual(other.of("GenerationChanged").at(-1)?.generation.members.length, 1)
  yield* appendAll
  yield* pass(1_000)
  assert.deepStrictEqual(yield* counts(), times(2), "the other worker owns all ranges")
  failing.now = false
  yield* pass(5_000, 250)
  assert.deepStrictEqual(
    silent.tags().filter((tag) => tag === "WorkerEvicted" || tag === "WorkerRegistered"),
    ["WorkerRegistered", "WorkerEvicted", "WorkerRegistered"]
  )
  const [before, after] = silent.of("WorkerRegistered").map(({ registration }) => registration)
  assert.strictEqual(after?.workerId, before?.workerId)
  assert.isTrue(after!.incarnation > before!.incarnation)
  assert.isTrue(silent.said("Warn").some((text) => text.includes("registers again")))
  assert.deepStrictEqual(silent.said("Info").filter((text) => text.startsWith("Unregistering")), [])
  yield* appendAll
  yield* pass(1_000)
  assert.deepStrictEqual(yield* counts(), times(3))
  assert.isTrue((silent.of("BatchCommitted").at(-1)?.position ?? 0n) > 32n)
})

test("a worker replaced under its id fails and does not register again", function*({ appendAll, counts, start }) {
  const failing = { now: false }
  const settings = { workerId: "pod-0" }
  const old = yield* start({ ...settings, membership: failingHeartbeats(failing) })
  yield* appendAll
  yield* pass(500)
  failing.now = true
  yield* pass(31_000, 500)
  const successor = yield* start(settings)
  yield* appendAll
  yield* pass(500)
  assert.isFalse(successor.hasEnded())
  failing.now = false
  yield* pass(5_000, 250)
  assertFailed(old, "WorkerReplaced", ["\"pod-0\"", "\"main\"", "different ids"])
  yield* appendAll
  yield* pass(500)
  assert.deepStrictEqual(yield* counts(), times(3))
  assert.isFalse(successor.hasEnded())
})

test(
  "a worker suspends its projections before its unrenewed heartbeat is stale, and resumes once renewed",
  function*({ appendAll, counts, start }) {
    const failing = { now: false }
    const worker = yield* start({ membership: failingHeartbeats(failing) })
    yield* pass(5_500)
    failing.now = true
    // The last heartbeat was at 5 s; 80 % of staleWorkerTimeout (30 s) later is 29 s.
    yield* pass(23_000, 500)
    yield* appendAll
    yield* pass(400)
    assert.strictEqual(worker.of("Suspended").length, 0)
    assert.deepStrictEqual(yield* counts(), times(1))
    yield* pass(2_000)
    assert.strictEqual(worker.of("Suspended").length, 1)
    assert.strictEqual(worker.of("RangeStopped").length, 1)
    yield* appendAll
    yield* pass(500)
    assert.deepStrictEqual(yield* counts(), times(1), "no event is handled while suspended")
    failing.now = false
    yield* pass(2_000)
    assert.strictEqual(worker.of("Resumed").length, 1)
    assert.deepStrictEqual(yield* counts(), times(2))
    assert.strictEqual(worker.of("WorkerEvicted").length, 0)
  }
)

test(
  "a dead process's ranges are claimed without waiting for the heartbeat timeout",
  function*({ appendAll, counts, start }) {
    const first = yield* start()
    const second = yield* start()
    yield* pass(500)
    yield* second.handle.cut
    yield* appendAll
    yield* pass(500)
    assert.deepStrictEqual(yield* counts(), times(1))
    assert.strictEqual(first.of("GenerationChanged").at(-1)?.generation.members.length, 1)
    yield* second.stopCut
  }
)
