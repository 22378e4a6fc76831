/**
 * Whole replica sets under virtual time, a seeded scheduler and random faults; see `simulation/README.md`. A seed that
 * fails here says the same with `npm run simulate -- --seed N`.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Coverage from "./simulation/Coverage.ts"
import { simulate } from "./simulation/Simulation.ts"

const seeds = 1000
/** Between so many seeds the test runner gets a word in. */
const breath = 20

it.live("the same seed gives the same run, step by step", () =>
  Effect.sync(() => {
    for (let seed = 1; seed <= 25; seed++) {
      const once = simulate(seed)
      const again = simulate(seed)
      assert.isAbove(once.trace.length, 20)
      assert.deepStrictEqual(again.trace, once.trace)
    }
  }))

it.live(
  `${seeds} seeds keep the promises, and reach everything that can happen`,
  () =>
    Effect.gen(function*() {
      const coverage = new Coverage.Coverage(Coverage.virtual)
      for (let seed = 1; seed <= seeds; seed++) {
        const outcome = simulate(seed)
        assert.deepStrictEqual(outcome.violations, [], `npm run simulate -- --seed ${seed}`)
        assert.isAtLeast(outcome.events, 200, `seed ${seed}`)
        assert.isAtLeast(outcome.faults, 3, `seed ${seed}`)
        coverage.add(outcome.coverage)
        if (seed % breath === 0) yield* Effect.yieldNow
      }
      process.stdout.write(`\n${seeds} scenarios in virtual time\n${coverage.table()}\n`)
      assert.deepStrictEqual(coverage.missing(), [])
    }),
  300_000
)

/** Seeds that found something in the library, and what it was. */
const found = [
  [1, "a runner whose progress was overdue asked for it to be written without end and without writing it"],
  [67, "a range whose runner ended while a decision read its row was opened again from where it had stood before"],
  [66, "what people read of a worker was not written again when it could not be written at once"]
] as const

it.live.each(found)("seed %i: %s", ([seed]) => Effect.sync(() => assert.deepStrictEqual(simulate(seed).violations, [])))
