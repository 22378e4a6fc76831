/**
 * Settings of an orchestrator with their defaults and rules, and the configuration that reads them from the
 * environment.
 *
 * **Example** (A setting from a variable of your own)
 *
 * ```ts
 * import { Effect } from "effect"
 * import { Orchestrator, Projection, Settings } from "pupsourcing-orchestrator"
 *
 * const users = Projection.make("users", { handle: () => Effect.void })
 *
 * export const Worker = Orchestrator.layerConfig({
 *   replicaSet: "main-projections",
 *   pollInterval: Settings.duration("POLL_INTERVAL"),
 *   projections: [users]
 * })
 * ```
 *
 * @since 0.1.0
 */
import * as Config from "effect/Config"
import * as ConfigProvider from "effect/ConfigProvider"
import type * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as String from "effect/String"
import { durationExamples, type Input, parseDuration } from "../schema/Settings.ts"
import { nearest } from "../schema/Text.ts"

export * from "../schema/Settings.ts"

const invalid = (problem: string): Config.ConfigError =>
  new Config.ConfigError(new ConfigProvider.SourceError({ message: problem }))

/** Returns a config that reads a non-empty text and parses it. */
const parsed = <A>(
  self: Config.Config<string>,
  variable: string,
  parse: (text: string) => A | undefined,
  expected: string
): Config.Config<A> =>
  Config.mapEffect(self, (text) => {
    if (text.trim() === "") return Effect.fail(invalid(`${variable} is empty. ${expected}`))
    const value = parse(text)
    return value === undefined
      ? Effect.fail(invalid(`${variable} is "${text}". ${expected}`))
      : Effect.succeed(value)
  })

const expectedDuration = `Write a duration with its unit, such as ${durationExamples}.`

/**
 * Reads a duration such as `5s`, `250ms`, `2m`, `1h`, `1m30s` or `5 seconds`. The unit is required.
 *
 * @category configs
 * @since 0.1.0
 */
export const duration = (name: string): Config.Config<Duration.Duration> =>
  parsed(Config.String(name), name, parseDuration, expectedDuration)

const parseInteger = (text: string): number | undefined => /^\s*\d+\s*$/.test(text) ? Number(text) : undefined

const parsers = {
  name: [(text: string): string | undefined => text, "Give it a name, or remove it."],
  integer: [parseInteger, "Write a whole number in digits, such as 500."],
  duration: [parseDuration, expectedDuration]
} as const

const root = "ORCHESTRATOR"

const variableOf = (name: string): string => `${root}_${String.configCase(name)}`

/** Reads environment variables by their own names, and structured sources by the names of the settings. */
const text = (name: string): Config.Config<Option.Option<string>> => {
  const at = (name: string, prefix: string) => Config.option(Config.String(name).pipe(Config.nested(prefix)))
  return Config.flatMap(
    at(name, root.toLowerCase()),
    (found) => Option.isSome(found) ? Config.succeed(found) : at(String.configCase(name), root)
  )
}

const optional = <A>(
  name: keyof Input,
  [parse, expected]: readonly [(text: string) => A | undefined, string]
): Config.Config<A | undefined> =>
  Config.flatMap(
    text(name),
    Option.match({
      onNone: () => Config.succeed<A | undefined>(undefined),
      onSome: (found) => parsed(Config.succeed(found), variableOf(name), parse, expected)
    })
  )

const settings = {
  replicaSet: Config.mapEffect(optional("replicaSet", parsers.name), (name) =>
    name === undefined
      ? Effect.fail(
        invalid(
          `${variableOf("replicaSet")} is not set. Give the worker's replica set a name, such as "main-projections".`
        )
      )
      : Effect.succeed(name)),
  heartbeatInterval: optional("heartbeatInterval", parsers.duration),
  staleWorkerTimeout: optional("staleWorkerTimeout", parsers.duration),
  coordinationTimeout: optional("coordinationTimeout", parsers.duration),
  batchSize: optional("batchSize", parsers.integer),
  batchBytes: optional("batchBytes", parsers.integer),
  pollInterval: optional("pollInterval", parsers.duration),
  registrationWindow: optional("registrationWindow", parsers.duration),
  drainTimeout: optional("drainTimeout", parsers.duration),
  workerId: optional("workerId", parsers.name)
} satisfies { readonly [K in keyof Input]-?: Config.Config<Input[K]> }

/**
 * The URL of the stores' own sessions: `ORCHESTRATOR_DIRECT_URL`, or undefined if it is not set.
 * `PostgresStores.layerFromEnv` uses it.
 *
 * @category configs
 * @since 0.1.0
 */
export const directUrl: Config.Config<Redacted.Redacted | undefined> = Config.map(
  text("directUrl"),
  (found) => Option.getOrUndefined(Option.map(found, (url) => Redacted.make(url)))
)

const known = [...Object.keys(settings), "directUrl"].map(variableOf)

/** Returns the variables below a path that have a value. */
const variablesBelow = (
  provider: ConfigProvider.ConfigProvider,
  path: ReadonlyArray<string>
): Effect.Effect<ReadonlyArray<string>> =>
  provider.load(path).pipe(
    Effect.flatMap((node): Effect.Effect<ReadonlyArray<string>> => {
      if (node === undefined) return Effect.succeed([])
      const own = node.value === undefined ? [] : [path.map(String.configCase).join("_")]
      return node._tag !== "Record" ? Effect.succeed(own) : Effect.map(
        Effect.forEach([...node.keys], (key) => variablesBelow(provider, [...path, key])),
        (names) => [...own, ...names.flat()]
      )
    }),
    // A source whose keys cannot be listed may still contain the settings.
    Effect.orElseSucceed(() => [])
  )

const warnOfUnknown = Effect.gen(function*() {
  const provider = yield* ConfigProvider.ConfigProvider
  const found = yield* Effect.forEach([root, root.toLowerCase()], (name) => variablesBelow(provider, [name]))
  const unknown = [...new Set(found.flat())].filter((name) => name !== root && !known.includes(name))
  if (unknown.length === 0) return
  const described = unknown.map((name) => {
    const meant = nearest(name, known)
    return meant === undefined ? name : `${name} (did you mean ${meant}?)`
  })
  yield* Effect.logWarning(
    `These variables have no effect, because no setting has such a name: ${described.join(", ")}. The settings are ${
      known.join(", ")
    }.`
  )
})

/**
 * Settings from the environment: `ORCHESTRATOR_REPLICA_SET`, `ORCHESTRATOR_BATCH_SIZE` and so on, or from a structured
 * source under `orchestrator`. Reading them logs a warning that names every variable `ORCHESTRATOR_…` that does not
 * belong to a setting. `Orchestrator.layerFromEnv` uses it.
 *
 * @category configs
 * @since 0.1.0
 */
export const config: Config.Config<Input> = Config.mapEffect(
  Config.all(settings),
  (input) => Effect.as(warnOfUnknown, input)
)
