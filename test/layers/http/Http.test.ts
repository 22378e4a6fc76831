import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Schema from "effect/Schema"
import { type AddressInfo, createServer } from "node:net"
import * as Http from "../../../src/layers/http/Http.ts"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import { DatabaseUnavailable, StoreError } from "../../../src/schema/Errors.ts"
import { Health } from "../../../src/schema/Health.ts"
import { Status } from "../../../src/schema/Status.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import { Projections } from "../../../src/services/Projections.ts"
import { logs, pass } from "../../services/World.ts"

const projection = Projection.make("users", { handle: () => Effect.void })

const live = Orchestrator.layer({ replicaSet: "main", workerId: "a", projections: [projection] }).pipe(
  Layer.provideMerge(MemoryStores.layer)
)

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
    assert.strictEqual((yield* get("/readyz", "POST")).status, 404)
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
    const get = yield* Effect.provideService(client, Projections, { status: Effect.fail(new StoreError({ reason })) })
    const { body, status } = yield* get("/status")
    assert.strictEqual(status, 503)
    assert.strictEqual((yield* parse(Http.StatusUnavailable, body)).message, reason.message)
    assert.strictEqual((yield* get("/healthz")).status, 200)
  }).pipe(Effect.provide(live)))

/** A port on which nothing listened a moment ago. */
const freePort = Effect.callback<number>((resume) => {
  const server = createServer()
  server.listen(0, "127.0.0.1", () => {
    const { port } = server.address() as AddressInfo
    server.close(() => resume(Effect.succeed(port)))
  })
})

it.live("listens on the loopback address", () =>
  Effect.gen(function*() {
    const port = yield* freePort
    yield* Layer.build(Http.layer({ port }))
    const response = yield* Effect.promise(() => fetch(`http://127.0.0.1:${port}/healthz`))
    assert.strictEqual(response.status, 200)
  }).pipe(Effect.provide(live)))
