/** Starts a PgBouncer in front of a server until the scope closes. The program is Debian's package `pgbouncer`. */
import * as Effect from "effect/Effect"
import * as Schedule from "effect/Schedule"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Net from "node:net"
import * as Os from "node:os"
import * as Path from "node:path"
import { scaledMillis } from "../../src/testing/TimeLimits.ts"
import { freePort } from "./FreePort.ts"

const program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].find((path) => Fs.existsSync(path))

/** Why PgBouncer cannot be started on this machine, if it cannot. */
export const missing = program === undefined ? "pgbouncer is not installed: apt-get install pgbouncer" : undefined

/** It refuses to run as root. */
const nobody = process.getuid?.() === 0 ? { uid: 65534, gid: 65534 } : {}

const answers = (port: number) =>
  Effect.callback<void, Error>((resume) => {
    const socket = Net.connect(port, "127.0.0.1")
    socket.on("connect", () => {
      socket.destroy()
      resume(Effect.void)
    }).on("error", (error) => resume(Effect.fail(error)))
  })

/** Returns the URL of the database through PgBouncer. */
export const make = Effect.fnUntraced(function*(
  url: string,
  options: {
    readonly mode: "session" | "transaction"
    readonly size: number
    /** Additional lines of its configuration. */
    readonly configuration?: string
  }
) {
  const to = new URL(url)
  const port = yield* freePort
  const directory = yield* Effect.acquireRelease(
    Effect.sync(() => {
      const directory = Fs.mkdtempSync(Path.join(Os.tmpdir(), "pgbouncer-"))
      const users = Path.join(directory, "users.txt")
      const quoted = (text: string) => `"${decodeURIComponent(text).replaceAll("\"", "\"\"")}"`
      Fs.writeFileSync(users, `${quoted(to.username)} ${quoted(to.password)}\n`)
      Fs.writeFileSync(
        Path.join(directory, "pgbouncer.ini"),
        `[databases]
* = host=${to.hostname} port=${to.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = ${port}
unix_socket_dir =
auth_type = plain
auth_file = ${users}
pool_mode = ${options.mode}
default_pool_size = ${options.size}
ignore_startup_parameters = deadlock_timeout
${options.configuration ?? ""}
logfile = ${Path.join(directory, "log")}
`
      )
      Fs.chmodSync(directory, 0o777)
      return directory
    }),
    (directory) => Effect.sync(() => Fs.rmSync(directory, { recursive: true, force: true }))
  )
  yield* Effect.acquireRelease(
    Effect.sync(() =>
      ChildProcess.spawn(program ?? "pgbouncer", [Path.join(directory, "pgbouncer.ini")], {
        stdio: "ignore",
        ...nobody
      })
    ),
    (child) =>
      Effect.callback<void>((resume) => {
        child.on("close", () => resume(Effect.void))
        child.kill("SIGKILL")
      })
  )
  yield* Effect.retry(answers(port), { schedule: Schedule.spaced("20 millis"), times: scaledMillis(1000) })
  const through = new URL(url)
  through.hostname = "127.0.0.1"
  through.port = String(port)
  return through.href
})
