// Says what to do when a script runs on a Node that is too old. Old Nodes must be able to parse it: plain JavaScript only.
import { existsSync } from "node:fs"
import { dirname, join } from "node:path"
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
