/** The command `migrate`. */
import * as Command from "effect/cli/Command"
import { down } from "./MigrateDown.ts"
import { migrate } from "./MigrateFlags.ts"
import { generate } from "./MigrateGenerate.ts"
import { status } from "./MigrateStatus.ts"
import { up } from "./MigrateUp.ts"

export const command = migrate.pipe(Command.withSubcommands([generate, up, down, status]))
