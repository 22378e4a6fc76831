/** The arguments of `npm run bench`. */
import { parseArgs } from "node:util"
import type { Benchmark } from "./Benchmark.ts"

export interface Options {
  /** What to run, in the order of the registry. */
  readonly benchmarks: ReadonlyArray<Benchmark>
  readonly list: boolean
  readonly json: boolean
  readonly record: boolean
  readonly rounds: number
}

/** Returns the options, or what is wrong with the arguments. */
export const parse = (args: ReadonlyArray<string>, registry: ReadonlyArray<Benchmark>): Options | string => {
  const parsed = parseStrictly(args)
  if (typeof parsed === "string") return parsed
  const { positionals, values } = parsed
  const unknown = positionals.filter((name) => !registry.some((benchmark) => benchmark.name === name))
  if (unknown.length > 0) {
    return `No benchmark is named ${unknown.map((name) => `"${name}"`).join(", ")}. ` +
      `The names are ${registry.map(({ name }) => name).join(", ")}.`
  }
  const rounds = Number(values.rounds)
  if (!Number.isSafeInteger(rounds) || rounds < 1) {
    return `--rounds is "${values.rounds}", but must be a whole number above 0.`
  }
  return {
    benchmarks: registry.filter(({ isLong, name }) => positionals.length === 0 ? !isLong : positionals.includes(name)),
    list: values.list,
    json: values.json,
    record: values.record,
    rounds
  }
}

const parseStrictly = (args: ReadonlyArray<string>) => {
  try {
    return parseArgs({
      args: [...args],
      allowPositionals: true,
      options: {
        list: { type: "boolean", default: false },
        json: { type: "boolean", default: false },
        record: { type: "boolean", default: false },
        rounds: { type: "string", default: "5" }
      }
    })
  } catch (error) {
    return (error as Error).message
  }
}
