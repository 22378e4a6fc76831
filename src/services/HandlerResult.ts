/** What a handler may return, and what its Effect may succeed with. */
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Predicate from "effect/Predicate"
import * as Stream from "effect/Stream"
import { HandlerResultUnused } from "../schema/Errors.ts"

/** Returns the Effect that a handler has returned; one that dies if it is something else. */
export const effectOf = (result: unknown): Effect.Effect<unknown, unknown, unknown> =>
  Effect.isEffect(result)
    ? result as Effect.Effect<unknown, unknown, unknown>
    : Effect.die(new HandlerResultUnused({ result: "not an Effect" }))

/**
 * Returns the kind of a handler's success value that should have been run, awaited or raised, otherwise `undefined`. An
 * Exit and yieldable errors are Effects too; a successful Exit is harmless. For an array, only the first element is
 * checked.
 */
export const unusedResult = (value: unknown): HandlerResultUnused["result"] | undefined => {
  const result: unknown = Array.isArray(value) ? value[0] : value
  if (Exit.isExit(result)) return Exit.isFailure(result) ? "failure" : undefined
  if (Effect.isEffect(result)) return result instanceof Error ? "failure" : "Effect"
  return Stream.isStream(result) ? "Stream" : Predicate.isPromiseLike(result) ? "Promise" : undefined
}
