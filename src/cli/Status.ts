/** The command `status`: what the workers and projections of a database do. */
import * as Command from "effect/cli/Command"
import * as Flag from "effect/cli/Flag"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Schedule from "effect/Schedule"
import * as Schema from "effect/Schema"
import { Database } from "../layers/postgres/Database.ts"
import * as DatabaseLive from "../layers/postgres/DatabaseLive.ts"
import * as ProjectionsPostgres from "../layers/postgres/status/ProjectionsPostgres.ts"
import * as Status from "../schema/Status.ts"
import { Projections } from "../services/Projections.ts"
import * as Settings from "../services/Settings.ts"
import { databaseUrl, withDatabase } from "./DatabaseUrl.ts"
import { nameFlags, toNames } from "./NameFlags.ts"
import * as StatusText from "./StatusText.ts"

/** The exit code if a range is halted or has no owner. */
const needsAttention = 2

/** The time between two outputs of `--watch`. */
const interval = "2 seconds"

const clearScreen = "\u001b[2J\u001b[H"

export const command = Command.make(
  "status",
  {
    databaseUrl,
    ...nameFlags,
    watch: Flag.Boolean("watch").pipe(
      Flag.withDescription(`Print the status again every ${interval}`),
      Flag.withDefault(false)
    ),
    json: Flag.Boolean("json").pipe(
      Flag.withDescription("Print JSON, one line for each status"),
      Flag.withDefault(false)
    )
  },
  Effect.fnUntraced(function*({ databaseUrl, json, watch, ...names }) {
    const render = json
      ? (status: Status.Status) => JSON.stringify(Schema.encodeSync(Schema.toCodecJson(Status.Status))(status))
      : (status: Status.Status) => `${watch ? clearScreen : ""}${StatusText.render(status)}`
    const show = Effect.gen(function*() {
      const status = yield* (yield* Projections).status
      yield* Console.log(render(status))
      process.exitCode = Status.problems(status).length === 0 ? 0 : needsAttention
    })
    const directUrl = yield* Settings.directUrl
    const projections = Layer.effect(Projections)(ProjectionsPostgres.make).pipe(
      Layer.provide(Layer.effect(Database)(DatabaseLive.make({ ...toNames(names), directUrl, acceptStandby: true })))
    )
    const output = watch ? Effect.repeat(show, Schedule.spaced(interval)) : show
    yield* withDatabase(databaseUrl, Effect.provide(output, projections))
  })
).pipe(
  Command.withDescription(
    "Show workers and projections. Exit code 0: every range is owned and none is halted; 1: an error; 2: a range is halted or has no owner"
  )
)
