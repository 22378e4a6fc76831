/** The command `parked`: lists the parked events of a projection, and requests that they are retried or dropped. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { hostname, userInfo } from "node:os"
import { InvalidSettings } from "../schema/Errors.ts"
import type { ParkedEvent, Request } from "../schema/ParkedEvent.ts"
import { Projections } from "../services/Projections.ts"
import { all, json, oneFlag, partFlags, projectionName, selectionOf } from "./ParkedFlags.ts"
import * as ParkedText from "./ParkedText.ts"
import { databaseFlags, withProjections } from "./ProjectionsLive.ts"

/** The exit code if a request selects no event. */
const nothingSelected = 2

const list = Command.make(
  "list",
  { ...databaseFlags, projection: projectionName, ...partFlags, json },
  Effect.fnUntraced(function*({ error, first, json, key, projection, ...database }) {
    const selection = yield* selectionOf({ all: false, error, first, key })
    const events = yield* withProjections(
      database,
      Effect.flatMap(Projections, ({ parked }) => parked(projection, selection)),
      { acceptStandby: true }
    )
    yield* print(events, json, events.length === 0 ? `No parked event of ${projection} matches.` : undefined)
  })
).pipe(Command.withDescription("List parked events. Exit code 0, even if there is none; 1: an error"))

const make = (request: Request, description: string) =>
  Command.make(
    request,
    {
      ...databaseFlags,
      projection: projectionName,
      all,
      ...partFlags,
      dryRun: Flag.Boolean("dry-run").pipe(
        Flag.withDescription("Only list the events that would be selected"),
        Flag.withDefault(false)
      ),
      json
    },
    Effect.fnUntraced(function*({ all, dryRun, error, first, json, key, projection, ...database }) {
      const selection = yield* selectionOf({ all, error, first, key })
      if (selection === undefined) {
        return yield* new InvalidSettings({ setting: "arguments", problem: `No events are selected. ${oneFlag}` })
      }
      const events = yield* withProjections(
        database,
        Effect.flatMap(Projections, ({ dropParked, retryParked }) =>
          (request === "retry" ? retryParked : dropParked)(projection, selection, { dryRun, requestedBy: user() })),
        { acceptStandby: dryRun }
      )
      process.exitCode = events.length === 0 ? nothingSelected : 0
      yield* print(events, json, summary(request, { dryRun, events: events.length, projection }))
    })
  ).pipe(Command.withDescription(`${description}. Exit code 0: requested; 1: an error; 2: no event is selected`))

const print = Effect.fnUntraced(function*(
  events: ReadonlyArray<ParkedEvent>,
  json: boolean,
  summary: string | undefined
) {
  if (events.length > 0) yield* Console.log(json ? ParkedText.renderJson(events) : ParkedText.render(events))
  if (summary !== undefined && !json) yield* Console.log(events.length > 0 ? `\n${summary}` : summary)
})

const summary = (
  request: Request,
  { dryRun, events, projection }: { readonly dryRun: boolean; readonly events: number; readonly projection: string }
): string => {
  const counted = `${events} parked ${events === 1 ? "event" : "events"} of ${projection}`
  if (events === 0) return `No parked event of ${projection} matches; nothing was requested.`
  if (dryRun) return `Nothing was requested. Without --dry-run, this would ${request} ${counted}.`
  return `Requested: ${request} ${counted}. Workers execute this within their\npollInterval; "parked list" shows the events that remain, with their errors.`
}

/** The user of the operating system, whose name is recorded with the request. */
const user = (): string => {
  try {
    return `${userInfo().username}@${hostname()}`
  } catch {
    // In a container, the id of the user may have no name.
    return `uid ${process.getuid?.() ?? "unknown"}@${hostname()}`
  }
}

export const command = Command.make("parked").pipe(
  Command.withDescription("List, retry or drop the parked events of a projection"),
  Command.withSubcommands([
    list,
    make("retry", "Handle parked events again, in order, before new events"),
    make("drop", "Remove parked events without handling them")
  ])
)
