import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import { PgClient } from "@effect/sql-pg"
import { Config, Effect, Layer, Schedule } from "effect"
import { HttpRouter, HttpServerResponse } from "effect/http"
import { SqlClient } from "effect/sql"
import { createServer } from "node:http"
import { EventStore, Orchestrator, PostgresStores, Program, Projection, ReadModel } from "pupsourcing-orchestrator"
import * as Http from "pupsourcing-orchestrator/http"

// The existing app: a route that appends.
const Routes = HttpRouter.use(Effect.fnUntraced(function*(router) {
  const events = yield* EventStore.EventStore
  yield* router.add(
    "POST",
    "/signups/:id",
    Effect.gen(function*() {
      const { id } = yield* HttpRouter.params
      const { lastVersion } = yield* events.append([{
        boundedContext: "accounts",
        aggregateType: "Signup",
        aggregateId: id ?? "unknown",
        eventType: "SignedUp",
        payload: { id }
      }])
      return HttpServerResponse.text(`version ${lastVersion}\n`)
    })
  )
}))

const HttpApp = Layer.unwrap(Effect.gen(function*() {
  const port = yield* Config.Int("PORT").pipe(Config.withDefault(3000))
  // Beside the routes of the app: /healthz, /readyz, /metrics and /status of the worker.
  return HttpRouter.serve(Layer.mergeAll(Routes, Http.layerRoutes())).pipe(
    Layer.provide(NodeHttpServer.layer(createServer, { port }))
  )
}))

// The worker beside it.
const signups = Projection.make("signups_per_day", {
  eventTypes: ["SignedUp"],
  handle: Effect.fnUntraced(function*(event) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`
      INSERT INTO signups_per_day (day, signups) VALUES (${event.createdAt}::date, 1)
      ON CONFLICT (day) DO UPDATE SET signups = signups_per_day.signups + 1`
  })
})

const SignupsPerDay = ReadModel.layer(
  "signups_per_day",
  (sql) => sql`CREATE TABLE IF NOT EXISTS signups_per_day (day date PRIMARY KEY, signups bigint NOT NULL)`
)

const Live = Orchestrator.layer({ replicaSet: "http-projections", projections: [signups] }).pipe(
  Layer.provide(SignupsPerDay),
  Layer.provideMerge(PostgresStores.layer),
  Layer.provideMerge(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))
)

// A worker that fails logs why, and starts again after a pause; the API continues meanwhile.
const Worker = Layer.effectDiscard(Effect.forkScoped(Effect.retry(Orchestrator.run, Schedule.spaced("5 seconds"))))

Program.runMain(Layer.launch(Layer.mergeAll(HttpApp, Worker)).pipe(Effect.provide(Live)))
