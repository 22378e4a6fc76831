/** Workers with a wrong clock. Only the database's clock is used to compare workers. */
import * as Effect from "effect/Effect"
import * as Fs from "node:fs"
import { Driver, projections } from "../Driver.ts"
import { type Fault, nobodyReplaced } from "../Fault.ts"

/** The paths of the Debian and Ubuntu packages. */
const library = [
  "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
  "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1"
].find((path) => Fs.existsSync(path))

const wrong = (kind: string, offset: string): Fault => ({
  kind,
  on: "start",
  unavailable: Effect.succeed(library === undefined ? "libfaketime is not installed" : undefined),
  inject: Effect.gen(function*() {
    const { awaitRows, harness, settings } = yield* Driver
    const id = `clock${offset}`
    const worker = yield* harness.start(id, {
      projections,
      settings,
      mayEnd: true,
      env: { LD_PRELOAD: library ?? "", FAKETIME: offset, FAKETIME_DONT_FAKE_MONOTONIC: "1" }
    })
    const holds = yield* awaitRows(
      `${id} takes part`,
      10_000,
      (rows) => rows.checkpoints.some(({ workerId }) => workerId === id)
    )
    yield* Effect.sleep(settings.staleWorkerTimeout)
    const incarnation = holds?.rows.workers.find(({ workerId }) => workerId === id)?.incarnation
    yield* awaitRows(
      `${id} stays`,
      0,
      (rows) => rows.workers.some((row) => row.incarnation === incarnation && row.state !== "stopped")
    )
    yield* worker.stop
  }),
  judge: nobodyReplaced
})

export const clock: ReadonlyArray<Fault> = [
  wrong("clock of a worker an hour ahead", "+1h"),
  wrong("clock of a worker an hour behind", "-1h")
]
