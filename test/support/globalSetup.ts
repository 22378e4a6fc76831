/**
 * The PostgreSQL server of a test run: the one in `DATABASE_URL`, otherwise the checkout's own for tests. Runs that overlap share it, and the
 * last one to end stops it. Also measures how slow the machine is; see `TimeLimits.ts`.
 */
import { Effect, Exit, Scope } from "effect"
import type { TestProject } from "vitest/node"
import * as EmbeddedPostgres from "../../src/testing/EmbeddedPostgres.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import { measure } from "./Calibration.ts"

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const scope = Scope.makeUnsafe()
  const given = process.env["DATABASE_URL"]
  const url = given === undefined || given === ""
    ? EmbeddedPostgres.acquire({ name: "test" }).pipe(Scope.provide(scope), Effect.map((server) => server.url))
    : Effect.succeed(given)
  const close = (exit: Exit.Exit<unknown, unknown>) => Scope.close(scope, exit)
  const begin = Effect.gen(function*() {
    const pgUrl = yield* url
    // May be set in advance: for a machine whose load is about to change, or by a test of the limits themselves.
    const known = process.env[TimeLimits.variable] === undefined ? undefined : TimeLimits.slowness
    return { pgUrl, slowness: known ?? (yield* measure(pgUrl)) }
  })
  const { pgUrl, slowness } = await Effect.runPromise(
    Effect.onError(begin, (cause) => close(Exit.failCause(cause)))
  )
  process.env[PostgresTest.serverVariable] = pgUrl
  process.env[TimeLimits.variable] = String(slowness)
  const short = project.vitest.config.tagsFilter?.includes("!long") === true
  console.log([
    short
      ? "\nUnit tests, the conformance suites in memory and on a real PostgreSQL, 200 simulated histories, and one scenario with real"
        + "\nworker processes per guarantee (P1 to P6). npm run test:all runs the long tests too, which count as skipped here."
      : "\nAll tests, the long ones included; npm test leaves those out.",
    slowness > 1
      ? `This machine is ${slowness} times slower than the reference machine at the moment: time limits are extended.\n`
      : ""
  ].join("\n"))
  return () => Effect.runPromise(close(Exit.void))
}
