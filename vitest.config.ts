import { fileURLToPath } from "node:url"
import { defineConfig } from "vitest/config"

export default defineConfig({
  resolve: {
    alias: { "pupsourcing-orchestrator": fileURLToPath(new URL("./src/index.ts", import.meta.url)) }
  },
  test: {
    include: ["test/**/*.test.ts"],
    setupFiles: ["./vitest.setup.ts"],
    globalSetup: ["./test/support/globalSetup.ts"],
    // What a test prints is of interest when it fails.
    silent: "passed-only",
    pool: "forks",
    maxWorkers: 3,
    // PostgreSQL and worker processes share two cores with the tests.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    teardownTimeout: 20_000
  }
})
