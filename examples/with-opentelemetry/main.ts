/**
 * Appends two orders, handles them, and sends traces and metrics to a small collector in the same process, which prints what it
 * has received. Set the standard `OTEL_EXPORTER_OTLP_ENDPOINT` to send them to your own collector instead.
 */
import { Config, ConfigProvider, Console, Effect, Layer, Option } from "effect"
import { FetchHttpClient } from "effect/http"
import { Otlp, OtlpSerialization } from "effect/observability"
import { EventStore, Orchestrator, PostgresStores, Program } from "pupsourcing-orchestrator"
import * as ConsoleLog from "../support/ConsoleLog.ts"
import * as Database from "../support/Database.ts"
import * as Collector from "./collector.ts"
import { shipments, Table } from "./projection.ts"

/** In production these variables are in the environment of the process. */
const telemetry = (url: string) =>
  Otlp.layerFromConfig({ loggerExcludeLogSpans: true }).pipe(
    Layer.provide([OtlpSerialization.layerJson, FetchHttpClient.layer]),
    Layer.provide(ConfigProvider.layer(ConfigProvider.fromEnv({
      env: {
        OTEL_TRACES_EXPORTER: "otlp",
        OTEL_METRICS_EXPORTER: "otlp",
        OTEL_SERVICE_NAME: "with-opentelemetry",
        OTEL_EXPORTER_OTLP_ENDPOINT: url
      }
    })))
  )

const Live = Orchestrator.layer({ replicaSet: "with-opentelemetry", projections: [shipments] }).pipe(
  Layer.provide(Table),
  Layer.provideMerge(PostgresStores.layer),
  Layer.provide(PostgresStores.layerMigrations),
  Layer.provideMerge(Database.layer)
)

/** The handler of a request, as an HTTP server would run it in a span. */
const placeOrder = Effect.fn("POST /orders")(function*() {
  const events = yield* EventStore.EventStore
  yield* events.append([{
    boundedContext: "sales",
    aggregateType: "Order",
    aggregateId: `order-${crypto.randomUUID()}`,
    eventType: "OrderPlaced",
    payload: {}
  }])
})

const program = Effect.gen(function*() {
  const collector = yield* Collector.start
  const endpoint = yield* Config.option(Config.String("OTEL_EXPORTER_OTLP_ENDPOINT"))
  const url = Option.getOrElse(endpoint, () => collector.url)
  // What is buffered is sent when the layer closes.
  yield* Effect.all([placeOrder(), placeOrder(), Orchestrator.catchUp], { discard: true }).pipe(
    Effect.provide(Live.pipe(Layer.provideMerge(telemetry(url))))
  )
  if (Option.isSome(endpoint)) return yield* Console.log(`Sent to ${url}`)
  yield* Console.log(Collector.render(collector.spans))
  yield* Console.log(`${collector.metrics.size} metrics, such as ${[...collector.metrics].sort()[0]}`)
})

Program.runMain(Effect.scoped(program).pipe(Effect.provide(ConsoleLog.layer)))
