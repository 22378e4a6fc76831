/** Workers whose pool reaches the server through PgBouncer, which assigns a server session per transaction. */
import * as Effect from "effect/Effect"
import * as PgBouncer from "../../../support/PgBouncer.ts"
import { Driver, projections } from "../Driver.ts"
import { type Fault, nobodyReplaced } from "../Fault.ts"

const sessions = 3

const pooled: Fault = {
  kind: "worker through PgBouncer, in transaction mode",
  on: "start",
  unavailable: Effect.succeed(PgBouncer.missing),
  inject: Effect.gen(function*() {
    const { awaitRows, harness, settings, watch } = yield* Driver
    const url = yield* PgBouncer.make(harness.url, { mode: "transaction", size: sessions })
    const worker = yield* harness.start("pooled", {
      projections,
      settings,
      url,
      directUrl: harness.url,
      prepare: false,
      mayEnd: true
    })
    yield* awaitRows(
      "the worker behind the pooler takes part",
      10_000,
      (rows) => rows.checkpoints.some(({ workerId }) => workerId === "pooled")
    )
    yield* Effect.sleep("1500 millis")
    const { code } = yield* worker.stop
    if (code !== 0) watch.violate(`the worker behind the pooler ended with ${code}`)
  }),
  judge: nobodyReplaced
}

/** Without `directUrl` the worker does not start, and its error names the setting. */
const refused: Fault = {
  kind: "worker through PgBouncer, without directUrl",
  on: "start",
  unavailable: Effect.succeed(PgBouncer.missing),
  inject: Effect.gen(function*() {
    const { harness, settings, watch } = yield* Driver
    const url = yield* PgBouncer.make(harness.url, { mode: "transaction", size: sessions })
    const worker = yield* harness.start("refused", { projections, settings, url, prepare: false, mayEnd: true })
    const ended = yield* Effect.timeoutOption(worker.ended, "15 seconds")
    if (ended._tag === "None" || ended.value.code !== 1 || !worker.output().includes("Setting \"directUrl\"")) {
      watch.violate(`a worker behind a pooler in transaction mode, without directUrl, printed: ${worker.output()}`)
    }
  }),
  judge: nobodyReplaced
}

export const pooler: ReadonlyArray<Fault> = [pooled, refused]
