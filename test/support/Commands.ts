/** Runs the command-line tool as users do. */
import * as Effect from "effect/Effect"
import * as ChildProcess from "node:child_process"
import { fileURLToPath } from "node:url"

const main = fileURLToPath(new URL("../../src/cli/main.ts", import.meta.url))
// Halves the start-up time of each process.
const compileCache = fileURLToPath(new URL("../../node_modules/.cache/compile", import.meta.url))

export interface Run {
  readonly code: number
  readonly out: string
  readonly err: string
}

/** Runs the real command in a separate process; `url` becomes DATABASE_URL, `directUrl` ORCHESTRATOR_DIRECT_URL. */
export const run = (args: ReadonlyArray<string>, url?: string, directUrl?: string) =>
  Effect.callback<Run>((resume) => {
    const { DATABASE_URL: _, ...env } = process.env
    const child = ChildProcess.execFile(
      process.execPath,
      [main, ...args],
      {
        env: {
          ...env,
          NO_COLOR: "1",
          NODE_COMPILE_CACHE: compileCache,
          ...(url === undefined ? {} : { DATABASE_URL: url }),
          ...(directUrl === undefined ? {} : { ORCHESTRATOR_DIRECT_URL: directUrl })
        }
      },
      (error, out, err) =>
        resume(
          Effect.succeed({ code: error === null ? 0 : typeof error.code === "number" ? error.code : -1, out, err })
        )
    )
    return Effect.sync(() => child.kill())
  })
