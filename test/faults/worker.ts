/**
 * A worker process for the fault tests: does what `FAULTS_WORKER` says. What it logs goes to the harness's diagnostics.
 */
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, Layer, Redacted, Schema } from "effect"
import { Reactivity } from "effect/reactivity"
import * as Program from "../../src/layers/node/Program.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import { Instructions } from "./Instructions.ts"
import * as Projections from "./Projections.ts"

const program = Effect.gen(function*() {
  const instructions = yield* Schema.decodeEffect(Instructions)(yield* Config.String("FAULTS_WORKER"))
  const { application, delayMillis, listen, presence, replicaSets, settings, url, workerId } = instructions
  const client = { url: Redacted.make(url), startupParameters: { deadlock_timeout: "30ms" } }
  const outside = yield* PgClient.make({ ...client, applicationName: "faults refusals", maxConnections: 1 })

  const Live = PostgresStores.layerWith({ listen, presence }).pipe(
    Layer.provideMerge(PgClient.layer({ ...client, applicationName: application, maxConnections: 6 }))
  )
  const run = (replicaSet: Instructions["replicaSets"][number]) =>
    Orchestrator.run.pipe(Effect.provide(Orchestrator.layer({
      ...settings,
      replicaSet: replicaSet.name,
      workerId,
      projections: replicaSet.projections.map((name) =>
        Projections.make(name, { workerId: workerId ?? "", delayMillis, outside })
      )
    })))
  return yield* Effect.all(replicaSets.map(run), { concurrency: "unbounded", discard: true }).pipe(Effect.provide(Live))
})

Program.runMain(program.pipe(Effect.scoped, Effect.provide(Reactivity.layer)))
