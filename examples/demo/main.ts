/**
 * Worker processes join, die and leave while two projections handle real data. At the end, all totals are compared with
 * the source data. `npm run demo`; see README.md.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import { Cause, Console, Effect, Layer } from "effect"
import { SqlError } from "effect/sql"
import { PostgresStores } from "pupsourcing-orchestrator"
import * as ExampleDatabase from "../../src/testing/ExampleDatabase.ts"
import { compare } from "./Comparison.ts"
import * as Database from "./Database.ts"
import { DemoFailed } from "./DemoFailed.ts"
import * as Fleet from "./Fleet.ts"
import * as Flights from "./Flights.ts"
import * as Ledger from "./Ledger.ts"
import { tables } from "./projections.ts"
import * as Steps from "./Steps.ts"
import { count } from "./Table.ts"
import * as Table from "./Table.ts"

/** Differences that are printed; the rest is counted. */
const shownDifferences = 10

const demo = Effect.fnUntraced(function*(url: Parameters<typeof Fleet.make>[0], screen: Table.Screen) {
  const flights = yield* Flights.load
  const expected = Flights.totals(flights)
  const ledger = yield* Ledger.make(flights)
  yield* screen.print(
    `${count(flights.length)} flights make ${count(ledger.total)} events of ${
      count(expected.airports.size)
    } airports\n` +
      `Data: ${Flights.source}`
  )
  const fleet = yield* Fleet.make(url)
  yield* Effect.raceFirst(Steps.run({ flights, ledger, fleet, screen }), fleet.unexpectedEnd)

  const { compared, differences } = yield* compare(expected)
  yield* screen.print(`Compared with the totals of the file, every airport and every route:\n${compared.join("\n")}`)
  if (differences.length > 0) {
    const more = differences.length - shownDifferences
    return yield* new DemoFailed({
      problem: `The read models differ from the file in ${count(differences.length)} places:\n${
        [...differences.slice(0, shownDifferences), ...(more > 0 ? [`… and ${count(more)} more`] : [])].join("\n")
      }`
    })
  }
  yield* screen.print(
    "All equal: each event was handled exactly once, and each airport's in order.\n" +
      `To look at it: npm run db -- sql "SELECT * FROM ${Database.schema}.airport_traffic"`
  )
})

const program = Effect.gen(function*() {
  const screen = yield* Table.make
  const url = yield* ExampleDatabase.url
  const Client = Database.layer(url, "demo")
  const Live = PostgresStores.layer.pipe(
    Layer.provide(Layer.effectDiscard(tables)),
    Layer.provide(PostgresStores.layerMigrations),
    Layer.provide(Database.layerFresh),
    Layer.provideMerge(Client)
  )
  yield* demo(url, screen).pipe(Effect.scoped, Effect.provide(Live), Effect.ensuring(screen.clear))
})

const describe = (cause: Cause.Cause<unknown>): string => {
  const error = Cause.squash(cause)
  if (SqlError.isSqlError(error) && error.reason.cause instanceof Error) return error.reason.cause.message
  return cause.reasons.some(Cause.isDieReason) || !(error instanceof Error) ? Cause.pretty(cause) : error.message
}

NodeRuntime.runMain(
  program.pipe(
    Effect.onInterrupt(() => Console.error("\nInterrupted; the workers are stopped.")),
    Effect.tapCause((cause) => Console.error(`\nThe demo failed. ${describe(cause)}`))
  ),
  { disableErrorReporting: true }
)
