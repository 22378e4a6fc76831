/**
 * Workers join, leave and die under load, without any wake-ups. `Guarantees.test.ts` runs the same scenario with them.
 *
 * @module-tag long
 */
import { describe, it } from "@effect/vitest"
import { Effect } from "effect"
import * as Harness from "./Harness.ts"
import * as Scenarios from "./Scenarios.ts"

/** Without presence, missed heartbeats reveal a death; without LISTEN, polling finds everything else. */
const options = { presence: false, listen: false }

describe("membership", { concurrent: false }, () => {
  it.live(
    "workers join, leave and die under load, without presence and LISTEN",
    () => Scenarios.membership(options).pipe(Effect.scoped, Effect.provide(Harness.layer))
  )
})
