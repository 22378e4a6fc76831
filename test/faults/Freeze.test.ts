/**
 * Workers that are frozen while the others continue, and are then resumed.
 *
 * @module-tag long
 */
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as Proxy from "../support/Proxy.ts"
import * as Harness from "./Harness.ts"
import { test } from "./Live.ts"

test("a frozen worker is replaced; when resumed, it commits nothing and registers again", function*({ harness }) {
  const stopLoad = yield* harness.load({ perSecond: 600 })
  const a = yield* harness.start("a", { delayMillis: 1 })
  const b = yield* harness.start("b", { delayMillis: 1 })
  const shared = yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
  const old = Harness.registered(shared.state, "b")!

  yield* b.freeze
  const replaced = yield* harness.waitUntil("a holds every range", Harness.sharedBy(["a"]))
  assert.strictEqual(replaced.state.workers.find(({ workerId }) => workerId === "b")?.state, "stopped")
  // Its session still holds the presence lock, so only missing heartbeats reveal the freeze.
  assert.isAbove(replaced.millis, Harness.defaultSettings.staleWorkerTimeout / 2)

  yield* b.wake
  const back = yield* harness.waitUntil("a and b share the work again", Harness.sharedBy(["a", "b"]))
  assert.isTrue(Harness.registered(back.state, "b")!.incarnation > old.incarnation)
  assert.include(b.output(), "It registers again")
  assert.include(a.output(), "Worker lost, reconfiguring...")
  assert.notInclude(a.output(), "Worker left")

  yield* stopLoad
  yield* harness.quiesce()
  assert.deepStrictEqual(yield* b.stop, { code: 0, signal: null })
  assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null })
})

test(
  "a frozen worker whose id a successor has taken ends with WorkerReplaced when it is resumed",
  function*({ harness }) {
    const stopLoad = yield* harness.load({ perSecond: 400 })
    const first = yield* harness.start("first", { workerId: "pod-0", delayMillis: 1, mayEnd: true })
    const before = yield* harness.waitUntil("the first works", Harness.sharedBy(["pod-0"]))
    const old = Harness.registered(before.state, "pod-0")!
    yield* first.freeze

    // Like a container that is restarted under the same name while the session of the old process still exists. It
    // waits until the earlier registration is stale, unless starting took longer than that.
    yield* harness.start("second", { workerId: "pod-0" })
    const after = yield* harness.waitUntil(
      "the second works",
      (state) => Harness.sharedBy(["pod-0"])(state) && Harness.registered(state, "pod-0")!.incarnation > old.incarnation
    )
    assert.isTrue(Harness.newest(after.state)!.generationId > Harness.newest(before.state)!.generationId)

    yield* first.wake
    assert.deepStrictEqual(yield* first.ended, { code: 1, signal: null })
    assert.include(first.output(), "Another process has registered as worker \"pod-0\"")
    assert.notInclude(first.output(), "maxConnections")

    yield* stopLoad
    const end = yield* harness.quiesce()
    assert.isTrue(Harness.sharedBy(["pod-0"])(end))
    assert.strictEqual(Harness.newest(end)!.generationId, Harness.newest(after.state)!.generationId)
  }
)

/** A proxy in front of the test's database, and the URL through it. */
const proxied = Effect.gen(function*() {
  const { url: direct } = yield* PostgresTest.TestDatabase
  const url = new URL(direct)
  const proxy = yield* Proxy.make({ host: url.hostname, port: Number(url.port) })
  url.hostname = "127.0.0.1"
  url.port = String(proxy.port)
  return { direct, proxy, url: url.href }
})

test(
  "a process that is stopped while a batch begins reports neither its pool nor the database",
  function*({ harness }) {
    const { direct, proxy, url } = yield* proxied
    // Only its batches go through the proxy. Without prepared statements, every BEGIN is readable there.
    const worker = yield* harness.start("a", { url, directUrl: direct, prepare: false })
    yield* harness.waitUntil("a works", Harness.sharedBy(["a"]))
    const begin = yield* Effect.forkChild(proxy.hold("BEGIN"), { startImmediately: true })
    yield* harness.append(1)
    const pass = yield* Fiber.join(begin)
    const stoppedAt = worker.output().length
    yield* worker.freeze
    // The server answers while the process cannot read, for longer than a batch may take to begin.
    yield* pass
    yield* Effect.sleep("7 seconds")
    yield* worker.wake
    yield* harness.waitForOutput(worker, "the worker resumes its projections")
    yield* harness.quiesce()
    const problems = worker.output().slice(stoppedAt).split("\n").filter((line) => /\b(WARN|ERROR)\b/.test(line))
    assert.isAtLeast(problems.length, 1)
    for (const line of problems) assert.include(line, "The worker could not renew its heartbeat in time")
    assert.deepStrictEqual(yield* worker.stop, { code: 0, signal: null })
  }
)
