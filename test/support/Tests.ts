/** Tests written as generators, with what each of them starts from. */
import { it, type Vitest } from "@effect/vitest"
import * as Effect from "effect/Effect"
import type * as Layer from "effect/Layer"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"

/** The steps of a test. */
export type Steps<Given, R> = (given: Given) => Generator<Effect.Effect<unknown, unknown, R>, void, never>

type Options = Exclude<Parameters<Vitest.Test<never>>[2], number>

/** Registers a test; options come before its steps, because those are long. */
export interface Register<Given, R, O = Options> {
  (name: string, steps: Steps<Given, R>): void
  (name: string, options: O, steps: Steps<Given, R>): void
}

/** Makes a {@link Register} out of a function that takes an effect. */
export const register = <Given, R, O>(
  given: Effect.Effect<Given, unknown, R>,
  add: (name: string, test: Effect.Effect<void, unknown, R>, options: O | undefined) => void
): Register<Given, R, O> =>
(name: string, ...rest: [Steps<Given, R>] | [O, Steps<Given, R>]) => {
  const [options, steps] = rest.length === 1 ? [undefined, rest[0]] : rest
  add(name, Effect.flatMap(given, (given) => Effect.gen(() => steps(given))), options)
}

/** Tests on `it.effect` or `it.live`; each starts with the result of `given`. */
export const on = <R, Given = void>(
  test: Vitest.Test<R>,
  given: Effect.Effect<Given, unknown, NoInfer<R>> = Effect.void as Effect.Effect<never>
): Register<Given, R> => register(given, (name, steps, options) => test(name, () => steps, options))

/** Tests in real time, each with a new build of `layer`. */
export const live = <R, Given = void>(
  layer: Layer.Layer<R, unknown>,
  given: Effect.Effect<Given, unknown, NoInfer<R> | Scope.Scope> = Effect.void as Effect.Effect<never>
): Register<Given, R | Scope.Scope> =>
  register(given, (name, steps, options) => it.live(name, () => Effect.provide(Effect.scoped(steps), layer), options))

/** The URL of the test's database. */
export const url = Effect.map(PostgresTest.TestDatabase, ({ url }) => url)

/** Tests in real time, each on an empty database. */
export const postgres = live(PostgresTest.layer, Effect.all({ sql: SqlClient.SqlClient, url }))
