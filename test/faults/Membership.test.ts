/** Workers join, leave and die, under load; with all wake-ups, and with none. */
import { assert, describe, it } from "@effect/vitest"
import { Console, Effect } from "effect"
import * as Harness from "./Harness.ts"

/**
 * With presence a death is noticed long before heartbeats are missing; without it they tell, and without LISTEN polling
 * finds everything else.
 */
const ways = [
  {
    name: "with presence and LISTEN",
    options: { settings: { heartbeatInterval: 2_000, staleWorkerTimeout: 10_000 } },
    takeoverMillis: 5_000
  },
  { name: "without presence and LISTEN", options: { presence: false, listen: false }, takeoverMillis: 8_000 }
]

describe("membership", { concurrent: false }, () => {
  for (const { name, options, takeoverMillis } of ways) {
    it.live(`workers join, leave and die under load, ${name}`, () =>
      Effect.gen(function*() {
        const harness = yield* Harness.Harness
        const start = (id: string) => harness.start(id, { ...options, delayMillis: 1 })
        const stopLoad = yield* harness.load({ perSecond: 400 })

        const a = yield* start("a")
        yield* harness.waitUntil("a works alone", Harness.sharedBy(["a"]))
        // Two that join at once.
        const b = yield* start("b")
        const c = yield* start("c")
        const joined = yield* harness.waitUntil("a, b and c share the work", Harness.sharedBy(["a", "b", "c"]))

        assert.deepStrictEqual(yield* b.stop, { code: 0, signal: null })
        const left = yield* harness.waitUntil("a and c share the work", Harness.sharedBy(["a", "c"]))
        const row = left.state.workers.find(({ workerId }) => workerId === "b")
        assert.strictEqual(row?.state, "stopped")
        assert.isAbove(
          Number(Harness.newest(left.state)!.generationId),
          Number(Harness.newest(joined.state)!.generationId)
        )

        assert.deepStrictEqual(yield* c.kill, { code: null, signal: "SIGKILL" })
        const taken = yield* harness.waitUntil("a has all again", Harness.sharedBy(["a"]))
        yield* Console.log(`${name}: takeover ${Math.round(taken.millis)} ms after SIGKILL`)
        assert.isBelow(taken.millis, takeoverMillis)
        assert.strictEqual(taken.state.workers.find(({ workerId }) => workerId === "c")?.state, "stopped")

        yield* stopLoad
        yield* harness.quiesce()
        assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null })
        const end = yield* harness.waitUntil("all is free", ({ checkpoints, workers }) =>
          checkpoints.every(({ workerId }) =>
            workerId === null
          ) && workers.every(({ state }) => state === "stopped"))
        assert.deepStrictEqual(end.state.refusals, [])
      }).pipe(Effect.scoped, Effect.provide(Harness.layer)), Harness.patience)
  }
})
