/** Starts workers in a process that has loaded and run the library before. */
import { PgClient } from "@effect/sql-pg"
import { Config, Deferred, Effect, Fiber, Layer, ManagedRuntime, References, Stream } from "effect"
import { Orchestrator, PostgresStores, Projection } from "pupsourcing-orchestrator"
import { now } from "../hosts/Messages.ts"
import { serve } from "../serve.ts"

/** Stores and a client of its own, as a process would have them. */
const Stores = PostgresStores.layer.pipe(Layer.provideMerge(
  PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL"), applicationName: Config.succeed("bench start") })
))

/** A worker, from nothing to the commit of its first event. Returns the milliseconds of both parts. */
const start = Effect.fnUntraced(function*(replicaSet: string) {
  const began = now()
  const context = yield* Layer.build(Layer.fresh(Stores))
  const worker = yield* Orchestrator.make({
    replicaSet,
    projections: [Projection.make(replicaSet, { handle: () => Effect.void })]
  }).pipe(Effect.provide(context))
  const committed = yield* Deferred.make<number>()
  yield* worker.activity.pipe(
    Stream.runForEach(({ _tag }) => _tag === "BatchCommitted" ? Deferred.succeed(committed, now()) : Effect.void),
    Effect.forkScoped({ startImmediately: true })
  )
  const ran = now()
  const fiber = yield* Effect.forkScoped(worker.run)
  const at = yield* Effect.raceFirst(Deferred.await(committed), Fiber.join(fiber))
  return { layers: ran - began, run: at - ran }
}, Effect.scoped)

const runtime = ManagedRuntime.make(Layer.succeed(References.MinimumLogLevel, "Warn"))

serve({ start: (replicaSet: string) => runtime.runPromise(start(replicaSet)) })
