/**
 * Runs the commands of a page from top to bottom, as its reader would:
 *
 * - `sh` blocks. A line that ends with `# terminal 1` is started and left running; it must report that it processes events. The line
 *   `# press Ctrl+C in terminal 1` ends it. All other lines must end with exit code 0.
 * - `sql` blocks, one statement after another.
 * - `text` blocks that begin with `# terminal 1`: the output of that terminal must contain their lines, in this order. Times, ids and
 *   annotations are ignored.
 *
 * At the end, terminals that still run are interrupted, and must have ended gracefully.
 */
import { type ChildProcess, spawn } from "node:child_process"
import { setTimeout as sleep } from "node:timers/promises"
import type { Block } from "./Markdown.ts"

export interface Options {
  readonly page: string
  readonly blocks: ReadonlyArray<Block>
  readonly cwd: string
  readonly environment: NodeJS.ProcessEnv
  /** The shell command that runs the SQL statement in `$STATEMENT`. */
  readonly sqlCommand: string
}

export interface Counts {
  readonly commands: number
  readonly terminals: number
  readonly statements: number
  readonly lines: number
}

interface Terminal {
  readonly process: ChildProcess
  readonly ended: Promise<void>
  output: string
  isRunning: boolean
}

const longestMillis = 60_000

/** Waits for a condition; throws with the terminal's output if it ends before, or after a minute. */
const waitFor = async (terminal: Terminal, what: string, holds: () => boolean): Promise<void> => {
  const from = performance.now()
  while (!holds()) {
    if (performance.now() - from > longestMillis || !terminal.isRunning) {
      // The last output may arrive with the end.
      if (holds()) return
      throw new Error(`${what}:\n${terminal.output}`)
    }
    await sleep(20)
  }
}

const start = (options: Options, command: string, environment: NodeJS.ProcessEnv = {}): Terminal => {
  // A process group of its own, as a terminal gives to a command: Ctrl+C reaches every process of it.
  const child = spawn("bash", ["-e", "-o", "pipefail", "-c", command], {
    cwd: options.cwd,
    env: { ...options.environment, ...environment },
    detached: true,
    stdio: ["ignore", "pipe", "pipe"]
  })
  const terminal: Terminal = {
    process: child,
    ended: new Promise((done) => child.once("close", () => done())),
    output: "",
    isRunning: true
  }
  const append = (chunk: Buffer) => {
    terminal.output += chunk.toString()
  }
  child.stdout.on("data", append)
  child.stderr.on("data", append)
  child.once("close", () => {
    terminal.isRunning = false
  })
  return terminal
}

const kill = (terminal: Terminal, signal: NodeJS.Signals): void => {
  if (terminal.isRunning) process.kill(-terminal.process.pid!, signal)
}

const runToEnd = async (options: Options, command: string, environment?: NodeJS.ProcessEnv): Promise<void> => {
  const terminal = start(options, command, environment)
  const late = setTimeout(() => kill(terminal, "SIGKILL"), longestMillis)
  await terminal.ended
  clearTimeout(late)
  const { exitCode, signalCode } = terminal.process
  if (exitCode !== 0) throw new Error(`${command}\nended with ${exitCode ?? signalCode}:\n${terminal.output}`)
}

const interrupt = async (terminal: Terminal): Promise<void> => {
  kill(terminal, "SIGINT")
  await waitFor(terminal, "the program did not shut down", () => terminal.output.includes("Shutdown complete"))
  await terminal.ended
}

/** A log line without what differs from run to run. */
const mask = (line: string): string =>
  line.replace(/^\[[\d:.]+\] (\w+) \(#\d+\): /, "$1 ").replaceAll(/worker-[0-9a-f-]+/g, "worker-…").trim()

/** Whether the lines occur in the output, in this order and with other lines between them. */
export const containsLines = (output: string, expected: string): boolean => {
  const lines = output.split("\n").map(mask)
  let from = 0
  for (const line of expected.split("\n").map(mask)) {
    const found = lines.findIndex((actual, index) => index >= from && actual.startsWith(line))
    if (found < 0) return false
    from = found + 1
  }
  return true
}

const terminalOf = (terminals: ReadonlyMap<string, Terminal>, name: string): Terminal => {
  const terminal = terminals.get(name)
  if (terminal === undefined) throw new Error(`nothing runs in terminal ${name}`)
  return terminal
}

const runBlock = async (options: Options, block: Block, terminals: Map<string, Terminal>) => {
  const counts = { commands: 0, terminals: 0, statements: 0, lines: 0 }
  if (block.language === "sql") {
    for (const statement of block.text.split(/;\s*$/m).map((text) => text.trim()).filter((text) => text !== "")) {
      await runToEnd(options, options.sqlCommand, { STATEMENT: statement })
      counts.statements++
    }
  }
  const [, shown, expected] = /^# terminal (\d+)\n([\s\S]*)$/.exec(block.text) ?? []
  if (block.language === "text" && shown !== undefined && expected !== undefined) {
    const terminal = terminalOf(terminals, shown)
    await waitFor(terminal, `these lines are missing:\n${expected}\nin`, () => containsLines(terminal.output, expected))
    counts.lines += expected.split("\n").length
  }
  if (block.language === "sh") {
    for (const line of block.text.split("\n").filter((text) => text.trim() !== "")) {
      const pressed = /^# press Ctrl\+C in terminal (\d+)/.exec(line)?.[1]
      const started = /# terminal (\d+)/.exec(line)?.[1]
      if (pressed !== undefined) {
        await interrupt(terminalOf(terminals, pressed))
      } else if (started !== undefined) {
        const terminal = start(options, line)
        terminals.set(started, terminal)
        await waitFor(
          terminal,
          `${line}\ndid not process events`,
          () => /Processing (?:all )?events/.test(terminal.output)
        )
        counts.terminals++
      } else {
        await runToEnd(options, line)
        counts.commands++
      }
    }
  }
  return counts
}

/** Runs the blocks of a page. Throws with the page, the line and the output at the first failure. */
export const run = async (options: Options): Promise<Counts> => {
  const terminals = new Map<string, Terminal>()
  const all = { commands: 0, terminals: 0, statements: 0, lines: 0 }
  try {
    for (const block of options.blocks) {
      const counts = await runBlock(options, block, terminals).catch((error: Error) => {
        throw new Error(`${options.page}:${block.line}: ${error.message}`)
      })
      for (const key of Object.keys(all) as ReadonlyArray<keyof Counts>) all[key] += counts[key]
    }
    for (const terminal of terminals.values()) if (terminal.isRunning) await interrupt(terminal)
    return all
  } finally {
    for (const terminal of terminals.values()) kill(terminal, "SIGKILL")
  }
}
