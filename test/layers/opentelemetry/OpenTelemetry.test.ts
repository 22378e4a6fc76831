/** A worker beside an OpenTelemetry SDK that the application has started. */
import { assert, it } from "@effect/vitest"
import * as Otel from "@opentelemetry/api"
import { logs } from "@opentelemetry/api-logs"
import { InMemoryLogRecordExporter, LoggerProvider, SimpleLogRecordProcessor } from "@opentelemetry/sdk-logs"
import { MetricReader } from "@opentelemetry/sdk-metrics"
import { InMemorySpanExporter, SimpleSpanProcessor } from "@opentelemetry/sdk-trace-base"
import { NodeTracerProvider } from "@opentelemetry/sdk-trace-node"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as MemoryStores from "../../../src/layers/memory/MemoryStores.ts"
import * as OpenTelemetry from "../../../src/layers/opentelemetry/OpenTelemetry.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as TimeLimits from "../../../src/testing/TimeLimits.ts"
import { event } from "../../services/World.ts"

/** A reader that is asked for its metrics. */
class Reader extends MetricReader {
  protected override onForceFlush = () => Promise.resolve()
  protected override onShutdown = () => Promise.resolve()
}

/** Starts an SDK and registers it globally, as an application does; it ends with the scope. */
const sdk = Effect.acquireRelease(
  Effect.sync(() => {
    const spans = new InMemorySpanExporter()
    const records = new InMemoryLogRecordExporter()
    new NodeTracerProvider({ spanProcessors: [new SimpleSpanProcessor(spans)] }).register()
    logs.setGlobalLoggerProvider(
      new LoggerProvider({ processors: [new SimpleLogRecordProcessor({ exporter: records })] })
    )
    return { spans, records }
  }),
  () =>
    Effect.sync(() => {
      for (const api of [Otel.trace, Otel.context, Otel.propagation, logs]) api.disable()
    })
)

/** A span of the API, open while `self` runs in its context, as an instrumented HTTP server does it. */
const inSpan = (name: string, self: Effect.Effect<unknown, unknown>) =>
  Effect.promise(() =>
    Otel.trace.getTracer("app").startActiveSpan(name, async (span) => {
      await Effect.runPromise(self)
      span.end()
    })
  )

const users = Projection.make("users", {
  handle: () => Effect.promise(async () => Otel.trace.getTracer("app").startActiveSpan("charge", (span) => span.end()))
})

it.live("spans, log lines and metrics of a worker go to the application's SDK, and nest with its spans", () =>
  Effect.gen(function*() {
    const { records, spans } = yield* sdk
    const Live = Orchestrator.layer({ replicaSet: "opentelemetry", workerId: "worker-1", projections: [users] }).pipe(
      Layer.provideMerge(MemoryStores.layer),
      Layer.provideMerge(OpenTelemetry.layer)
    )
    yield* Effect.gen(function*() {
      const events = yield* EventStore
      const context = yield* Effect.context<never>()
      yield* inSpan("request", Effect.provideContext(events.append([event("a")]), context))
      const fiber = yield* Effect.forkScoped(Orchestrator.run)
      const finished = Effect.sync(() => spans.getFinishedSpans().map(({ name }) => name))
      yield* TimeLimits.waitUntil("the batch has ended", finished, (names) => names.includes("process users"))
      yield* Fiber.interrupt(fiber)
    }).pipe(Effect.scoped, Effect.provide(Live))

    const named = (name: string) => spans.getFinishedSpans().find((span) => span.name === name)!
    const [request, append, batch, charge] = ["request", "append", "process users", "charge"].map(named)
    assert.strictEqual(append!.parentSpanContext?.spanId, request!.spanContext().spanId)
    assert.deepStrictEqual(batch!.links.map(({ context }) => context.traceId), [request!.spanContext().traceId])
    assert.isUndefined(batch!.parentSpanContext)
    assert.strictEqual(batch!.kind, Otel.SpanKind.CONSUMER)
    assert.strictEqual(batch!.attributes["pupsourcing.worker"], "worker-1")
    assert.strictEqual(charge!.parentSpanContext?.spanId, batch!.spanContext().spanId)

    const line = records.getFinishedLogRecords().find(({ body }) => body === "Processing events...")
    assert.deepInclude(line?.attributes, { replica_set: "opentelemetry", worker: "worker-1" })

    const reader = new Reader({ metricProducers: [OpenTelemetry.metricProducer()] })
    reader.setMetricProducer({
      collect: () =>
        Promise.resolve({ errors: [], resourceMetrics: { resource: named("append").resource, scopeMetrics: [] } })
    })
    const { resourceMetrics } = yield* Effect.promise(() => reader.collect())
    const processed = resourceMetrics.scopeMetrics.flatMap(({ metrics }) => metrics)
      .find(({ descriptor }) => descriptor.name === "pupsourcing_orchestrator_events_processed_total")
    const point = processed?.dataPoints.find(({ attributes }) => attributes["replica_set"] === "opentelemetry")
    assert.strictEqual(point?.value, 1)
    assert.deepInclude(point?.attributes, { projection: "users" })
  }).pipe(Effect.scoped))
