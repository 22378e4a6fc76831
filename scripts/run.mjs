// `node scripts/run.mjs <program> [arguments]`: checks Node and the packages, then becomes the program, so that exit code and signals
// are the program's own. The program is a script of the project, which imports the library as source, or a command of node_modules.
// Nodes that are too old must be able to parse this file: plain JavaScript only.
import { existsSync } from "node:fs"
import { delimiter, dirname, join } from "node:path"
import { fileURLToPath } from "node:url"

const root = dirname(dirname(fileURLToPath(import.meta.url)))
const [major, minor] = process.versions.node.split(".").map(Number)
const problems = []

if (!existsSync(join(root, "node_modules", "effect", "package.json"))) {
  problems.push("The packages are not installed. Run:  npm ci")
} else if (major < 22 || (major === 22 && minor < 19)) {
  problems.push(
    `This is Node ${process.versions.node} (${process.execPath}); the project needs Node 22.19 or newer.`,
    existsSync(join(root, "node_modules", "node", "bin", "node"))
      ? "A Node that is new enough is installed in node_modules/.bin and npm uses it by itself. Run the command through npm:  npm run <script>"
      : "npm installs one, in node_modules only, unless install scripts are switched off (--ignore-scripts). Run:  npm ci"
  )
}

if (problems.length > 0) {
  console.error("\n" + problems.join("\n") + "\n")
  process.exit(1)
}

const [program, ...given] = process.argv.slice(2)
const commands = join(root, "node_modules", ".bin")
const [file, ...args] = program.endsWith(".ts")
  ? [process.execPath, "--conditions=pupsourcing-orchestrator-source", program]
  : [program === "node" ? process.execPath : join(commands, program)]
// Commands start with `#!/usr/bin/env node`, which must be this Node.
const path = [dirname(process.execPath), commands, process.env.PATH].join(delimiter)
process.execve(file, [file, ...args, ...given], { ...process.env, PATH: path })
