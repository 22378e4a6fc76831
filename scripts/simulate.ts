/**
 * `npm run simulate`: the simulation, deterministic in memory, or in real time against PostgreSQL.
 *
 * - `npm run simulate -- --seed N`: one seed, with its trace.
 * - `npm run simulate -- --seeds N [--seed FIRST]`: many seeds, and what they covered.
 * - `npm run simulate -- --postgres …`: either of them against PostgreSQL; the server in `DATABASE_URL`, or one of its own.
 *   `--at-once N` seeds are played at a time.
 * - `npm run simulate -- --mutations [--seeds N]`: each mechanism taken out in turn, and how many seeds notice it.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { parseArgs } from "node:util"
import * as EmbeddedPostgres from "../src/testing/EmbeddedPostgres.ts"
import * as Coverage from "../test/simulation/Coverage.ts"
import type { Outcome } from "../test/simulation/Director.ts"
import * as Memory from "../test/simulation/Mutations.ts"
import * as Postgres from "../test/simulation/postgres/Mutations.ts"
import * as RealTime from "../test/simulation/postgres/RealTime.ts"
import { simulate } from "../test/simulation/Simulation.ts"

const { values } = parseArgs({
  options: {
    seed: { type: "string", default: "1" },
    seeds: { type: "string" },
    mutation: { type: "string" },
    mutations: { type: "boolean", default: false },
    postgres: { type: "boolean", default: false },
    "at-once": { type: "string", default: "8" }
  }
})

const whole = (name: "seed" | "seeds" | "at-once", otherwise: number): number => {
  const value = values[name] === undefined ? otherwise : Number(values[name])
  if (!Number.isSafeInteger(value) || value < 0) throw new Error(`--${name} must be a whole number`)
  return value
}

/** A long run says so often how far it has come. */
const progressMillis = 30_000

/** Where seeds are played, and what may be taken out there. */
interface Theatre {
  /** The option that chooses it. */
  readonly option: "" | "--postgres "
  readonly claims: Coverage.Claims
  readonly mutations: ReadonlyArray<string>
  readonly play: (seed: number, mutation: string | undefined) => Effect.Effect<Outcome, unknown>
  readonly atOnce: number
  /** What is reached is not the seeds' alone: so many times as many may be played until everything was. */
  readonly patience: number
}

const inMemory: Theatre = {
  option: "",
  claims: Coverage.virtual,
  mutations: Object.keys(Memory.mutations),
  play: (seed, mutation) =>
    Effect.andThen(
      // So that a signal is heard between two seeds.
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
  const theatre: Theatre = {
    option: "--postgres ",
    claims: Coverage.postgres,
    mutations: Object.keys(Postgres.mutations),
    play: (seed, mutation) =>
      RealTime.play(seed, {
        template,
        serverUrl,
        rewrite: mutation === undefined ? undefined : Postgres.mutations[mutation]
      }),
    atOnce: whole("at-once", 8),
    patience: 3
  }
  return theatre
})

const command = (theatre: Theatre, seed: number): string => `npm run simulate -- ${theatre.option}--seed ${seed}`

const fail = Effect.sync(() => {
  process.exitCode = 1
})

/** One seed with its trace. */
const one = Effect.fnUntraced(function*(theatre: Theatre, seed: number) {
  const { events, faults, recoveredAfter, trace, violations } = yield* theatre.play(seed, values.mutation)
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
const many = Effect.fnUntraced(function*(theatre: Theatre, first: number, count: number) {
  const coverage = new Coverage.Coverage(theatre.claims)
  const began = performance.now()
  let said = began
  let played = 0
  let failed = 0
  let slowest = 0
  const play = Effect.fnUntraced(function*(seed: number) {
    const outcome = yield* theatre.play(seed, values.mutation)
    coverage.add(outcome.coverage)
    played++
    slowest = Math.max(slowest, outcome.recoveredAfter ?? 0)
    if (outcome.violations.length > 0) {
      failed++
      yield* Console.log(`seed ${seed}: ${outcome.violations[0]}\n  ${command(theatre, seed)}`)
      // What was played in real time is not seen again.
      if (theatre !== inMemory) yield* Console.log(outcome.trace.join("\n"))
    }
    if (performance.now() - said > progressMillis) {
      said = performance.now()
      yield* Console.log(`${played} of ${count} seeds after ${Math.round((said - began) / 1000)} s, ${failed} failed`)
    }
  })
  const playUpTo = (total: number) =>
    Effect.forEach(Array.from({ length: total - played }, (_, index) => first + played + index), play, {
      concurrency: theatre.atOnce,
      discard: true
    })
  yield* playUpTo(count)
  while (coverage.missing().length > 0 && played < theatre.patience * count) {
    yield* playUpTo(played + theatre.atOnce)
  }
  const seconds = (performance.now() - began) / 1000
  yield* Console.log(coverage.table())
  const missing = coverage.missing()
  if (missing.length > 0) yield* Console.log(`never reached:\n  ${missing.join("\n  ")}`)
  const pace = `${seconds.toFixed(1)} s (${(played / seconds).toFixed(1)} a second)`
  yield* Console.log(`${played} seeds from ${first} in ${pace}: ${failed} failed; longest recovery ${slowest} ms`)
  if (failed > 0 || missing.length > 0) yield* fail
})

/** Each mechanism taken out in turn. */
const mutations = Effect.fnUntraced(function*(theatre: Theatre, first: number, most: number) {
  for (const name of theatre.mutations) {
    let seed = first
    let found = yield* theatre.play(seed, name)
    while (found.violations.length === 0 && seed < first + most - 1) found = yield* theatre.play(++seed, name)
    const isRed = found.violations.length > 0
    const verdict = isRed ? `red after ${seed - first + 1}: ${found.violations[0]}` : `green after ${most}`
    yield* Console.log(`${name.padEnd(44)} ${verdict}`)
    if (!isRed) yield* fail
  }
})

const program = Effect.gen(function*() {
  const theatre = values.postgres ? yield* onPostgres : inMemory
  const first = whole("seed", 1)
  if (values.mutation !== undefined && !theatre.mutations.includes(values.mutation)) {
    throw new Error(`--mutation is one of: ${theatre.mutations.join(", ")}`)
  }
  if (values.mutations) return yield* mutations(theatre, first, whole("seeds", 1000))
  return values.seeds === undefined ? yield* one(theatre, first) : yield* many(theatre, first, whole("seeds", 0))
})

NodeRuntime.runMain(Effect.scoped(program))
