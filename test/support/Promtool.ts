/** Runs promtool. The program is in Debian's package `prometheus`. */
import { spawnSync } from "node:child_process"

/** Why promtool cannot be run on this machine, if it cannot. */
export const missing = spawnSync("promtool", ["--version"]).error === undefined
  ? undefined
  : "promtool is not installed: apt-get install prometheus"

/** Runs promtool to its end in a folder; returns its exit code and everything that it printed. */
export const run = (cwd: string, args: ReadonlyArray<string>, input = "") => {
  const { error, status, stderr, stdout } = spawnSync("promtool", args, { cwd, input, encoding: "utf8" })
  if (error !== undefined) throw error
  return { code: status, output: stdout + stderr }
}
