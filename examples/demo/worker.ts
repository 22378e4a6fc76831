/**
 * One worker of the demo. It ends when its standard input closes, so that it does not outlive the demo.
 */
import { Config, Effect, Layer } from "effect"
import { Orchestrator, PostgresStores, Program } from "pupsourcing-orchestrator"
import * as Database from "./Database.ts"
import { airportTraffic, replicaSet, routeDistance } from "./projections.ts"

const Live = Layer.unwrap(Effect.gen(function*() {
  const url = yield* Config.Redacted("DATABASE_URL")
  const workerId = yield* Config.NonEmptyString("DEMO_WORKER_ID")
  return Orchestrator.layer({
    replicaSet,
    projections: [airportTraffic, routeDistance],
    workerId,
    // Batches of some 100 ms: short enough to watch, long enough to be caught in one.
    batchSize: 100
  }).pipe(
    Layer.provide(PostgresStores.layer),
    Layer.provideMerge(Database.layer(url, workerId))
  )
}))

const demoGone = Effect.callback<void>((resume) => {
  process.stdin.resume().once("close", () => resume(Effect.void))
})

Program.runMain(Effect.raceFirst(Orchestrator.run, demoGone).pipe(Effect.provide(Live)))
