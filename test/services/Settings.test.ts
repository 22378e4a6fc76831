import { assert, describe, it } from "@effect/vitest"
import { Config, ConfigProvider, Duration, Effect, Logger, Result, Schema } from "effect"
import { configErrorText } from "../../src/schema/ConfigErrorText.ts"
import * as Settings from "../../src/services/Settings.ts"

type Environment = Readonly<Record<string, string>>

/** An ordinary provider, and one with `ConfigProvider.constantCase`. */
const providers = (env: Environment) => [
  ConfigProvider.fromEnv({ env }),
  ConfigProvider.fromEnv({ env }).pipe(ConfigProvider.constantCase)
]

/** The settings read with each provider, and the lines logged. */
const read = (env: Environment) =>
  Effect.forEach(providers(env), (provider) => {
    const lines: Array<string> = []
    return Effect.result(Settings.config).pipe(
      Effect.provideService(ConfigProvider.ConfigProvider, provider),
      Effect.provide(Logger.layer([Logger.make(({ message }) => void lines.push(String(message)))])),
      Effect.map((result) => ({ result, lines }))
    )
  })

const messages = (env: Environment) =>
  Effect.map(
    read(env),
    (all) =>
      all.map(({ result }) => Result.isFailure(result) ? configErrorText(result.failure) : assert.fail("accepted"))
  )

const main = { ORCHESTRATOR_REPLICA_SET: "main" }

describe("Settings.config", () => {
  it.effect("reads ORCHESTRATOR_… variables and omits unset ones", () =>
    Effect.gen(function*() {
      const env = {
        ...main,
        ORCHESTRATOR_HEARTBEAT_INTERVAL: "2 seconds",
        ORCHESTRATOR_BATCH_SIZE: "10",
        ORCHESTRATOR_WORKER_ID: "pod-1"
      }
      for (const { lines, result } of yield* read(env)) {
        const settings = Result.getOrThrow(Settings.make(Result.getOrThrow(result)))
        assert.strictEqual(settings.replicaSet, "main")
        assert.strictEqual(Duration.toMillis(settings.heartbeatInterval), 2000)
        assert.strictEqual(settings.batchSize, 10)
        assert.strictEqual(settings.workerId, "pod-1")
        assert.deepStrictEqual(settings.pollInterval, Settings.defaults.pollInterval)
        assert.deepStrictEqual(lines, [])
      }
    }))

  it.effect("reads a structured source by setting names", () =>
    Effect.gen(function*() {
      const provider = ConfigProvider.fromUnknown({ orchestrator: { replicaSet: "main", batchSize: 3, batchsize: 4 } })
      const lines: Array<string> = []
      const input = yield* Settings.config.pipe(
        Effect.provideService(ConfigProvider.ConfigProvider, provider),
        Effect.provide(Logger.layer([Logger.make(({ message }) => void lines.push(String(message)))]))
      )
      assert.deepInclude(input, { replicaSet: "main", batchSize: 3 })
      assert.match(lines.join(), /ORCHESTRATOR_BATCHSIZE \(did you mean ORCHESTRATOR_BATCH_SIZE\?\)/)
    }))

  it.effect.each(
    [
      ["5s", 5000],
      ["250ms", 250],
      ["2m", 120_000],
      ["1h", 3_600_000],
      ["1d", 86_400_000],
      ["1m30s", 90_000],
      ["1.5s", 1500],
      [" 5S ", 5000],
      ["5 s", 5000],
      ["1m 30s", 90_000],
      ["5 seconds", 5000],
      ["1 minute", 60_000],
      ["100 millis", 100]
    ] as const
  )("a duration may be written as %s", ([text, millis]) =>
    Effect.gen(function*() {
      for (const { result } of yield* read({ ...main, ORCHESTRATOR_POLL_INTERVAL: text })) {
        const { pollInterval } = Result.getOrThrow(Settings.make(Result.getOrThrow(result)))
        assert.strictEqual(Duration.toMillis(pollInterval), millis)
      }
      const own = ConfigProvider.fromEnv({ env: { POLL: text } })
      assert.strictEqual(Duration.toMillis(yield* Settings.duration("POLL").parse(own)), millis)
    }))

  const wrong: ReadonlyArray<readonly [Environment, RegExp]> = [
    [{}, /^ORCHESTRATOR_REPLICA_SET is not set\./],
    // Effect treats an empty variable as unset.
    [{ ORCHESTRATOR_REPLICA_SET: "" }, /^ORCHESTRATOR_REPLICA_SET is not set\./],
    [{ ORCHESTRATOR_REPLICA_SET: " " }, /^ORCHESTRATOR_REPLICA_SET is empty\./],
    [{ ...main, ORCHESTRATOR_WORKER_ID: " " }, /^ORCHESTRATOR_WORKER_ID is empty\./],
    [{ ...main, ORCHESTRATOR_BATCH_SIZE: "many" }, /^ORCHESTRATOR_BATCH_SIZE is "many"\. Write a whole number/],
    [{ ...main, ORCHESTRATOR_BATCH_BYTES: "4MiB" }, /^ORCHESTRATOR_BATCH_BYTES is "4MiB"\. Write a whole number/],
    [{ ...main, ORCHESTRATOR_BATCH_SIZE: "1.5" }, /^ORCHESTRATOR_BATCH_SIZE is "1.5"\./],
    ...["soon", "5", "5 sec", "s", "-5s", "5s5", "1e3s"].map((text) =>
      [
        { ...main, ORCHESTRATOR_POLL_INTERVAL: text },
        /^ORCHESTRATOR_POLL_INTERVAL is ".*"\. Write a duration with its unit, such as 5s/
      ] as const
    )
  ]
  it.effect.each(wrong)("an invalid %j is reported by variable name", ([env, expected]) =>
    Effect.gen(function*() {
      for (const message of yield* messages(env)) assert.match(message, expected)
    }))

  it.effect("warns about unknown variables and suggests the intended ones", () =>
    Effect.gen(function*() {
      const env = {
        ...main,
        ORCHESTRATOR_BATCHSIZE: "10",
        ORCHESTRATOR_POLL_INTERVALL: "5s",
        ORCHESTRATOR_COLOR: "red",
        ORCHESTRATOR: "x",
        ORCHESTRATORS: "y",
        UNRELATED: "z"
      }
      for (const { lines } of yield* read(env)) {
        assert.strictEqual(lines.length, 1)
        assert.include(lines[0], "ORCHESTRATOR_BATCHSIZE (did you mean ORCHESTRATOR_BATCH_SIZE?)")
        assert.include(lines[0], "ORCHESTRATOR_POLL_INTERVALL (did you mean ORCHESTRATOR_POLL_INTERVAL?)")
        assert.match(lines[0] ?? "", /ORCHESTRATOR_COLOR[,.] /)
        assert.notMatch(lines[0] ?? "", /ORCHESTRATORS|UNRELATED/)
      }
    }))
})

describe("configErrorText", () => {
  it.effect.each([
    ["a variable that is not set", Config.Redacted("DATABASE_URL"), {}, /^DATABASE_URL is not set\./],
    [
      "a nested name",
      Config.String("port").pipe(Config.nested("httpServer")),
      {},
      /^HTTP_SERVER_PORT \(or httpServer_port\) is not set\./
    ],
    ["a value out of range", Config.Port("PORT"), { PORT: "99999" }, /^PORT is not valid: .*65535\. Correct it/],
    ["a value that is not a number", Config.Int("PORT"), { PORT: "http" }, /^PORT is not valid: .*number/],
    [
      "one of several",
      Config.all({ a: Config.withDefault(Config.Int("A"), 1), b: Config.String("B") }),
      { C: "1" },
      /^B is not set\./
    ],
    [
      "a structure",
      Config.schema(Schema.Struct({ host: Schema.String }), "DB"),
      { DB_PORT: "1" },
      /^DB_HOST.* is not set\./
    ]
  ] as ReadonlyArray<readonly [string, Config.Config<unknown>, Environment, RegExp]>)(
    "%s",
    ([, config, env, expected]) =>
      Effect.gen(function*() {
        assert.match(configErrorText(yield* Effect.flip(config.parse(ConfigProvider.fromEnv({ env })))), expected)
      })
  )
})
