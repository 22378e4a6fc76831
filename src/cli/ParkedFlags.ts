/** The flags of the commands about parked events. */
import * as Argument from "effect/cli/Argument"
import * as Flag from "effect/cli/Flag"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { InvalidSettings } from "../schema/Errors.ts"
import type { Selection } from "../schema/ParkedEvent.ts"

export const projectionName = Argument.String("projection").pipe(
  Argument.withDescription("The name of the projection")
)

/** The flags that select a part of the parked events. */
export const partFlags = {
  key: Flag.String("key").pipe(Flag.withDescription("The events of this key"), Flag.optional),
  error: Flag.String("error").pipe(
    Flag.withMetavar("tag"),
    Flag.withDescription("The events whose last error has this tag; a retry includes those that queue behind them"),
    Flag.optional
  ),
  first: Flag.Int("first").pipe(
    Flag.withMetavar("n"),
    Flag.filter((count) => count >= 1, (count) => `must be at least 1, not ${count}`),
    Flag.withDescription("The events with the n lowest positions"),
    Flag.optional
  )
}

export const all = Flag.Boolean("all").pipe(
  Flag.withDescription("All parked events of the projection"),
  Flag.withDefault(false)
)

export const json = Flag.Boolean("json").pipe(
  Flag.withDescription("Print JSON, one line for each event"),
  Flag.withDefault(false)
)

/** Returns the selection of the flags; undefined if there is none. Fails if there are several. */
export const selectionOf = ({ all, error, first, key }: {
  readonly all: boolean
  readonly error: Option.Option<string>
  readonly first: Option.Option<number>
  readonly key: Option.Option<string>
}): Effect.Effect<Selection | undefined, InvalidSettings> => {
  const given: ReadonlyArray<Selection> = [
    ...(all ? ["all" as const] : []),
    ...Option.toArray(Option.map(key, (key) => ({ key }))),
    ...Option.toArray(Option.map(error, (errorTag) => ({ errorTag }))),
    ...Option.toArray(Option.map(first, (first) => ({ first })))
  ]
  return given.length > 1
    ? Effect.fail(new InvalidSettings({ setting: "arguments", problem: `Several events are selected. ${oneFlag}` }))
    : Effect.succeed(given[0])
}

export const oneFlag = "Pass one of --all, --key, --error and --first."
