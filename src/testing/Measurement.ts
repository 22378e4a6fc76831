/**
 * Results of the programs that measure, as pages of `docs/measurements`. The programs write them with `--record`.
 */
import * as Console from "effect/Console"
import * as DateTime from "effect/DateTime"
import * as Effect from "effect/Effect"
import { SqlClient } from "effect/sql"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import { fileURLToPath } from "node:url"
import * as PostgresTest from "./PostgresTest.ts"

const root = fileURLToPath(new URL("../..", import.meta.url))

const git = (...args: ReadonlyArray<string>): string =>
  ChildProcess.execFileSync("git", args, { cwd: root, encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }).trim()

/** Read when the program is loaded: the working tree may change while it runs. */
const commit = Effect.runSync(
  Effect.try(() =>
    `\`${git("rev-parse", "--short=7", "HEAD")}\`${
      git("status", "--porcelain", "--", ".", ":!docs") === "" ? "" : " with uncommitted changes"
    }`
  ).pipe(Effect.orElseSucceed(() => "unknown"))
)

/** The command line that runs a script of the project with the arguments of this process. */
export const commandOf = (script: "faults" | "simulate"): string =>
  `npm run ${script} -- ${process.argv.slice(2).join(" ")}`

/** A Markdown table whose columns are aligned, so that it can be read in a terminal. */
export const table = (
  header: ReadonlyArray<string>,
  rows: ReadonlyArray<ReadonlyArray<string | number>>
): string => {
  const cells = [header, ...rows].map((row) => row.map((cell) => String(cell).replaceAll("|", "\\|")))
  const widths = header.map((_, column) => Math.max(3, ...cells.map((row) => row[column]!.length)))
  const [head, ...body] = cells.map((row) =>
    `| ${row.map((cell, column) => cell.padEnd(widths[column]!)).join(" | ")} |`
  )
  return [head, `|${widths.map((width) => "-".repeat(width + 2)).join("|")}|`, ...body].join("\n")
}

/** The settings of a server that a reader needs to compare a measurement with another one. */
const serverSettings = (serverUrl: string) =>
  PostgresTest.withConnection(
    serverUrl,
    Effect.flatMap(SqlClient.SqlClient, (sql) =>
      sql<{ readonly name: string; readonly value: string }>`
        SELECT name, current_setting(name) AS value FROM pg_settings
        WHERE name IN ('server_version', 'fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_connections')
        ORDER BY name`)
  ).pipe(Effect.map((rows) => {
    const version = rows.find(({ name }) => name === "server_version")
    const others = rows.filter((row) => row !== version).map(({ name, value }) => `\`${name} = ${value}\``)
    return `, PostgreSQL ${version?.value} with ${others.join(", ")}`
  }))

/**
 * Writes `docs/measurements/<page>.md`, and `<page>.svg` if there is a plot. `command` repeats the measurement; `result` is Markdown;
 * `serverUrl` is the server that was measured, if any.
 */
export const record = Effect.fnUntraced(function*(measurement: {
  readonly page: string
  readonly title: string
  readonly command: string
  readonly serverUrl?: string | undefined
  readonly result: string
  readonly plot?: string | undefined
}) {
  const { command, page, plot, result, serverUrl, title } = measurement
  const server = serverUrl === undefined ? "" : yield* serverSettings(serverUrl)
  const cpus = Os.cpus()
  const path = `docs/measurements/${page}.md`
  const content = `# ${title}

- Command: \`${command}\`
- Date and commit: ${DateTime.formatIsoDateUtc(yield* DateTime.now)}, ${commit}
- Machine: ${cpus.length} cores (${cpus[0]?.model ?? "unknown"}), load average ${Os.loadavg()[1]!.toFixed(1)}, ${
    Math.round(Os.totalmem() / 2 ** 30)
  } GiB of memory
- Node ${process.versions.node}${server}

${result}
`
  yield* Effect.sync(() => {
    Fs.writeFileSync(`${root}/${path}`, content)
    if (plot !== undefined) Fs.writeFileSync(`${root}/docs/measurements/${page}.svg`, plot)
  })
  // Not on the standard output, which some programs print JSON to.
  yield* Console.error(`Recorded in ${path}`)
})
