/**
 * Bundles the modules into a few files. Node.js resolves, reads and compiles every module by itself, and each import of
 * each module is resolved separately: as 170 files, the library takes about as long to load as everything it depends on.
 */
import { readFileSync } from "node:fs"
import { defineConfig } from "rolldown"

const { exports } = JSON.parse(readFileSync("package.json", "utf8")) as {
  readonly exports: Record<string, string | { readonly "pupsourcing-orchestrator-source": string }>
}

/** The public modules and the command, by the paths of the files that load them. */
const input = Object.fromEntries(
  [
    ...Object.values(exports).flatMap((target) =>
      typeof target === "string" ? [] : [target["pupsourcing-orchestrator-source"]]
    ),
    "./src/cli/main.ts"
  ].map((path) => [path.replace(/^\.\/src\/(.*)\.ts$/, "$1"), path])
)

export default defineConfig({
  input,
  // Everything except relative and absolute paths: dependencies stay imports.
  external: /^[^./]/,
  platform: "node",
  tsconfig: false,
  transform: { target: "es2022" },
  output: {
    dir: "dist",
    format: "esm",
    sourcemap: true,
    entryFileNames: "[name].js",
    chunkFileNames: "chunks/[name].js",
    codeSplitting: {
      groups: [
        // Schemas, services and the stores in memory must load without the database driver.
        { name: "services", test: /\/src\/(schema|services)\//, priority: 1 },
        { name: "postgres", test: /\/src\/layers\/postgres\// }
      ]
    }
  }
})
