import { assert, describe, it } from "@effect/vitest"
import { Schema } from "effect"
import * as Worker from "../../src/schema/Worker.ts"

const int = (maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: 0, maximum })))

const rules: Worker.LivenessRules = {
  staleWorkerTimeoutMillis: 30_000,
  heartbeatIntervalMillis: 5_000,
  presenceGraceMillis: 100
}

const worker = (silentForMillis: number, absentForMillis?: number): Worker.WorkerView => ({
  workerId: "w",
  incarnation: 1n,
  startedAt: new Date(0),
  projections: [],
  silentForMillis,
  absentForMillis,
  recorded: { state: "running", generationId: 1n }
})

describe("Worker.isAlive", () => {
  it.each<readonly [number, number | undefined, number, boolean, string]>([
    [30_000, undefined, 10_000, true, "silent for as long as allowed"],
    [30_001, undefined, 10_000, false, "silent for longer"],
    [3_600_000, undefined, 9_999, true, "silent for long, but the observing session is young"],
    [5_000, 99, 10_000, true, "absent within the grace"],
    [5_000, 100, 10_000, false, "absent for the grace"],
    [5_000, 100, 0, false, "absent: a session's own observation counts at any age"],
    [99, 10_000, 10_000, true, "absent, but with a heartbeat within the grace"],
    [100, 10_000, 10_000, false, "absent, and without a heartbeat for the grace"],
    [30_001, 0, 10_000, false, "present does not excuse silence"]
  ])("silent %d, absent %s, observer %d: %s (%s)", (silent, absent, age, alive) => {
    assert.strictEqual(Worker.isAlive(worker(silent, absent), age, rules), alive)
  })

  it("without a grace period, only an absent worker is dead", () => {
    const strict = { ...rules, presenceGraceMillis: 0 }
    assert.isTrue(Worker.isAlive(worker(50), 10_000, strict))
    assert.isFalse(Worker.isAlive(worker(50, 0), 10_000, strict))
  })

  it.prop(
    "a dead worker stays dead as time passes, and a live one dies exactly after millisToLive",
    {
      silent: int(60_000),
      absent: Schema.Union([int(200), Schema.Undefined]),
      age: int(20_000),
      later: int(60_000)
    },
    ({ absent, age, later, silent }) => {
      const aliveAfter = (millis: number) =>
        Worker.isAlive(worker(silent + millis, absent === undefined ? undefined : absent + millis), age + millis, rules)
      if (!aliveAfter(0)) return assert.isFalse(aliveAfter(later))
      const left = Worker.millisToLive(worker(silent, absent), age, rules)
      assert.isAbove(left, 0)
      assert.isTrue(aliveAfter(left - 1))
      assert.isFalse(aliveAfter(left))
      assert.strictEqual(aliveAfter(later), later < left)
    },
    { arbitrary: { runs: 2000, seed: "alive" } }
  )
})
