/** Workers that reach the server through PgBouncer, which assigns a server session per transaction. */
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
    const worker = yield* harness.start("pooled", { projections, settings, url, prepare: false, mayEnd: true })
    yield* awaitRows(
      "the worker behind the pooler takes part",
      10_000,
      (rows) => rows.checkpoints.some(({ workerId }) => workerId === "pooled")
    )
    yield* Effect.sleep("1500 millis")
    const { code } = yield* worker.stop
    if (code !== 0) watch.violate(`the worker behind the pooler ended with ${code}`)
    if (!worker.output().includes("pooler in transaction mode")) {
      watch.violate("the worker behind the pooler did not say that it is slower")
    }
  }),
  judge: nobodyReplaced
}

/** With prepared statements the worker does not start, and its error names the setting. */
const refused: Fault = {
  kind: "worker through PgBouncer, with prepared statements",
  on: "start",
  unavailable: Effect.succeed(PgBouncer.missing),
  inject: Effect.gen(function*() {
    const { harness, settings, watch } = yield* Driver
    const url = yield* PgBouncer.make(harness.url, { mode: "transaction", size: sessions })
    const worker = yield* harness.start("refused", { projections, settings, url, mayEnd: true })
    const ended = yield* Effect.timeoutOption(worker.ended, "15 seconds")
    if (ended._tag === "None" || ended.value.code !== 1 || !worker.output().includes("Setting \"prepare\"")) {
      watch.violate(`a worker with prepared statements behind a pooler said: ${worker.output()}`)
    }
  }),
  judge: nobodyReplaced
}

export const pooler: ReadonlyArray<Fault> = [pooled, refused]
