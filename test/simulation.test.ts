/**
 * Whole replica sets under virtual time, a seeded scheduler and random faults; see `simulation/README.md`. A seed that
 * fails here fails in the same way with `npm run simulate -- --seed N`.
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Coverage from "./simulation/Coverage.ts"
import { simulate } from "./simulation/Simulation.ts"

/** Seeds after which the test runner can run for a moment. */
const breath = 20

const same = (first: number, last: number) =>
  Effect.sync(() => {
    for (let seed = first; seed <= last; seed++) {
      const once = simulate(seed)
      const again = simulate(seed)
      assert.isAbove(once.trace.length, 20)
      assert.deepStrictEqual(again.trace, once.trace)
    }
  })

const keep = Effect.fnUntraced(function*(coverage: Coverage.Coverage, first: number, last: number) {
  for (let seed = first; seed <= last; seed++) {
    const outcome = simulate(seed)
    assert.deepStrictEqual(outcome.violations, [], `npm run simulate -- --seed ${seed}`)
    assert.isAtLeast(outcome.events, 200, `seed ${seed}`)
    assert.isAtLeast(outcome.faults, 3, `seed ${seed}`)
    coverage.add(outcome.coverage)
    if (seed % breath === 0) yield* Effect.yieldNow
  }
  return coverage
})

/** Run once per process: the test of 1000 seeds continues where the test of 200 seeds ends. */
const first200 = Effect.runSync(Effect.cached(keep(new Coverage.Coverage(Coverage.virtual), 1, 200)))

it.live("the same seed gives the same run, step by step", () => same(1, 5))

it.live("the same seed gives the same run, step by step, for 20 more seeds", () => same(6, 25), { tags: ["long"] })

it.live("200 seeds keep the promises", () => first200)

it.live(
  "1000 seeds keep the promises, and reach everything that can happen",
  () =>
    Effect.gen(function*() {
      const coverage = yield* Effect.flatMap(first200, (coverage) => keep(coverage, 201, 1000))
      process.stdout.write(`\n1000 scenarios in virtual time\n${coverage.table()}\n`)
      assert.deepStrictEqual(coverage.missing(), [])
    }),
  { tags: ["long"] }
)
