/** A worker process for the fault tests: follows `FAULTS_WORKER`. Its log goes to the harness's diagnostics. */
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, Layer, Redacted, Schema } from "effect"
import { Reactivity } from "effect/reactivity"
import * as Program from "../../src/layers/node/Program.ts"
import * as PostgresStores from "../../src/layers/postgres/PostgresStores.ts"
import * as Orchestrator from "../../src/services/Orchestrator.ts"
import { Instructions } from "./Instructions.ts"
import * as Misbehaviour from "./Misbehaviour.ts"
import * as Projections from "./Projections.ts"
import * as Search from "./Search.ts"

const program = Effect.gen(function*() {
  const instructions = yield* Schema.decodeEffect(Instructions)(yield* Config.String("FAULTS_WORKER"))
  const {
    application,
    delayMillis,
    directUrl,
    filter,
    listen,
    misbehaviour,
    options,
    poolSize,
    prepare,
    presence,
    replicaSets,
    settings,
    typed,
    url
  } = instructions
  const { workerId } = instructions
  const client = {
    url: Redacted.make(url),
    prepare,
    // A pooler that does not support prepared statements also refuses this startup parameter.
    ...(prepare ? { startupParameters: { deadlock_timeout: "30ms" } } : {})
  }
  const outside = yield* PgClient.make({ ...client, applicationName: "faults refusals", maxConnections: 1 })

  const Live = PostgresStores.layerWith({
    listen,
    presence,
    directUrl: directUrl === undefined ? undefined : Redacted.make(directUrl)
  }).pipe(
    Layer.provideMerge(PgClient.layer({ ...client, applicationName: application, maxConnections: poolSize }))
  )
  const projection = Effect.fnUntraced(function*(name: string) {
    if (Projections.kindOf(name) === "search") {
      return yield* Search.make(name, { workerId: workerId ?? "", outside, url })
    }
    const unfiltered = Projections.make(name, { workerId: workerId ?? "", delayMillis, outside }, options?.[name])
    const usual = filter?.projection === name
      ? { ...unfiltered, filter: { eventTypes: filter.eventTypes }, replacesFilter: [{ eventTypes: filter.replaces }] }
      : typed?.projection === name
      ? Projections.decoding(unfiltered, typed.newest)
      : unfiltered
    return misbehaviour !== undefined && Projections.kindOf(name) === "journal"
      ? Misbehaviour.apply(misbehaviour)(usual)
      : usual
  })
  const run = Effect.fnUntraced(function*(replicaSet: Instructions["replicaSets"][number]) {
    const projections = yield* Effect.forEach(replicaSet.projections, projection)
    const options = { ...settings, replicaSet: replicaSet.name, workerId, projections }
    return yield* Orchestrator.run.pipe(Effect.provide(Orchestrator.layer(options)))
  })
  return yield* Effect.all(replicaSets.map(run), { concurrency: "unbounded", discard: true }).pipe(Effect.provide(Live))
})

Program.runMain(program.pipe(Effect.scoped, Effect.provide(Reactivity.layer)))
