/**
 * The simulation can fail: with any one mechanism removed, a few seeds suffice to find a violated guarantee.
 *
 * @module-tag long
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import { mutations } from "./Mutations.ts"
import { simulate } from "./Simulation.ts"

const most = 1000

it.live.each(Object.keys(mutations))("the checkers detect the absence of: %s", (name) =>
  Effect.gen(function*() {
    for (let seed = 1; seed <= most; seed++) {
      const { violations } = simulate(seed, mutations[name])
      if (violations.length > 0) {
        process.stdout.write(`in memory, ${name}: detected after ${seed} seeds: ${violations[0]}\n`)
        return
      }
      if (seed % 20 === 0) yield* Effect.yieldNow
    }
    assert.fail(`not detected in ${most} seeds`)
  }))
