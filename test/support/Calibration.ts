/**
 * Measures how slow the machine currently is, compared with the machine on which the time limits of the tests were
 * chosen.
 */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Effect from "effect/Effect"
import * as Reactivity from "effect/reactivity/Reactivity"
import * as Redacted from "effect/Redacted"

/** How long one round of each measurement takes, in milliseconds. */
interface Times {
  readonly loop: number
  readonly statements: number
}

/** The times on the reference machine: two cores, otherwise idle. */
export const reference: Times = { loop: 5, statements: 8 }
const rounds = 15

const loop = Effect.sync(() => {
  let hash = 0
  for (let index = 0; index < 3_000_000; index++) hash = (Math.imul(hash, 31) + index) | 0
  return hash
})

/** The median of several rounds with pauses between them, so that a single burst of other work does not decide. */
const median = <A, E, R>(round: Effect.Effect<A, E, R>) =>
  Effect.gen(function*() {
    const times: Array<number> = []
    for (let index = 0; index < rounds; index++) {
      const start = performance.now()
      yield* round
      times.push(performance.now() - start)
      yield* Effect.sleep("10 millis")
    }
    return times.sort((a, b) => a - b)[Math.floor(rounds / 2)]!
  })

const statements = (url: string) =>
  Effect.gen(function*() {
    const sql = yield* PgClient.makeClient({ url: Redacted.make(url), applicationName: "test-calibration" })
    yield* sql`CREATE TEMPORARY TABLE calibration (n int)`
    return yield* median(Effect.repeat(sql`INSERT INTO calibration VALUES (1)`, { times: 40 }))
  }).pipe(Effect.provide(Reactivity.layer), Effect.scoped)

/** The larger of the two ratios to the reference machine, rounded up to tenths; from 1 to 10. */
export const slownessOf = ({ loop, statements }: Times): number =>
  Math.min(10, Math.max(1, Math.ceil(10 * Math.max(loop / reference.loop, statements / reference.statements)) / 10))

/** Measures the slowness of the machine, with statements to this server. */
export const measure = Effect.fnUntraced(function*(url: string) {
  return slownessOf({ loop: yield* median(loop), statements: yield* statements(url) })
})
