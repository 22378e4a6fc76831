/** The recipe of docs/tracing.md: what an OpenTelemetry collector receives from a worker. */
import { assert, it } from "@effect/vitest"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as FetchHttpClient from "effect/http/FetchHttpClient"
import * as Layer from "effect/Layer"
import * as Otlp from "effect/observability/Otlp"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import { event } from "../../services/World.ts"
import * as OtlpReceiver from "../../support/OtlpReceiver.ts"

const users = Projection.make("users", { handle: () => Effect.void })

const environment = (url: string) => ({
  OTEL_EXPORTER_OTLP_ENDPOINT: url,
  OTEL_TRACES_EXPORTER: "otlp",
  OTEL_METRICS_EXPORTER: "otlp",
  OTEL_LOGS_EXPORTER: "otlp",
  OTEL_SERVICE_NAME: "projections",
  OTEL_RESOURCE_ATTRIBUTES: "service.instance.id=worker-1"
})

const runWorker = Effect.fnUntraced(function*(replicaSet: string) {
  const events = yield* EventStore
  yield* Effect.withSpan(events.append([event("a"), event("a")]), "request")
  const orchestrator = yield* Orchestrator.make({ replicaSet, workerId: "worker-1", projections: [users] })
  yield* orchestrator.catchUp
})

it.live.each(
  [
    ["application/json", OtlpSerialization.layerJson],
    ["application/x-protobuf", OtlpSerialization.layerProtobuf]
  ] as const
)(
  "a collector receives spans with links, metrics and log lines as %s",
  ([contentType, serialization]) =>
    Effect.gen(function*() {
      const { problems, received, url } = yield* OtlpReceiver.start
      const telemetry = Otlp.layerFromConfig().pipe(
        Layer.provide([serialization, FetchHttpClient.layer]),
        Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({ env: environment(url) })))
      )
      const replicaSet = `otlp ${contentType}`
      // What is buffered is sent when the layer closes.
      yield* Effect.provide(runWorker(replicaSet), Layer.provideMerge(MemoryStores.layer, telemetry))

      assert.deepStrictEqual(problems, [])
      assert.deepStrictEqual([...received.contentTypes], [contentType])
      assert.deepInclude(OtlpReceiver.valuesOf(received.resources[0]!), {
        "service.name": "projections",
        "service.instance.id": "worker-1"
      })
      const batch = received.spans.find(({ name }) => name === "process users")
      const request = received.spans.find(({ name }) => name === "request")
      assert.deepInclude(OtlpReceiver.valuesOf(batch!.attributes), {
        "pupsourcing.replica_set": replicaSet,
        "pupsourcing.worker": "worker-1",
        "pupsourcing.position.last": 2,
        "messaging.batch.message_count": 2
      })
      assert.deepStrictEqual(batch!.links?.map(({ traceId }) => traceId), [request!.traceId])
      assert.notStrictEqual(batch!.traceId, request!.traceId)

      const points = received.metrics.filter(({ name }) => name === "pupsourcing_orchestrator_events_processed_total")
        .flatMap(({ sum }) => sum?.dataPoints ?? [])
        .filter(({ attributes }) => OtlpReceiver.valuesOf(attributes)["replica_set"] === replicaSet)
      assert.include(points.map(({ asDouble, asInt }) => Number(asInt ?? asDouble)), 2)

      const line = received.logs.find(({ body }) => body.stringValue === "Processing events...")
      assert.deepInclude(OtlpReceiver.valuesOf(line?.attributes ?? []), {
        replica_set: replicaSet,
        worker: "worker-1",
        generation: "1"
      })
    }).pipe(Effect.scoped)
)
