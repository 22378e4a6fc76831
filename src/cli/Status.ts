/** The command `status`: what the workers and projections of a database do. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import * as Status from "../schema/Status.ts"
import { Projections } from "../services/Projections.ts"
import { databaseFlags, withProjections } from "./ProjectionsLive.ts"
import * as StatusText from "./StatusText.ts"

/** The exit code if a range is halted or has no owner. */
const needsAttention = 2

/** The time between two outputs of `--watch`. */
const interval = "2 seconds"

const clearScreen = "\u001b[2J\u001b[H"

export const command = Command.make(
  "status",
  {
    ...databaseFlags,
    watch: Flag.Boolean("watch").pipe(
      Flag.withDescription(`Print the status again every ${interval}`),
      Flag.withDefault(false)
    ),
    json: Flag.Boolean("json").pipe(
      Flag.withDescription("Print JSON, one line for each status"),
      Flag.withDefault(false)
    )
  },
  Effect.fnUntraced(function*({ json, watch, ...database }) {
    const render = json
      ? (status: Status.Status) => JSON.stringify(Schema.encodeSync(Schema.toCodecJson(Status.Status))(status))
      : (status: Status.Status) => `${watch ? clearScreen : ""}${StatusText.render(status)}`
    const show = Effect.gen(function*() {
      const status = yield* (yield* Projections).status
      yield* Console.log(render(status))
      process.exitCode = Status.problems(status).length === 0 ? 0 : needsAttention
    })
    const output = watch ? Effect.repeat(show, Schedule.spaced(interval)) : show
    yield* withProjections(database, output, { acceptStandby: true })
  })
).pipe(
  Command.withDescription(
    "Show workers and projections. Exit code 0: every range is owned and none is halted; 1: an error; 2: a range is halted or has no owner"
  )
)
