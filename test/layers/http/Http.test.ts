import { assert, it } from "@effect/vitest"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import express, { type RequestHandler } from "express"
import { Hono } from "hono"
import { createServer as createHttpServer, type RequestListener } from "node:http"
import type { AddressInfo } from "node:net"
import * as Http from "../../../src/layers/http/Http.ts"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import { DatabaseUnavailable, StoreError } from "../../../src/schema/Errors.ts"
import { Health } from "../../../src/schema/Health.ts"
import { Status } from "../../../src/schema/Status.ts"
import { Membership } from "../../../src/services/Membership.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import { Projections } from "../../../src/services/Projections.ts"
import { logs, pass, unavailable } from "../../services/World.ts"
import { freePort } from "../../support/FreePort.ts"

const projection = Projection.make("users", { handle: () => Effect.void })

const orchestrator = Orchestrator.layer({ replicaSet: "main", workerId: "a", projections: [projection] })

const live = orchestrator.pipe(Layer.provideMerge(MemoryStores.layer))

/** A function that requests a path of a new handler. */
const client = Effect.map(
  Http.makeFetchHandler,
  (handle) => (path: string, method = "GET") =>
    Effect.promise(async () => {
      const response = await handle(new Request(`http://worker${path}`, { method }))
      return { status: response.status, type: response.headers.get("content-type"), body: await response.text() }
    })
)

const parse = <A, I>(schema: Schema.Codec<A, I>, body: string) =>
  Schema.decodeUnknownEffect(Schema.fromJsonString(Schema.toCodecJson(schema)))(body)

it.effect("answers probes from the worker's health, without a log line", () => {
  const { layer, lines } = logs()
  return Effect.gen(function*() {
    const get = yield* client
    const before = yield* get("/readyz")
    assert.strictEqual(before.status, 503)
    assert.strictEqual((yield* parse(Http.NotReady, before.body)).message, "The worker is not running.")
    assert.strictEqual((yield* get("/healthz")).status, 200)
    yield* Effect.forkScoped(Orchestrator.run)
    yield* pass(1000)
    lines.length = 0
    const ready = yield* get("/readyz")
    assert.strictEqual(ready.status, 200)
    const health = yield* parse(Health, ready.body)
    assert.deepInclude(health, { replicaSet: "main", workerId: "a", state: "running", partition: 0, ranges: 1 })
    for (const path of ["/healthz", "/readyz", "/metrics", "/status", "/openapi.json"]) {
      for (const method of ["POST", "PUT", "PATCH", "DELETE"]) {
        assert.strictEqual((yield* get(path, method)).status, 404, `${method} ${path}`)
      }
    }
    assert.deepStrictEqual(lines, [])
  }).pipe(Effect.provide(Layer.provideMerge(live, layer)))
})

it.effect("serves metrics, the status, and a description of both", () =>
  Effect.gen(function*() {
    const get = yield* client
    yield* Effect.forkScoped(Orchestrator.run)
    yield* pass(1000)
    const metrics = yield* get("/metrics")
    assert.match(metrics.type!, /^text\/plain; ?version=0\.0\.4/)
    assert.match(metrics.body, /^pupsourcing_orchestrator_active_workers\{.*replica_set="main".*\} 1$/m)
    const status = yield* parse(Status, (yield* get("/status")).body)
    assert.deepStrictEqual(status.replicaSets.map(({ replicaSet, workers }) => [replicaSet, workers.length]), [[
      "main",
      1
    ]])
    const api = JSON.parse((yield* get("/openapi.json")).body)
    assert.sameMembers(Object.keys(api.paths), ["/metrics", "/healthz", "/readyz", "/status"])
  }).pipe(Effect.provide(live), Effect.provideService(Metric.MetricRegistry, new Map())))

it.effect("answers 503 while the status cannot be read", () =>
  Effect.gen(function*() {
    const reason = new DatabaseUnavailable({
      condition: "refused",
      server: "db:5432",
      database: "app",
      user: "app",
      cause: new Error("refused")
    })
    const get = yield* Effect.provideService(client, Projections, {
      ...(yield* Projections),
      status: Effect.fail(new StoreError({ reason }))
    })
    const { body, status } = yield* get("/status")
    assert.strictEqual(status, 503)
    assert.strictEqual((yield* parse(Http.StatusUnavailable, body)).message, reason.message)
    assert.strictEqual((yield* get("/healthz")).status, 200)
  }).pipe(Effect.provide(live)))

it.live("listens only on the loopback address unless a host is given, and logs no request", () => {
  const { layer, lines } = logs()
  return Effect.gen(function*() {
    const [port, other] = [yield* freePort, yield* freePort]
    const statusOf = (address: string, port: number) =>
      Effect.tryPromise(() => fetch(`http://${address}:${port}/healthz`)).pipe(
        Effect.map(({ status }) => status),
        Effect.orElseSucceed(() => "refused")
      )
    yield* Layer.build(Http.layer({ port }))
    yield* Layer.build(Http.layer({ port: other, host: "0.0.0.0" }))
    lines.length = 0
    // Another address of the same machine.
    const answers = [
      yield* statusOf("127.0.0.1", port),
      yield* statusOf("127.0.0.2", port),
      yield* statusOf("127.0.0.2", other)
    ]
    assert.deepStrictEqual(answers, [200, "refused", 200])
    assert.deepStrictEqual(lines, [])
  }).pipe(Effect.provide(Layer.provideMerge(live, layer)))
})

it.effect("during a database outage the worker is alive and not ready, and afterwards it is ready again", () => {
  const isDown = { now: false }
  const down = <A, E, R>(self: Effect.Effect<A, E, R>) =>
    Effect.suspend((): Effect.Effect<A, E | StoreError, R> => isDown.now ? Effect.fail(unavailable) : self)
  const stores = Layer.effectContext(Effect.gen(function*() {
    const [membership, projections] = [yield* Membership, yield* Projections]
    return Context.make(Membership, { ...membership, heartbeat: (...args) => down(membership.heartbeat(...args)) })
      .pipe(
        Context.add(Projections, { ...projections, status: down(projections.status) })
      )
  })).pipe(Layer.provideMerge(MemoryStores.layer))
  return Effect.gen(function*() {
    const get = yield* client
    const codes = Effect.forEach(
      ["/healthz", "/readyz", "/status"],
      (path) => Effect.map(get(path), ({ status }) => status)
    )
    yield* Effect.forkScoped(Orchestrator.run)
    yield* pass(1000)
    assert.deepStrictEqual(yield* codes, [200, 200, 200])
    isDown.now = true
    yield* pass(12_000)
    assert.deepStrictEqual(yield* codes, [200, 503, 503])
    isDown.now = false
    yield* pass(12_000)
    assert.deepStrictEqual(yield* codes, [200, 200, 200])
  }).pipe(Effect.provide(orchestrator.pipe(Layer.provideMerge(stores), Layer.provideMerge(logs().layer))))
})

/** Serves an application on a free port, and returns a function that requests a path of it. */
const served = Effect.fnUntraced(function*(listener: RequestListener) {
  const server = yield* Effect.acquireRelease(
    Effect.sync(() => createHttpServer(listener)),
    (server) => Effect.sync(() => server.close())
  )
  const port = yield* Effect.callback<number>((resume) => {
    server.listen(0, "127.0.0.1", () => resume(Effect.succeed((server.address() as AddressInfo).port)))
  })
  return (path: string) =>
    Effect.map(Effect.promise(() => fetch(`http://127.0.0.1:${port}${path}`)), ({ status }) => status)
})

/** Makes a handler of Express 5 from a handler of Fetch requests. The endpoints read no body. */
const toExpress = (handle: (request: Request) => Promise<Response>): RequestHandler => async (request, response) => {
  const answer = await handle(new Request(new URL(request.url, "http://localhost"), { method: request.method }))
  response.status(answer.status).set(Object.fromEntries(answer.headers)).send(await answer.text())
}

it.live("is mounted in Express, under a path of the application", () =>
  Effect.gen(function*() {
    const handle = yield* Http.makeFetchHandler
    const app = express()
    app.use("/worker", toExpress(handle))
    app.get("/", (_request, response) => {
      response.send("the application")
    })
    const get = yield* served(app)
    assert.deepStrictEqual(
      yield* Effect.forEach(["/", "/worker/healthz", "/worker/readyz", "/worker/other", "/healthz"], get),
      [200, 200, 503, 404, 404]
    )
  }).pipe(Effect.provide(live)))

it.live("is mounted in Hono, under a path of the application", () =>
  Effect.gen(function*() {
    const handle = yield* Http.makeFetchHandler
    const app = new Hono().get("/", (context) => context.text("the application")).mount("/worker", handle)
    const get = (path: string) => Effect.map(Effect.promise(async () => app.request(path)), ({ status }) => status)
    assert.deepStrictEqual(
      yield* Effect.forEach(["/", "/worker/healthz", "/worker/readyz", "/worker/other", "/healthz"], get),
      [200, 200, 503, 404, 404]
    )
  }).pipe(Effect.provide(live)))
