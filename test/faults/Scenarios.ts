/** Scenarios that several tests run with different settings. */
import { assert } from "@effect/vitest"
import { Console, Effect, type Scope } from "effect"
import type { SqlClient } from "effect/sql"
import * as Harness from "./Harness.ts"

/** What a scenario requires: the harness, its database, and a scope for the processes. */
export type Needs = Harness.Harness | SqlClient.SqlClient | Scope.Scope

/** Workers join, leave and die under load; afterwards every read model is the fold of the events. */
export const membership = Effect.fnUntraced(function*(options: Harness.WorkerOptions) {
  const harness = yield* Harness.Harness
  const start = (id: string) => harness.start(id, { ...options, delayMillis: 1 })
  const stopLoad = yield* harness.load({ perSecond: 400 })

  const a = yield* start("a")
  yield* harness.waitUntil("a works alone", Harness.sharedBy(["a"]))
  // Two workers that join at the same moment.
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
  yield* Console.log(`takeover ${Math.round(taken.millis)} ms after SIGKILL`)
  assert.strictEqual(taken.state.workers.find(({ workerId }) => workerId === "c")?.state, "stopped")

  yield* stopLoad
  yield* harness.quiesce()
  assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null })
  const end = yield* harness.waitUntil(
    "all is free",
    ({ checkpoints, workers }) =>
      checkpoints.every(({ workerId }) => workerId === null) && workers.every(({ state }) => state === "stopped")
  )
  assert.deepStrictEqual(end.state.refusals, [])
})
