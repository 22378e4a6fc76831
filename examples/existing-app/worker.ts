/** What the app gains: the event store, a worker, and the worker's endpoints, in one runtime. */
import { Context, Effect, Layer, ManagedRuntime, Schedule } from "effect"
import { Orchestrator, PostgresStores } from "pupsourcing-orchestrator"
import * as Http from "pupsourcing-orchestrator/http"
import * as ConsoleLog from "../support/ConsoleLog.ts"
import * as Database from "../support/Database.ts"
import { Table, todosPerList } from "./projection.ts"

/** Answers requests to /healthz, /readyz, /metrics, /status and /openapi.json. */
export class Endpoints extends Context.Service<Endpoints, (request: Request) => Promise<Response>>()("Endpoints") {}

const Live = Layer.effect(Endpoints)(Http.makeFetchHandler).pipe(
  Layer.provideMerge(Orchestrator.layer({ replicaSet: "todos", projections: [todosPerList] })),
  Layer.provide(Table),
  Layer.provideMerge(PostgresStores.layer),
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provideMerge(Database.layer),
  Layer.provideMerge(ConsoleLog.layer)
)

/** A worker that fails logs why, and starts again after a pause; the API continues meanwhile. */
const Worker = Layer.effectDiscard(Effect.forkScoped(Effect.retry(Orchestrator.run, Schedule.spaced("5 seconds"))))

/** Disposing it ends the worker gracefully. */
export const runtime = ManagedRuntime.make(Layer.provideMerge(Worker, Live))
