import { assert, describe, it } from "@effect/vitest"
import { Duration, Result, Schema } from "effect"
import * as Settings from "../../src/schema/Settings.ts"

const problem = (input: Partial<Settings.Input>): { readonly setting: string; readonly message: string } => {
  const result = Settings.make({ replicaSet: "main", ...input })
  if (Result.isSuccess(result)) return assert.fail("accepted")
  assert.strictEqual(result.failure._tag, "InvalidSettings")
  return { setting: result.failure.setting, message: result.failure.message }
}

describe("Settings.make", () => {
  it("the defaults are valid", () => {
    const settings = Result.getOrThrow(Settings.make({ replicaSet: "main" }))
    assert.deepStrictEqual(settings, { replicaSet: "main", workerId: undefined, ...Settings.defaults })
  })

  it("given values are kept, and undefined means absent", () => {
    const settings = Result.getOrThrow(Settings.make({
      replicaSet: "main",
      workerId: "pod-1",
      heartbeatInterval: "1 second",
      staleWorkerTimeout: 3000,
      coordinationTimeout: undefined,
      batchSize: 1,
      batchBytes: 2,
      pollInterval: Duration.millis(10),
      registrationWindow: 0,
      drainTimeout: 0
    }))
    assert.strictEqual(settings.workerId, "pod-1")
    assert.strictEqual(Duration.toMillis(settings.heartbeatInterval), 1000)
    assert.strictEqual(Duration.toMillis(settings.staleWorkerTimeout), 3000)
    assert.strictEqual(settings.coordinationTimeout, Settings.defaults.coordinationTimeout)
    assert.strictEqual(settings.batchSize, 1)
    assert.strictEqual(settings.batchBytes, 2)
    assert.strictEqual(Duration.toMillis(settings.pollInterval), 10)
    assert.strictEqual(Duration.toMillis(settings.registrationWindow), 0)
    assert.strictEqual(Duration.toMillis(settings.drainTimeout), 0)
  })

  const wrong: ReadonlyArray<readonly [setting: string, input: Partial<Settings.Input>]> = [
    ["replicaSet", { replicaSet: "" }],
    ["replicaSet", { replicaSet: "  " }],
    ["replicaSet", { replicaSet: "a\u0000b" }],
    ["replicaSet", { replicaSet: "main\ud800" }],
    ["workerId", { workerId: "w\udc00" }],
    ["registrationWindow", { registrationWindow: "10 minutes" }],
    ["replicaSet", { replicaSet: "a".repeat(201) }],
    ["workerId", { workerId: "" }],
    ["workerId", { workerId: "\u0000" }],
    ["workerId", { workerId: "w".repeat(201) }],
    ...(["batchSize", "batchBytes"] as const).flatMap((name) =>
      [0, -1, 1.5, NaN, Infinity, 2 ** 53].map((value) => [name, { [name]: value }] as const)
    ),
    ...([
      "heartbeatInterval",
      "staleWorkerTimeout",
      "coordinationTimeout",
      "pollInterval",
      "registrationWindow",
      "drainTimeout"
    ] as const).flatMap((name) =>
      [NaN, Infinity, -1, Duration.infinity, "-5 seconds"].map((value) => [name, { [name]: value }] as const)
    ),
    ["heartbeatInterval", { heartbeatInterval: 0 }],
    ["staleWorkerTimeout", { staleWorkerTimeout: 0 }],
    ["coordinationTimeout", { coordinationTimeout: 0 }],
    ["pollInterval", { pollInterval: 0 }],
    ["staleWorkerTimeout", { staleWorkerTimeout: "14999 millis" }],
    ["staleWorkerTimeout", { heartbeatInterval: "11 seconds" }],
    ["drainTimeout", { drainTimeout: "60 seconds" }],
    ["drainTimeout", { coordinationTimeout: "5 seconds" }],
    ["coordinationTimeout", { coordinationTimeout: "19 seconds" }]
  ]

  it.each(wrong)("%s: %o is refused by name", (setting, input) => {
    const { message, setting: named } = problem(input)
    assert.strictEqual(named, setting)
    assert.notMatch(message, /undefined|null|NaN|\[object/)
    assert.match(message, /\.$/)
  })

  it("an invalid duration text is quoted in the error", () => {
    // As from a program without types.
    const { message, setting } = problem({ pollInterval: "5 parsecs" as Duration.Input })
    assert.strictEqual(setting, "pollInterval")
    assert.include(message, "\"5 parsecs\"")
  })

  it.prop(
    "accepted settings satisfy the rules between settings; a refusal names an invalid setting",
    {
      heartbeat: Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: -1, maximum: 50 }))),
      stale: Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: -1, maximum: 150 }))),
      coordination: Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: -1, maximum: 50 }))),
      drain: Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: -1, maximum: 50 }))),
      window: Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum: -1, maximum: 30 })))
    },
    ({ coordination, drain, heartbeat, stale, window }) => {
      const faults = [
        ...(heartbeat <= 0 ? ["heartbeatInterval"] : []),
        ...(stale <= 0 || stale < 3 * heartbeat ? ["staleWorkerTimeout"] : []),
        ...(coordination <= 0 || 2 * coordination < stale + 2 * heartbeat ? ["coordinationTimeout"] : []),
        ...(drain < 0 || drain >= coordination ? ["drainTimeout"] : []),
        ...(window < 0 || window >= heartbeat ? ["registrationWindow"] : [])
      ]
      const result = Settings.make({
        replicaSet: "main",
        heartbeatInterval: heartbeat,
        staleWorkerTimeout: stale,
        coordinationTimeout: coordination,
        drainTimeout: drain,
        registrationWindow: window
      })
      assert.strictEqual(Result.isSuccess(result), faults.length === 0)
      if (Result.isFailure(result)) assert.include(faults, result.failure.setting)
    },
    { arbitrary: { runs: 1000, seed: "settings" } }
  )
})
