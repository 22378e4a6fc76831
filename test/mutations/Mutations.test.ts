/**
 * Each guarantee on PostgreSQL depends on these mechanisms: every scenario passes with the unchanged library and fails
 * when its mechanism is removed.
 *
 * @module-tag long
 */
import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as SqlClient from "effect/sql/SqlClient"
import * as Migrations from "../../src/layers/postgres/Migrations.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import { entries } from "./Mutations.ts"
import type { Scenario } from "./Scenarios.ts"
import { isUnmet, type Mutation, none } from "./World.ts"

const most = 20
const times = 3

const run = (scenario: Scenario, mutation: Mutation) =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    yield* sql`CREATE TABLE effects (event text)`
    return yield* scenario(mutation)
  }).pipe(Effect.scoped, Effect.provide(Migrations.layer.pipe(Layer.provideMerge(PostgresTest.layer))))

describe("mutations on PostgreSQL", { concurrent: true }, () => {
  const scenarios = new Map(entries.map((entry) => [entry.scenario, entry.mechanism]))
  for (const [scenario, mechanism] of scenarios) {
    it.live(`passes with every mechanism in place: ${mechanism}`, () =>
      Effect.gen(function*() {
        for (let turn = 0; turn < times; turn++) assert.deepStrictEqual(yield* run(scenario, none), [])
      }))
  }

  it.live.each(entries)("fails without: $mechanism", (entry) =>
    Effect.gen(function*() {
      for (let turn = 1; turn <= most; turn++) {
        const [violation] = yield* run(entry.scenario, entry)
        assert.isFalse(isUnmet(entry), "a clause or session of the mutation does not occur")
        if (violation === undefined) continue
        process.stdout.write(`on PostgreSQL, ${entry.mechanism}: detected after ${turn} of ${most}: ${violation}\n`)
        return
      }
      assert.fail(`not detected in ${most} runs`)
    }))
})
