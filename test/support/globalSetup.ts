/**
 * The PostgreSQL server of a test run: the one in `DATABASE_URL`, otherwise the checkout's own for tests. Runs that overlap share it, and the
 * last one to end stops it.
 */
import { Effect, Exit, Scope } from "effect"
import type { TestProject } from "vitest/node"
import * as EmbeddedPostgres from "../../scripts/EmbeddedPostgres.ts"

declare module "vitest" {
  interface ProvidedContext {
    /** Connection URL of a role that may create databases. */
    readonly pgUrl: string
  }
}

export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const scope = Scope.makeUnsafe()
  const given = process.env["DATABASE_URL"]
  const url = given === undefined || given === ""
    ? EmbeddedPostgres.acquire({ name: "test" }).pipe(Scope.provide(scope), Effect.map((server) => server.url))
    : Effect.succeed(given)
  const close = (exit: Exit.Exit<unknown, unknown>) => Scope.close(scope, exit)
  project.provide("pgUrl", await Effect.runPromise(Effect.onError(url, (cause) => close(Exit.failCause(cause)))))
  return () => Effect.runPromise(close(Exit.void))
}
