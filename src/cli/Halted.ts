/** The commands `retry` and `skip`: what to do with the event at which a range is halted. */
import * as Argument from "effect/cli/Argument"
import * as Command from "effect/cli/Command"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import type { HaltRequest } from "../schema/ParkedEvent.ts"
import { Projections } from "../services/Projections.ts"
import { projectionName } from "./ParkedFlags.ts"
import { databaseFlags, withProjections } from "./ProjectionsLive.ts"

const make = (request: HaltRequest, description: string) =>
  Command.make(
    request,
    {
      ...databaseFlags,
      projection: projectionName,
      eventId: Argument.String("event-id").pipe(
        Argument.withDescription("The id of the event at which a range is halted; \"status --json\" shows it")
      )
    },
    Effect.fnUntraced(function*({ eventId, projection, ...database }) {
      const ask = Effect.flatMap(Projections, ({ retryHalted, skipHalted }) =>
        (request === "retry" ? retryHalted : skipHalted)(projection, eventId))
      yield* withProjections(database, ask)
      yield* Console.log(
        `Requested: ${request} event ${eventId} of ${projection}. The worker that owns the range executes this\n` +
          "within its pollInterval; \"status\" shows whether the range is still halted."
      )
    })
  ).pipe(Command.withDescription(`${description}. Exit code 0: requested; 1: an error, or no range is halted there`))

export const retry = make("retry", "Handle the event at which a range is halted again, without a restart")

export const skip = make("skip", "Continue a halted range after its event, without handling the event")
