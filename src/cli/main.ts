#!/usr/bin/env node
/** The command `pupsourcing-orchestrator`. */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as NodeServices from "@effect/platform-node/NodeServices"
import * as Cause from "effect/Cause"
import * as CliError from "effect/cli/CliError"
import * as Command from "effect/cli/Command"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { createRequire } from "node:module"
import * as Halted from "./Halted.ts"
import * as Migrate from "./Migrate.ts"
import * as Parked from "./Parked.ts"
import * as Status from "./Status.ts"

const { version } = createRequire(import.meta.url)("../../package.json") as { readonly version: string }

const root = Command.make("pupsourcing-orchestrator").pipe(
  Command.withDescription("Projections of a PostgreSQL event store, run by any number of worker processes"),
  Command.withSubcommands([Migrate.command, Status.command, Parked.command, Halted.retry, Halted.skip])
)

root.pipe(
  Command.run({ version }),
  // Invalid arguments have already been reported together with the help. All other errors are printed here, without a
  // stack.
  Effect.onError((cause) => {
    const error = Cause.squash(cause)
    return CliError.isCliError(error) || Cause.hasInterruptsOnly(cause)
      ? Effect.void
      : Console.error(error instanceof Error ? error.message : String(error))
  }),
  Effect.provide(NodeServices.layer),
  (main) => NodeRuntime.runMain(main, { disableErrorReporting: true })
)
