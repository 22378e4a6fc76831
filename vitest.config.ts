import { globSync, readFileSync } from "node:fs"
import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"

/** A backstop against tests that hang. No test that works takes this long, however slow the machine is; see test/README.md. */
const hangs = 1_800_000

/** Files of long tests only. `npm test` does not even load them. */
const long = process.argv.includes("--tags-filter=!long")
  ? globSync("test/**/*.test.ts").filter((file) => readFileSync(file, "utf8").includes("@module-tag long"))
  : []

export default defineConfig({
  resolve: {
    alias: { "pupsourcing-orchestrator": fileURLToPath(new URL("./src/index.ts", import.meta.url)) }
  },
  test: {
    include: ["test/**/*.test.ts"],
    exclude: long,
    tags: [{ name: "long", description: "Left out of npm test; npm run test:all runs it." }],
    setupFiles: ["./vitest.setup.ts"],
    globalSetup: ["./test/support/globalSetup.ts"],
    // What a test prints is of interest when it fails.
    silent: "passed-only",
    pool: "forks",
    maxWorkers: 4,
    // A process for each worker instead of one for each file: no test changes what another file reads.
    isolate: false,
    testTimeout: hangs,
    hookTimeout: hangs,
    teardownTimeout: hangs
  }
})
