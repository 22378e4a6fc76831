/**
 * Workers join, leave and die under load, without any wake-ups. `Guarantees.test.ts` runs the same scenario with them.
 *
 * @module-tag long
 */
import { test } from "./Live.ts"
import * as Scenarios from "./Scenarios.ts"

/** Without presence, missed heartbeats reveal a death; without LISTEN, polling finds everything else. */
const options = { presence: false, listen: false }

test("workers join, leave and die under load, without presence and LISTEN", function*() {
  yield* Scenarios.membership(options)
})
