/** Limits of the database: connections, timeouts, read-only mode, disk space. */
import * as PgConnection from "@effect/sql-pg/PgConnection"
import * as Effect from "effect/Effect"
import * as Redacted from "effect/Redacted"
import * as Result from "effect/Result"
import * as ChildProcess from "node:child_process"
import * as Fs from "node:fs"
import * as Os from "node:os"
import * as Path from "node:path"
import { Driver, projections } from "../Driver.ts"
import { type Fault, nobodyReplaced } from "../Fault.ts"
import * as Sessions from "./Sessions.ts"

const lastsMillis = 2_500

const tooManyConnections: Fault = {
  kind: "max_connections reached",
  alone: true,
  inject: Effect.gen(function*() {
    const { harness } = yield* Driver
    const open = PgConnection.make({ url: Redacted.make(harness.url), applicationName: "faults crowd" })
    yield* Effect.repeat(Effect.result(open), { until: Result.isFailure })
    yield* Sessions.terminate()
    // Other clients or the workers themselves have taken the freed connections by now, so not every worker has its own
    // back.
    yield* Effect.repeat(Effect.result(open), { until: Result.isFailure })
    yield* Effect.sleep(lastsMillis)
  })
}

/** Locks a table of the read models for longer than statements may take. */
const timeouts = (setting: "lock_timeout" | "statement_timeout"): Fault => ({
  kind: setting,
  alone: true,
  inject: Effect.gen(function*() {
    const { admin } = yield* Driver
    yield* Sessions.withSetting(setting, "'300ms'")
    yield* admin.withTransaction(Effect.andThen(
      admin`LOCK TABLE journal IN EXCLUSIVE MODE`,
      Effect.sleep(lastsMillis)
    ))
  }),
  judge: nobodyReplaced
})

const readOnly: Fault = {
  kind: "read-only for a while",
  alone: true,
  inject: Effect.andThen(Sessions.withSetting("default_transaction_read_only", "on"), Effect.sleep(lastsMillis))
}

const poolOfOne: Fault = {
  kind: "worker with a pool of one connection",
  on: "start",
  inject: Effect.gen(function*() {
    const { awaitRows, harness, settings } = yield* Driver
    const worker = yield* harness.start("pool-of-one", { projections, settings, poolSize: 1, mayEnd: true })
    yield* awaitRows(
      "the worker with a pool of one takes part",
      10_000,
      (rows) => rows.checkpoints.some(({ workerId }) => workerId === "pool-of-one")
    )
    yield* Effect.sleep("1 second")
    yield* worker.stop
  })
}

const isRoot = process.getuid?.() === 0

const run = (program: string, ...args: ReadonlyArray<string>) =>
  Effect.sync(() => {
    ChildProcess.execFileSync(program, args, { stdio: "pipe" })
  })

/** Fills the disk while other processes write to it as well. */
const fill = (path: string): void => {
  const file = Fs.openSync(path, "w")
  try {
    for (const bytes of [1024 * 1024, 4096]) {
      const chunk = Buffer.alloc(bytes)
      try {
        while (true) Fs.writeSync(file, chunk)
      } catch (error) {
        if (!(error instanceof Error && "code" in error && error.code === "ENOSPC")) throw error
      }
    }
  } finally {
    Fs.closeSync(file)
  }
}

/** The journal is moved to its own disk, which is then filled. */
const diskFull: Fault = {
  kind: "disk full",
  alone: true,
  unavailable: Effect.succeed(isRoot && process.platform === "linux" ? undefined : "only root can mount a small disk"),
  inject: Effect.gen(function*() {
    const { admin } = yield* Driver
    const disk = yield* Effect.acquireRelease(
      Effect.gen(function*() {
        const disk = Fs.mkdtempSync(Path.join(Os.tmpdir(), "faults-disk-"))
        yield* run("mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk)
        return disk
      }),
      (disk) => Effect.andThen(run("umount", "-l", disk), Effect.sync(() => Fs.rmdirSync(disk)))
    )
    const space = Path.join(disk, "space")
    const [owner] = yield* admin<{ readonly directory: string }>`SELECT current_setting('data_directory') AS directory`
    Fs.mkdirSync(space)
    const { gid, uid } = Fs.statSync(owner?.directory ?? disk)
    Fs.chownSync(space, uid, gid)
    yield* Effect.acquireRelease(
      admin.unsafe(`CREATE TABLESPACE small LOCATION '${space}'`).unprepared.pipe(
        Effect.andThen(admin`ALTER TABLE journal SET TABLESPACE small`)
      ),
      () =>
        admin`ALTER TABLE journal SET TABLESPACE pg_default`.pipe(
          Effect.andThen(admin.unsafe("DROP TABLESPACE small").unprepared),
          Effect.orDie
        )
    )
    yield* Effect.acquireUseRelease(
      Effect.sync(() => {
        const filler = Path.join(disk, "filler")
        fill(filler)
        return filler
      }),
      () => Effect.sleep(lastsMillis),
      (filler) => Effect.sync(() => Fs.rmSync(filler))
    )
  }),
  judge: nobodyReplaced
}

export const limits: ReadonlyArray<Fault> = [
  tooManyConnections,
  timeouts("lock_timeout"),
  timeouts("statement_timeout"),
  readOnly,
  poolOfOne,
  diskFull
]
