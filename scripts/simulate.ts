/**
 * `npm run simulate`: the deterministic simulation.
 *
 * - `npm run simulate -- --seed N`: one seed, with its trace.
 * - `npm run simulate -- --seeds N [--seed FIRST]`: many seeds, and what they covered.
 * - `npm run simulate -- --mutations [--seeds N]`: each mechanism taken out in turn, and how many seeds notice it.
 */
import { parseArgs } from "node:util"
import { Coverage } from "../test/simulation/Coverage.ts"
import { mutations, none } from "../test/simulation/Mutations.ts"
import { simulate } from "../test/simulation/Simulation.ts"

const { values } = parseArgs({
  options: {
    seed: { type: "string" },
    seeds: { type: "string" },
    mutation: { type: "string" },
    mutations: { type: "boolean", default: false }
  }
})

const whole = (name: string, text: string | undefined, otherwise: number): number => {
  const value = text === undefined ? otherwise : Number(text)
  if (!Number.isSafeInteger(value) || value < 0) throw new Error(`--${name} must be a whole number`)
  return value
}

/** A long run says so often how far it has come. */
const progressMillis = 30_000

const first = whole("seed", values.seed, 1)
const mutation = values.mutation === undefined ? none : mutations[values.mutation]
if (mutation === undefined) throw new Error(`--mutation is one of: ${Object.keys(mutations).join(", ")}`)

if (values.mutations) {
  const most = whole("seeds", values.seeds, 1000)
  for (const [name, mutation] of Object.entries(mutations)) {
    let seed = first
    let found = simulate(seed, mutation)
    while (found.violations.length === 0 && seed < first + most - 1) found = simulate(++seed, mutation)
    const red = found.violations.length > 0
    console.log(
      `${name.padEnd(44)} ${red ? `red after ${seed - first + 1}: ${found.violations[0]}` : `green after ${most}`}`
    )
    if (!red) process.exitCode = 1
  }
} else if (values.seeds === undefined) {
  const outcome = simulate(first, mutation)
  console.log(outcome.trace.join("\n"))
  console.log(
    outcome.violations.length === 0
      ? `seed ${first}: ${outcome.events} events, ${outcome.faults} joins and faults, recovered after ${outcome.recoveredAfter} ms`
      : `seed ${first} violates:\n${outcome.violations.join("\n")}`
  )
  if (outcome.violations.length > 0) process.exitCode = 1
} else {
  const count = whole("seeds", values.seeds, 0)
  const coverage = new Coverage()
  const began = performance.now()
  let failed = 0
  let slowest = 0
  let said = began
  for (let seed = first; seed < first + count; seed++) {
    const outcome = simulate(seed, mutation)
    coverage.add(outcome.coverage)
    slowest = Math.max(slowest, outcome.recoveredAfter ?? 0)
    if (outcome.violations.length > 0) {
      failed++
      console.log(`seed ${seed}: ${outcome.violations[0]}\n  npm run simulate -- --seed ${seed}`)
    }
    if (performance.now() - said > progressMillis) {
      said = performance.now()
      console.log(
        `${seed - first + 1} of ${count} seeds after ${Math.round((said - began) / 1000)} s, ${failed} failed`
      )
    }
  }
  const seconds = (performance.now() - began) / 1000
  console.log(coverage.table())
  const missing = coverage.missing()
  if (missing.length > 0) console.log(`never reached:\n  ${missing.join("\n  ")}`)
  console.log(
    `${count} seeds from ${first} in ${seconds.toFixed(1)} s (${
      (count / seconds).toFixed(1)
    } a second): ${failed} failed; longest recovery ${slowest} ms`
  )
  if (failed > 0 || missing.length > 0) process.exitCode = 1
}
