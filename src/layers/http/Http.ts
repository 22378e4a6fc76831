/**
 * HTTP endpoints of a worker: `GET /metrics` for Prometheus, `/healthz` and `/readyz` for probes, `/status` for operators, and
 * `/openapi.json`. Requests are not logged. Import it from `pupsourcing-orchestrator/http`.
 *
 * **Example** (A worker with endpoints)
 *
 * ```ts
 * import { PgClient } from "@effect/sql-pg"
 * import { Config, Effect, Layer } from "effect"
 * import { Orchestrator, PostgresStores, Program, Projection } from "pupsourcing-orchestrator"
 * import * as Http from "pupsourcing-orchestrator/http"
 *
 * const users = Projection.make("users", { handle: (event) => Effect.logInfo(event.eventType) })
 *
 * const Live = Orchestrator.layer({ replicaSet: "main-projections", projections: [users] }).pipe(
 *   Layer.provideMerge(PostgresStores.layer),
 *   Layer.provideMerge(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))
 * )
 *
 * Program.runMain(Orchestrator.run.pipe(
 *   Effect.provide(Http.layer({ port: 9090 })),
 *   Effect.provide(Live)
 * ))
 * ```
 *
 * @since 0.1.0
 */
import * as NodeHttpServer from "@effect/platform-node/NodeHttpServer"
import * as Effect from "effect/Effect"
import * as HttpApi from "effect/http-api/HttpApi"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as HttpApiEndpoint from "effect/http-api/HttpApiEndpoint"
import * as HttpApiGroup from "effect/http-api/HttpApiGroup"
import * as HttpApiSchema from "effect/http-api/HttpApiSchema"
import * as OpenApi from "effect/http-api/OpenApi"
import * as HttpEffect from "effect/http/HttpEffect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServer from "effect/http/HttpServer"
import type { ServeError } from "effect/http/HttpServerError"
import * as Layer from "effect/Layer"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import { createServer } from "node:http"
import { id } from "../../schema/ErrorId.ts"
import { Health } from "../../schema/Health.ts"
import { Status } from "../../schema/Status.ts"
import { Orchestrator } from "../../services/Orchestrator.ts"
import { Projections } from "../../services/Projections.ts"

/**
 * The worker is not ready for work, for the reason in `health.problem`. Answered with 503.
 *
 * @category errors
 * @since 0.1.0
 */
export class NotReady extends Schema.TaggedError<NotReady>(id("NotReady"))("NotReady", { health: Health }, {
  httpApiStatus: 503
}) {
  override get message(): string {
    return this.health.problem ?? "The worker is not ready."
  }
}

/**
 * The status cannot be read, because the database cannot be used. Answered with 503; a later request may succeed.
 *
 * @category errors
 * @since 0.1.0
 */
export class StatusUnavailable extends Schema.TaggedError<StatusUnavailable>(id("StatusUnavailable"))(
  "StatusUnavailable",
  { problem: Schema.String },
  { httpApiStatus: 503 }
) {
  override get message(): string {
    return this.problem
  }
}

/**
 * The endpoints, for clients that `HttpApiClient` derives.
 *
 * @category models
 * @since 0.1.0
 */
export const Api = HttpApi.make("pupsourcing-orchestrator").add(
  HttpApiGroup.make("worker", { topLevel: true }).add(
    HttpApiEndpoint.get("metrics", "/metrics", {
      success: Schema.String.pipe(HttpApiSchema.asText({ contentType: "text/plain; version=0.0.4; charset=utf-8" }))
    }).annotate(OpenApi.Description, "The metrics of the process in the format of Prometheus"),
    HttpApiEndpoint.get("alive", "/healthz", { success: Health })
      .annotate(OpenApi.Description, "Always 200: the process answers. The database does not matter"),
    HttpApiEndpoint.get("ready", "/readyz", { success: Health, error: NotReady })
      .annotate(OpenApi.Description, "200 while the worker is registered and renews its heartbeat; otherwise 503"),
    HttpApiEndpoint.get("status", "/status", { success: Status, error: StatusUnavailable })
      .annotate(
        OpenApi.Description,
        "Workers, position, owner, lag and halt of every range, and parked events, of all replica sets"
      )
  )
).annotate(OpenApi.Title, "pupsourcing-orchestrator")

/** How long an answer of `/status` is reused, so that requests cannot load the database. */
const statusTimeToLive = "1 second"

const handlers = () =>
  HttpApiBuilder.group(
    Api,
    "worker",
    Effect.fnUntraced(function*(handlers) {
      const { health } = yield* Orchestrator
      const projections = yield* Projections
      const status = yield* Effect.cachedWithTTL(projections.status, statusTimeToLive)
      return handlers.handleAll({
        metrics: () => PrometheusMetrics.format(),
        alive: () => health,
        ready: () =>
          Effect.flatMap(health, (health) =>
            health.problem === undefined ? Effect.succeed(health) : Effect.fail(new NotReady({ health }))),
        status: () =>
          Effect.mapError(status, ({ message }) => new StatusUnavailable({ problem: message }))
      })
    })
  )

/**
 * The routes, for an existing router.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerRoutes = (): Layer.Layer<never, never, HttpRouter.HttpRouter | Orchestrator | Projections> =>
  HttpApiBuilder.layer(Api, { openapiPath: "/openapi.json" }).pipe(
    Layer.provide(handlers()),
    Layer.provide(HttpServer.layerServices),
    Layer.provide(HttpRouter.disableLogger)
  )

/**
 * A server of its own. It listens on the loopback address unless `host` is given: in a container, use `"0.0.0.0"`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = (
  { host = "127.0.0.1", port }: { readonly port: number; readonly host?: string | undefined }
): Layer.Layer<never, ServeError, Orchestrator | Projections> =>
  HttpRouter.serve(layerRoutes(), { disableLogger: true, disableListenLog: true }).pipe(
    Layer.provide(NodeHttpServer.layer(createServer, { port, host }))
  )

/**
 * Makes a handler of Fetch requests, for Express, Fastify, Hono, Next and others. It works until the scope closes.
 *
 * @category constructors
 * @since 0.1.0
 */
export const makeFetchHandler: Effect.Effect<
  (request: Request) => Promise<Response>,
  never,
  Orchestrator | Projections | Scope.Scope
> = Effect.gen(function*() {
  const app = yield* HttpRouter.toHttpEffect(layerRoutes())
  const context = yield* Effect.context<never>()
  const handle = HttpEffect.toWebHandler(app)
  return (request) => handle(request, context)
})
