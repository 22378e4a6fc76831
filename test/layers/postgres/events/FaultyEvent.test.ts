import { assert, describe, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Schema from "effect/Schema"
import * as FaultyEvent from "../../../../src/layers/postgres/events/FaultyEvent.ts"
import { StoreFailure } from "../../../../src/schema/Errors.ts"

const int = (minimum: number, maximum: number) => Schema.Int.pipe(Schema.check(Schema.isBetween({ minimum, maximum })))

const failureAt = (position: bigint) =>
  new StoreFailure({ operation: "read", detail: String(position), cause: "damage" })

/** A check that fails at the first damaged event, or takes too long if more than `most` positions precede it. */
const checkOf = (damaged: ReadonlyArray<bigint>, most: bigint) => {
  let statements = 0
  const check = (after: bigint, upTo: bigint) =>
    Effect.sync(() => {
      statements++
      const first = damaged.find((position) => after < position && position <= upTo)
      return (first ?? upTo) - after > most ? "timeout" as const : first === undefined ? undefined : failureAt(first)
    })
  return { check, statements: () => statements }
}

describe("find", () => {
  it.effect.prop(
    "returns the first event that cannot be read, in few statements that each stop in time",
    { damaged: Schema.Array(int(1, 5_000)), after: int(0, 5_000), most: int(1, 5_000) },
    ({ after, damaged, most }) =>
      Effect.gen(function*() {
        const positions = damaged.map(BigInt).sort((one, other) => one < other ? -1 : one > other ? 1 : 0)
        const { check, statements } = checkOf(positions, BigInt(most))
        const found = yield* FaultyEvent.find(check, BigInt(after), 5_001n)
        assert.strictEqual(found?.position, positions.find((position) => position > BigInt(after)))
        assert.strictEqual(found?.failure.detail, found === undefined ? undefined : String(found.position))
        assert.isBelow(statements(), 60 + 5 * 5_000 / most)
      }),
    { arbitrary: { runs: 300, size: 20, seed: "faulty event" } }
  )

  it.effect("blames no event if reading no row fails as well, or the event can be read alone", () =>
    Effect.gen(function*() {
      const always = () => Effect.succeed(failureAt(1n))
      assert.isUndefined(yield* FaultyEvent.find(always, 0n, 10n))
      let statements = 0
      const once = () => Effect.sync(() => ++statements === 1 ? failureAt(1n) : undefined)
      assert.isUndefined(yield* FaultyEvent.find(once, 0n, 10n))
    }))
})
