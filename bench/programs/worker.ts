/** A worker as its documentation shows it, which reports its first commit. */
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, Layer, References, Stream } from "effect"
import { Orchestrator, PostgresStores, Program, Projection } from "pupsourcing-orchestrator"
import { report } from "./report.ts"

const program = Effect.gen(function*() {
  const replicaSet = yield* Config.String("BENCH_REPLICA_SET")
  const worker = yield* Orchestrator.make({
    replicaSet,
    projections: [Projection.make(replicaSet, { handle: () => Effect.void })]
  })
  yield* worker.activity.pipe(
    Stream.runForEach(({ _tag }) =>
      Effect.sync(() => {
        if (_tag === "BatchCommitted") report()
      })
    ),
    Effect.forkScoped({ startImmediately: true })
  )
  return yield* worker.run
})

Program.runMain(program.pipe(
  Effect.scoped,
  Effect.provide(PostgresStores.layer.pipe(
    Layer.provideMerge(
      PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL"), applicationName: Config.succeed("bench worker") })
    )
  )),
  Effect.provideService(References.MinimumLogLevel, "Warn")
))
