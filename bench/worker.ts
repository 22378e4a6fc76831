/**
 * A worker process for the benchmarks: replica set and database from the environment, one projection that does nothing.
 */
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, Layer, References, Stream } from "effect"
import { Orchestrator, PostgresStores, Program, Projection } from "pupsourcing-orchestrator"

/** Reports to the benchmark, in one line, what happened and when, by the clock that all processes share. */
const report = (what: string) =>
  Effect.sync(() => {
    console.log(JSON.stringify({ what, at: performance.timeOrigin + performance.now() }))
  })

const program = Effect.gen(function*() {
  const replicaSet = yield* Config.String("BENCH_REPLICA_SET")
  const nothing = Projection.make(replicaSet, { handle: () => Effect.void })
  const orchestrator = yield* Orchestrator.make({ replicaSet, projections: [nothing] })
  yield* orchestrator.activity.pipe(
    Stream.runForEach((activity) =>
      activity._tag === "AssignmentReached" || activity._tag === "BatchCommitted" ? report(activity._tag) : Effect.void
    ),
    Effect.forkScoped
  )
  return yield* orchestrator.run
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
