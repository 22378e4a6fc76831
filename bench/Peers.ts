/** What the library is compared with: packages of their own, which are installed when a benchmark first needs them. */
import { Effect } from "effect"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import { fileURLToPath } from "node:url"
import * as Contender from "./Contender.ts"

const directory = fileURLToPath(new URL("peers", import.meta.url))

export const install: Effect.Effect<void, Contender.ContenderFailed> = Effect.suspend(() =>
  Fs.existsSync(`${directory}/node_modules/.package-lock.json`) ? Effect.void : npmCi
)

const npmCi = Effect.callback<void, Contender.ContenderFailed>((resume) => {
  const args = ["ci", "--prefix", directory, "--no-audit", "--no-fund", "--ignore-scripts"]
  ChildProcess.execFile("npm", args, { shell: process.platform === "win32" }, (error, _, stderr) =>
    resume(
      error === null
        ? Effect.void
        : Effect.fail(new Contender.ContenderFailed({ contender: "npm ci", detail: stderr || error.message }))
    ))
})

/** The version of an installed package. */
export const version = (name: string): string =>
  JSON.parse(Fs.readFileSync(`${directory}/node_modules/${name}/package.json`, "utf8")).version
