/** The examples: every folder of examples with a program `main.ts`. */
import { globSync, readFileSync } from "node:fs"
import { dirname, resolve } from "node:path"
import { fileURLToPath } from "node:url"

export const folder = fileURLToPath(new URL("../examples/", import.meta.url))

export const names: ReadonlyArray<string> = globSync("*/main.ts", { cwd: folder }).map((path) => dirname(path))
  .toSorted()

/** The first sentence of an example's README. */
export const summary = (name: string): string => {
  const [, text = ""] = readFileSync(resolve(folder, name, "README.md"), "utf8").split("\n\n")
  return /^.*?\.(?=\s|$)/s.exec(text)?.[0].replaceAll(/\s+/g, " ") ?? ""
}

/** How each example runs to its end without a terminal: programs of its folder with their arguments, one after the other. */
export const runs = (name: string): ReadonlyArray<ReadonlyArray<string>> =>
  name === "basic" || name === "typed-events" ? [["append.ts"], ["main.ts", "--once"]] : [["main.ts", "--once"]]
