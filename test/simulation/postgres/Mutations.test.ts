/**
 * The checkers work on PostgreSQL too: with a mechanism removed, a few seeds suffice to find a violated guarantee. The
 * other mutations of the table take longer: `npm run simulate -- --postgres --mutations`.
 *
 * @module-tag long
 */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as PostgresTest from "../../../src/testing/PostgresTest.ts"
import { mutations } from "./Mutations.ts"
import * as RealTime from "./RealTime.ts"

const most = 20

const quick = ["the decision lock", "the settled position"]

it.live.each(quick)("the checkers detect the absence of: %s", (name) =>
  Effect.gen(function*() {
    const template = yield* RealTime.prepare(PostgresTest.serverUrl())
    for (let seed = 1; seed <= most; seed++) {
      const { violations } = yield* RealTime.simulate(seed, { template, rewrite: mutations[name] })
      if (violations.length > 0) {
        process.stdout.write(`on PostgreSQL, ${name}: detected after ${seed} seeds: ${violations[0]}\n`)
        return
      }
    }
    assert.fail(`not detected in ${most} seeds`)
  }).pipe(Effect.scoped))
