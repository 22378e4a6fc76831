/**
 * `npm run faults -- [--minutes M] [--seed N] [--only TEXT] [--name SERVER] [--json] [--record]`: real worker processes, a real
 * server, and everything that can go wrong; see `test/faults/README.md`. Ends with 1 if an event was lost, duplicated or handled
 * out of order, or another promise was broken. `--record` writes the result to `docs/measurements`.
 */
import * as NodeRuntime from "@effect/platform-node/NodeRuntime"
import * as Console from "effect/Console"
import * as Effect from "effect/Effect"
import { parseArgs } from "node:util"
import * as EmbeddedPostgres from "../src/testing/EmbeddedPostgres.ts"
import * as Measurement from "../src/testing/Measurement.ts"
import * as Driver from "../test/faults/driver/Driver.ts"
import { faults } from "../test/faults/driver/faults.ts"
import * as Report from "../test/faults/driver/Report.ts"
import * as Harness from "../test/faults/Harness.ts"

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "1.5" },
    seed: { type: "string", default: "1" },
    only: { type: "string", default: "" },
    name: { type: "string", default: "faults" },
    json: { type: "boolean", default: false },
    record: { type: "boolean", default: false }
  }
})

const number = (name: "minutes" | "seed"): number => {
  const value = Number(values[name])
  if (!(value > 0)) throw new Error(`--${name} must be a number above 0`)
  return value
}

/** Small enough for a fault to take all connections. */
const server = { name: values.name, settings: { max_connections: "120" } }

const program = Effect.gen(function*() {
  const { url: serverUrl } = yield* EmbeddedPostgres.acquire(server)
  const outcome = yield* Driver.run({
    minutes: number("minutes"),
    seed: number("seed"),
    faults: faults.filter(({ kind }) => kind.includes(values.only)),
    server
  }).pipe(Effect.scoped, Effect.provide(Harness.layerWith({ serverUrl })))
  const result = Report.table(outcome)
  yield* Console.log(values.json ? JSON.stringify(outcome, undefined, 2) : result)
  if (values.record) {
    const title = "Fault injection on real processes"
    yield* Measurement.record({ page: "faults", title, command: Measurement.commandOf("faults"), serverUrl, result })
  }
  if (outcome.violations.length > 0) process.exitCode = 1
})

NodeRuntime.runMain(Effect.scoped(program))
