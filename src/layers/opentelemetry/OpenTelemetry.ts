/**
 * Connects workers with an OpenTelemetry SDK that the application has started, for example before its modules are loaded,
 * so that auto-instrumentation works: their spans, log lines and metrics go to that SDK. Import it from
 * `pupsourcing-orchestrator/opentelemetry`.
 *
 * **When to use**
 *
 * Use it if your application uses `@opentelemetry/api`, directly or through instrumented libraries. Spans that a handler
 * opens with that API are then children of its batch's span, and an `append` belongs to the active span of the API.
 * Without an SDK, `Otlp` of `effect/observability` needs fewer packages.
 *
 * **Example** (Start the SDK, then a worker)
 *
 * ```ts
 * import { PgClient } from "@effect/sql-pg"
 * import { metrics } from "@opentelemetry/api"
 * import { ConsoleMetricExporter, MeterProvider, PeriodicExportingMetricReader } from "@opentelemetry/sdk-metrics"
 * import { BatchSpanProcessor, ConsoleSpanExporter } from "@opentelemetry/sdk-trace-base"
 * import { NodeTracerProvider } from "@opentelemetry/sdk-trace-node"
 * import { Config, Effect, Layer } from "effect"
 * import { Orchestrator, PostgresStores, Program, Projection } from "pupsourcing-orchestrator"
 * import * as OpenTelemetry from "pupsourcing-orchestrator/opentelemetry"
 *
 * new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(new ConsoleSpanExporter())] }).register()
 * metrics.setGlobalMeterProvider(new MeterProvider({
 *   readers: [new PeriodicExportingMetricReader({
 *     exporter: new ConsoleMetricExporter(),
 *     metricProducers: [OpenTelemetry.metricProducer()]
 *   })]
 * }))
 *
 * const users = Projection.make("users", { handle: (event) => Effect.logInfo(event.eventType) })
 *
 * const Live = Orchestrator.layer({ replicaSet: "main-projections", projections: [users] }).pipe(
 *   Layer.provide(PostgresStores.layer),
 *   Layer.provideMerge(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") })),
 *   Layer.provideMerge(OpenTelemetry.layer)
 * )
 *
 * Program.runMain(Orchestrator.run.pipe(Effect.provide(Live)))
 * ```
 *
 * @since 0.1.0
 */
import * as OtelLogger from "@effect/opentelemetry/OtelLogger"
import * as OtelMetrics from "@effect/opentelemetry/OtelMetrics"
import * as OtelTracer from "@effect/opentelemetry/OtelTracer"
import * as Resource from "@effect/opentelemetry/Resource"
import { logs } from "@opentelemetry/api-logs"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"

/**
 * Sends the spans of the program to the global tracer provider of `@opentelemetry/api`, and its log lines to the global
 * logger provider of `@opentelemetry/api-logs`, in addition to the program's other loggers. Providers that are registered
 * later are used, too; without one, nothing is sent.
 *
 * **Gotchas**
 *
 * Provide it with `Layer.provideMerge`, so that the worker and the code beside it have the tracer. Spans of
 * `@opentelemetry/api` nest only if the SDK has registered a context manager, as `NodeTracerProvider.register` does.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer: Layer.Layer<OtelTracer.OtelTracer> = Layer.merge(
  OtelTracer.layerGlobal,
  OtelLogger.layer({ mergeWithExisting: true }).pipe(
    // Only its `getLogger` is used, which providers of the API have too.
    Layer.provide(Layer.sync(
      OtelLogger.OtelLoggerProvider,
      () => logs.getLoggerProvider() as OtelLogger.OtelLoggerProvider["Service"]
    ))
  )
)

/**
 * Returns the metrics of all workers of the process for a metric reader of the SDK: pass it as one of the reader's
 * `metricProducers`. It can be made before the program starts. `temporality` must be that of the exporter; default
 * `"cumulative"`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const metricProducer = (
  temporality?: OtelMetrics.TemporalityPreference
): Effect.Success<ReturnType<typeof OtelMetrics.makeProducer>> =>
  Effect.runSync(Effect.provide(OtelMetrics.makeProducer(temporality), Resource.layerEmpty))
