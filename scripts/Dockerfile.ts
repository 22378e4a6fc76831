/** Runs the instructions of a Dockerfile in folders, one for each stage, without a container engine. */
import { cpSync, mkdirSync } from "node:fs"
import { join } from "node:path"

export interface Instruction {
  readonly name: string
  readonly text: string
}

/** The instructions in their order. A heredoc and a parser directive other than `syntax` are not supported. */
export const parse = (text: string): ReadonlyArray<Instruction> =>
  text.replaceAll(/\\\n/g, " ").split("\n").map((line) => line.trim()).filter((line) =>
    line !== "" && !line.startsWith("#")
  ).map((line) => {
    const [name = "", ...rest] = line.split(/\s+/)
    return { name: name.toUpperCase(), text: rest.join(" ") }
  })

export interface Image {
  /** The folder of the last stage that WORKDIR names. */
  readonly directory: string
  readonly environment: Readonly<Record<string, string>>
  readonly user: string
  readonly command: ReadonlyArray<string>
}

interface Stage {
  readonly root: string
  directory: string
  environment: Record<string, string>
  user: string
  command: ReadonlyArray<string>
}

/**
 * Runs the instructions with the files of `context`. `run` executes the commands of RUN in a folder. Fails for an instruction that it
 * does not know.
 */
export const build = (
  instructions: ReadonlyArray<Instruction>,
  { context, into, run }: {
    readonly context: string
    readonly into: string
    readonly run: (command: string, directory: string, environment: Readonly<Record<string, string>>) => void
  }
): Image => {
  const stages = new Map<string, Stage>()
  let stage: Stage | undefined
  for (const { name, text } of instructions) {
    if (name === "FROM") {
      const key = /\bAS\s+(\S+)$/i.exec(text)?.[1] ?? String(stages.size)
      const root = join(into, key)
      stage = { root, directory: root, environment: {}, user: "root", command: [] }
      stages.set(key, stage)
    } else if (stage === undefined) {
      throw new Error(`${name} stands before FROM`)
    } else {
      execute(stage, { name, text }, (key) => key === undefined ? context : stages.get(key)!.root, run)
    }
  }
  if (stage === undefined) throw new Error("the Dockerfile has no FROM")
  return stage
}

const execute = (
  stage: Stage,
  { name, text }: Instruction,
  sourceOf: (stage: string | undefined) => string,
  run: Parameters<typeof build>[1]["run"]
): void => {
  switch (name) {
    case "WORKDIR":
      stage.directory = join(stage.root, text)
      mkdirSync(stage.directory, { recursive: true })
      return
    case "ENV": {
      const [key = "", value = ""] = text.split("=")
      stage.environment[key] = value
      return
    }
    case "COPY": {
      const from = /^--from=(\S+)\s+/.exec(text)
      const paths = text.slice(from?.[0].length ?? 0).split(" ")
      const target = paths.pop()!
      for (const path of paths) {
        const isFolder = target.endsWith("/")
        const to = join(stage.directory, isFolder ? join(target, path.split("/").at(-1)!) : target)
        cpSync(join(sourceOf(from?.[1]), path), to, { recursive: true, verbatimSymlinks: true })
      }
      return
    }
    case "RUN":
      return run(text, stage.directory, stage.environment)
    case "USER":
      stage.user = text
      return
    case "CMD":
      // Only the exec form: with a shell as process 1, signals would not reach the program.
      stage.command = JSON.parse(text) as ReadonlyArray<string>
      return
    case "EXPOSE":
      return
    default:
      throw new Error(`the instruction ${name} is not supported`)
  }
}
