/**
 * `npm run simulate`: the simulation, deterministic in memory, or in real time against PostgreSQL.
 *
 * - `npm run simulate -- --seed N`: one seed, with its trace.
 * - `npm run simulate -- --seeds N [--seed FIRST]`: many seeds, and what they covered.
 * - `npm run simulate -- --postgres …`: either of them against PostgreSQL; the server in `DATABASE_URL`, or one of its own.
 *   `--at-once N` seeds run at a time.
 * - `npm run simulate -- --mutations [--seeds N]`: each mechanism removed in turn, and the seeds until that is detected.
 * - `--record` writes the table of many seeds or of the mutations to `docs/measurements`.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { parseArgs } from "node:util"
import * as EmbeddedPostgres from "../src/testing/EmbeddedPostgres.ts"
import * as Measurement from "../src/testing/Measurement.ts"
import * as Coverage from "../test/simulation/Coverage.ts"
import * as Memory from "../test/simulation/Mutations.ts"
import * as Postgres from "../test/simulation/postgres/Mutations.ts"
import * as RealTime from "../test/simulation/postgres/RealTime.ts"
import type { Outcome } from "../test/simulation/ScenarioRun.ts"
import { simulate } from "../test/simulation/Simulation.ts"

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    seeds: { type: "string" },
    mutation: { type: "string" },
    mutations: { type: "boolean", default: false },
    postgres: { type: "boolean", default: false },
    record: { type: "boolean", default: false },
    "at-once": { type: "string", default: "8" }
  }
})

const whole = (name: "seed" | "seeds" | "at-once", otherwise: number): number => {
  const value = values[name] === undefined ? otherwise : Number(values[name])
  if (!Number.isSafeInteger(value) || value < 0) throw new Error(`--${name} must be a whole number`)
  return value
}

/** How often a long run reports its progress. */
const progressMillis = 30_000

/** Runs seeds in memory or on PostgreSQL. */
interface Mode {
  /** The option that chooses it. */
  readonly option: "" | "--postgres "
  readonly serverUrl?: string
  readonly claims: Coverage.Claims
  readonly mutations: ReadonlyArray<string>
  readonly runSeed: (seed: number, mutation: string | undefined) => Effect.Effect<Outcome, unknown>
  readonly atOnce: number
  /** The seeds alone do not determine what is reached: up to this many times as many are run until every state was reached. */
  readonly patience: number
}

const inMemory: Mode = {
  option: "",
  claims: Coverage.virtual,
  mutations: Object.keys(Memory.mutations),
  runSeed: (seed, mutation) =>
    Effect.andThen(
      // So that signals are handled between two seeds.
      Effect.yieldNow,
      Effect.sync(() => simulate(seed, mutation === undefined ? Memory.none : Memory.mutations[mutation]))
    ),
  atOnce: 1,
  patience: 1
}

const onPostgres = Effect.gen(function*() {
  const given = process.env["DATABASE_URL"]
  const serverUrl = given !== undefined && given !== ""
    ? given
    : (yield* EmbeddedPostgres.acquire({ name: "simulate" })).url
  const template = yield* RealTime.prepare(serverUrl)
  const mode: Mode = {
    option: "--postgres ",
    serverUrl,
    claims: Coverage.postgres,
    mutations: Object.keys(Postgres.mutations),
    runSeed: (seed, mutation) =>
      RealTime.simulate(seed, {
        template,
        serverUrl,
        rewrite: mutation === undefined ? undefined : Postgres.mutations[mutation]
      }),
    atOnce: whole("at-once", 8),
    patience: 4
  }
  return mode
})

const command = (mode: Mode, seed: number): string => `npm run simulate -- ${mode.option}--seed ${seed}`

const fail = Effect.sync(() => {
  process.exitCode = 1
})

/** Prints a result, and writes its page if that is requested. */
const report = Effect.fnUntraced(function*(mode: Mode, what: "simulation" | "mutations", result: string) {
  yield* Console.log(result)
  if (!values.record) return
  const { serverUrl } = mode
  const [page, where] = serverUrl === undefined
    ? [what, "virtual time"]
    : [`${what}-postgres`, "real time on PostgreSQL"]
  const title = what === "simulation" ? `Simulation in ${where}` : `Mutations of the simulation in ${where}`
  yield* Measurement.record({ page, title, command: Measurement.commandOf("simulate"), serverUrl, result })
})

/** One seed with its trace. */
const one = Effect.fnUntraced(function*(mode: Mode, seed: number) {
  const { events, faults, recoveredAfter, trace, violations } = yield* mode.runSeed(seed, values.mutation)
  yield* Console.log(trace.join("\n"))
  if (violations.length === 0) {
    return yield* Console.log(
      `seed ${seed}: ${events} events, ${faults} joins and faults, recovered after ${recoveredAfter} ms`
    )
  }
  yield* Console.log(`seed ${seed} violates:\n${violations.join("\n")}`)
  yield* fail
})

/** Many seeds, and what they covered. */
const many = Effect.fnUntraced(function*(mode: Mode, first: number, count: number) {
  const coverage = new Coverage.Coverage(mode.claims)
  const began = performance.now()
  let reportedAt = began
  let finished = 0
  let failed = 0
  let slowest = 0
  const runSeed = Effect.fnUntraced(function*(seed: number) {
    const outcome = yield* mode.runSeed(seed, values.mutation)
    coverage.add(outcome.coverage)
    finished++
    slowest = Math.max(slowest, outcome.recoveredAfter ?? 0)
    if (outcome.violations.length > 0) {
      failed++
      yield* Console.log(`seed ${seed}: ${outcome.violations[0]}\n  ${command(mode, seed)}`)
      // A run in real time cannot be repeated.
      if (mode !== inMemory) yield* Console.log(outcome.trace.join("\n"))
    }
    if (performance.now() - reportedAt > progressMillis) {
      reportedAt = performance.now()
      yield* Console.log(
        `${finished} of ${count} seeds after ${Math.round((reportedAt - began) / 1000)} s, ${failed} failed`
      )
    }
  })
  const simulateUpTo = (total: number) =>
    Effect.forEach(Array.from({ length: total - finished }, (_, index) => first + finished + index), runSeed, {
      concurrency: mode.atOnce,
      discard: true
    })
  yield* simulateUpTo(count)
  while (coverage.missing().length > 0 && finished < mode.patience * count) {
    yield* simulateUpTo(finished + mode.atOnce)
  }
  const seconds = (performance.now() - began) / 1000
  const missing = coverage.missing()
  const pace = `${seconds.toFixed(1)} s (${(finished / seconds).toFixed(1)} a second)`
  yield* report(
    mode,
    "simulation",
    [
      coverage.table(),
      ...(missing.length > 0 ? [`Never reached: ${missing.join(", ")}.`] : []),
      `${finished} seeds from ${first} in ${pace}: ${failed} failed; longest recovery ${slowest} ms.`
    ].join("\n\n")
  )
  if (failed > 0 || missing.length > 0) yield* fail
})

/** Each mechanism removed in turn. */
const mutations = Effect.fnUntraced(function*(mode: Mode, first: number, most: number) {
  const rows: Array<ReadonlyArray<string | number>> = []
  for (const name of mode.mutations) {
    let seed = first
    let found = yield* mode.runSeed(seed, name)
    while (found.violations.length === 0 && seed < first + most - 1) found = yield* mode.runSeed(++seed, name)
    // Only the first of the facts that a violation lists.
    const [violation] = found.violations.map((each) => each.split("; ")[0]!)
    rows.push([name, seed - first + 1, violation ?? "not detected"])
    if (violation === undefined) yield* fail
  }
  yield* report(mode, "mutations", Measurement.table(["removed mechanism", "seeds", "first violation"], rows))
})

const program = Effect.gen(function*() {
  const mode = values.postgres ? yield* onPostgres : inMemory
  const first = whole("seed", 1)
  if (values.mutation !== undefined && !mode.mutations.includes(values.mutation)) {
    throw new Error(`--mutation is one of: ${mode.mutations.join(", ")}`)
  }
  if (values.record && values.seeds === undefined && !values.mutations) {
    throw new Error("--record needs --seeds or --mutations")
  }
  if (values.mutations) return yield* mutations(mode, first, whole("seeds", 1000))
  return values.seeds === undefined ? yield* one(mode, first) : yield* many(mode, first, whole("seeds", 0))
})

NodeRuntime.runMain(Effect.scoped(program))
