/** Tests written as generators, with what each of them starts from. */
import { it, type Vitest } from "@effect/vitest"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
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
  register(
    given,
    (name, steps, options) => it.live(name, () => Effect.provide(withChildren(Effect.scoped(steps)), layer), options)
  )

/**
 * Ends with the fibers that `self` has forked. Otherwise they would end only after the layer of the test, whose pool
 * waits for the connections that they have checked out, so that a test whose assertion fails would never end.
 */
export const withChildren = <A, E, R>(self: Effect.Effect<A, E, R>): Effect.Effect<A, E, R> =>
  Effect.flatMap(
    Effect.forkChild(self, { startImmediately: true }),
    (fiber) => Effect.onInterrupt(Fiber.join(fiber), () => Fiber.interrupt(fiber))
  )

/**
 * Waits until a fiber has reached a place in its work, and fails if it ends before: with only `Deferred.await`, a test
 * would wait forever for a batch that could not begin in time.
 */
export const reached = <A, E>(place: Deferred.Deferred<A>, fiber: Fiber.Fiber<unknown, E>): Effect.Effect<A, E> =>
  Effect.raceFirst(
    Deferred.await(place),
    Effect.andThen(Fiber.join(fiber), Effect.die(new Error("The fiber has ended before it reached the place.")))
  )

/** The URL of the test's database. */
export const url = Effect.map(PostgresTest.TestDatabase, ({ url }) => url)

/** Tests in real time, each on an empty database. */
export const postgres = live(PostgresTest.layer, Effect.all({ sql: SqlClient.SqlClient, url }))
