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
  absentForMillis
})

const signs = { silent: int(60_000), absent: Schema.Union([int(4_000), Schema.Undefined]) }

/** The worker after `millis` without a heartbeat and without a change of its presence. */
const after = (silent: number, absent: number | undefined, millis: number): Worker.WorkerView =>
  worker(silent + millis, absent === undefined ? undefined : absent + millis)

describe("Worker.isAlive", () => {
  it.each<readonly [number, number | undefined, number, boolean, string]>([
    [29_999, undefined, 10_000, true, "silent for less than the timeout"],
    [30_000, undefined, 10_000, false, "silent for the timeout"],
    [3_600_000, undefined, 9_999, true, "silent for long, but the observing session is young"],
    [5_000, 99, 10_000, true, "absent within the grace"],
    [5_000, 100, 10_000, false, "absent for the grace"],
    [5_000, 100, 0, false, "absent: a session's own observation counts at any age"],
    [99, 10_000, 10_000, true, "absent, but with a heartbeat within the grace"],
    [100, 10_000, 10_000, false, "absent, and without a heartbeat for the grace"],
    [30_000, 0, 10_000, false, "present does not excuse silence"]
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
    { ...signs, age: int(20_000), later: int(60_000) },
    ({ absent, age, later, silent }) => {
      const aliveAfter = (millis: number) => Worker.isAlive(after(silent, absent, millis), age + millis, rules)
      if (!aliveAfter(0)) return assert.isFalse(aliveAfter(later))
      const left = Worker.millisToLive(worker(silent, absent), age, rules)
      assert.isTrue(aliveAfter(left - 1))
      assert.isFalse(aliveAfter(left))
      assert.strictEqual(aliveAfter(later), later < left)
    },
    { arbitrary: { runs: 2000, seed: "alive" } }
  )

  it.prop(
    "a heartbeat within both limits keeps any worker alive for every observer",
    { ...signs, age: int(20_000) },
    ({ absent, age, silent }) => {
      assert.isTrue(Worker.isAlive(worker(silent % rules.presenceGraceMillis, absent), age, rules))
    },
    { arbitrary: { runs: 500, seed: "heartbeat" } }
  )
})

describe("Worker.isReplaceable", () => {
  it.each<readonly [number, number | undefined, boolean, string]>([
    [29_999, undefined, false, "silent for less than the timeout"],
    [30_000, undefined, true, "silent for the timeout"],
    [5_000, 1_999, false, "absent for less than two seconds"],
    [5_000, 2_000, true, "absent for two seconds"],
    [1_999, 10_000, false, "absent, but with a heartbeat within two seconds"],
    [30_000, 0, true, "stale although its session is open, as that of a frozen process"]
  ])("silent %d, absent %s: %s (%s)", (silent, absent, replaceable) => {
    assert.strictEqual(Worker.isReplaceable(worker(silent, absent), rules), replaceable)
  })

  it.prop(
    "a replaceable worker stays replaceable as time passes, and another one becomes so exactly when predicted",
    { ...signs, later: int(60_000) },
    ({ absent, later, silent }) => {
      const replaceableAfter = (millis: number) => Worker.isReplaceable(after(silent, absent, millis), rules)
      const left = Worker.millisUntilReplaceable(worker(silent, absent), rules)
      assert.strictEqual(replaceableAfter(later), later >= left)
      assert.strictEqual(replaceableAfter(0), left <= 0)
    },
    { arbitrary: { runs: 2000, seed: "replaceable" } }
  )

  it.prop(
    "a replaceable worker is dead for every observer that may judge its silence",
    { ...signs, age: int(20_000) },
    ({ absent, age, silent }) => {
      if (age < 2 * rules.heartbeatIntervalMillis || !Worker.isReplaceable(worker(silent, absent), rules)) return
      assert.isFalse(Worker.isAlive(worker(silent, absent), age, rules))
    },
    { arbitrary: { runs: 2000, seed: "dead" } }
  )
})
