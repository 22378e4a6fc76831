/** Workers that stand still while the others go on, and then wake. */
import { assert, describe, it } from "@effect/vitest"
import { Effect } from "effect"
import { SqlClient } from "effect/sql"
import * as Harness from "./Harness.ts"

describe("freeze", { concurrent: false }, () => {
  it.live("a frozen worker is replaced; awake, it commits nothing and registers anew", () =>
    Effect.gen(function*() {
      const harness = yield* Harness.Harness
      const stopLoad = yield* harness.load({ perSecond: 600 })
      const a = yield* harness.start("a", { delayMillis: 1 })
      const b = yield* harness.start("b", { delayMillis: 1 })
      const shared = yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
      const old = Harness.registered(shared.state, "b")!

      yield* b.freeze
      const replaced = yield* harness.waitUntil("a has taken all", Harness.sharedBy(["a"]))
      assert.strictEqual(replaced.state.workers.find(({ workerId }) => workerId === "b")?.state, "stopped")
      // Its presence stands, since its session does: only the missing heartbeats tell.
      assert.isAbove(replaced.millis, 500)

      yield* b.wake
      const back = yield* harness.waitUntil("a and b share the work again", Harness.sharedBy(["a", "b"]))
      assert.isTrue(Harness.registered(back.state, "b")!.incarnation > old.incarnation)
      assert.include(b.output(), "it registers anew")

      yield* stopLoad
      yield* harness.quiesce()
      assert.deepStrictEqual(yield* b.stop, { code: 0, signal: null })
      assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null })
    }).pipe(Effect.scoped, Effect.provide(Harness.layer)), Harness.patience)

  it.live("a worker frozen in the middle of a batch's transaction holds nobody up", () =>
    Effect.gen(function*() {
      const harness = yield* Harness.Harness
      const sql = yield* SqlClient.SqlClient
      const b = yield* harness.start("b")
      yield* harness.waitUntil("b works", Harness.sharedBy(["b"]))
      yield* harness.append(300, { hold: { workerId: "b", gate: "of b" } })
      // Both projections, so two transactions of b stand open, each with locks on its read model.
      yield* harness.waitForOutput(b, "holding", 2)
      yield* b.freeze
      const open = yield* sql`
        SELECT pid FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'faults b' AND state = 'idle in transaction'`
      assert.strictEqual(open.length, 2)

      yield* harness.start("a")
      yield* harness.waitUntil("a has taken all", Harness.sharedBy(["a"]))
      // What b had locked is free too, or a would wait for it here.
      yield* harness.quiesce()

      // Its handlers go on where they stood, in transactions that are gone.
      yield* harness.openGate("of b")
      yield* b.wake
      yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
      yield* harness.append(300)
      yield* harness.quiesce()
    }).pipe(Effect.scoped, Effect.provide(Harness.layer)), Harness.patience)

  it.live("a worker that does not know of its eviction cannot commit", () =>
    Effect.gen(function*() {
      const harness = yield* Harness.Harness
      // Its heart beats so slowly that the other one takes it for dead, and it notices nothing by itself: so its
      // transactions come to their ends, alive, where a thawed worker's would have been ended for it.
      const slow = {
        heartbeatInterval: 20_000,
        staleWorkerTimeout: 60_000,
        coordinationTimeout: 60_000,
        pollInterval: 10_000
      }
      yield* harness.append(100, { hold: { workerId: "b", gate: "of b" }, writers: 1 })
      const b = yield* harness.start("b", { settings: slow, listen: false })
      // Held in a transaction each, in both projections, before anything else was handled.
      yield* harness.waitForOutput(b, "holding", 2)

      yield* harness.start("a")
      const taken = yield* harness.waitUntil("a has taken all", Harness.sharedBy(["a"]))
      assert.deepStrictEqual(taken.state.applied, {})
      yield* harness.openGate("of b")
      // The first that is refused ends this life of b, and with it the other one, should that not be let go yet.
      yield* harness.waitForOutput(b, "let go", 1)
      const end = yield* harness.quiesce()
      assert.deepStrictEqual(end.refusals, [])
      yield* harness.waitForOutput(b, "it registers anew")
    }).pipe(Effect.scoped, Effect.provide(Harness.layer)), Harness.patience)

  it.live(
    "a worker whose id a successor has taken ends with WorkerReplaced when it wakes",
    () =>
      Effect.gen(function*() {
        const harness = yield* Harness.Harness
        const stopLoad = yield* harness.load({ perSecond: 400 })
        const first = yield* harness.start("first", { workerId: "pod-0", delayMillis: 1, mayEnd: true })
        const before = yield* harness.waitUntil("the first works", Harness.sharedBy(["pod-0"]))
        const old = Harness.registered(before.state, "pod-0")!
        yield* first.freeze

        yield* harness.waitUntil(
          "its heartbeats are missing",
          ({ workers }) => workers.some(({ silentForMillis }) => silentForMillis > 900)
        )
        yield* harness.start("second", { workerId: "pod-0" })
        const after = yield* harness.waitUntil(
          "the second works",
          (state) =>
            Harness.sharedBy(["pod-0"])(state) && Harness.registered(state, "pod-0")!.incarnation > old.incarnation
        )
        assert.isTrue(Harness.newest(after.state)!.generationId > Harness.newest(before.state)!.generationId)

        yield* first.wake
        assert.deepStrictEqual(yield* first.ended, { code: 1, signal: null })
        assert.include(first.output(), "Another process has registered as worker \"pod-0\"")

        yield* stopLoad
        const end = yield* harness.quiesce()
        assert.isTrue(Harness.sharedBy(["pod-0"])(end))
        assert.strictEqual(Harness.newest(end)!.generationId, Harness.newest(after.state)!.generationId)
      }).pipe(Effect.scoped, Effect.provide(Harness.layer)),
    Harness.patience
  )
})
