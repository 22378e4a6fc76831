/** A standby that follows a primary by streaming replication. */
import * as Effect from "effect/Effect"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Path from "node:path"
import * as EmbeddedPostgres from "../../src/testing/EmbeddedPostgres.ts"
import * as Files from "../../src/testing/EmbeddedPostgresFiles.ts"

const [primary, standby] = [{ name: "test-primary" }, { name: "test-standby" }]

/**
 * Starts a primary and its standby for the scope. The standby begins as a copy of the stopped primary, because the npm
 * package has no `pg_basebackup`.
 */
export const make = Effect.gen(function*() {
  yield* EmbeddedPostgres.ensure(primary)
  yield* EmbeddedPostgres.stop(primary)
  yield* EmbeddedPostgres.stop(standby)
  const [from, to] = [yield* Files.locate(primary), yield* Files.locate(standby)]
  Fs.rmSync(to.data, { recursive: true, force: true })
  for (const path of ["data", "password"]) {
    ChildProcess.execFileSync("cp", ["-a", Path.join(from.directory, path), to.directory])
  }
  const { url } = yield* EmbeddedPostgres.acquire(primary)
  const settings = Path.join(to.data, "postgresql.auto.conf")
  Fs.appendFileSync(settings, `primary_conninfo = '${url}'\nhot_standby = on\n`)
  const signal = Path.join(to.data, "standby.signal")
  Fs.writeFileSync(signal, "")
  Files.ownedBy(to, signal)
  const following = yield* EmbeddedPostgres.acquire(standby)
  return { primary: url, standby: following.url }
})
