/** Tests what docs/monitoring.md states about metrics that are not published. */
import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as PrometheusMetrics from "effect/observability/PrometheusMetrics"
import { MemoryStores, Orchestrator, Projection } from "../../src/index.ts"

const Live = Orchestrator.layer({
  replicaSet: "main",
  projections: [Projection.make("users", { handle: () => Effect.void })]
}).pipe(Layer.provide(MemoryStores.layer))

/** Whether the page of the application contains metrics of a worker that has run. */
const published = (run: (self: typeof Orchestrator.catchUp) => typeof Orchestrator.catchUp) =>
  run(Orchestrator.catchUp).pipe(
    Effect.andThen(PrometheusMetrics.format()),
    Effect.map((page) => page.includes("pupsourcing_orchestrator_")),
    Effect.provide(Live),
    Effect.provideService(Metric.MetricRegistry, new Map())
  )

it.live("a worker with a registry of its own does not publish its metrics", () =>
  Effect.gen(function*() {
    assert.isTrue(yield* published((run) => run))
    assert.isFalse(yield* published(Effect.provideService(Metric.MetricRegistry, new Map())))
  }))
