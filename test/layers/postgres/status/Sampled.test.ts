import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../../src/services/Orchestrator.ts"
import * as Projection from "../../../../src/services/Projection.ts"
import * as Metrics from "../../../../src/services/telemetry/Metrics.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../../support/EventStores.ts"

const stores = PostgresStores.layer.pipe(Layer.provideMerge(EventStores.database({ client: { maxConnections: 2 } })))

const hanging = (name: string) => Projection.make(name, { handle: () => Effect.never })

it.live("the lag is reported although handlers hang on every connection that batches may use", () =>
  Effect.gen(function*() {
    const events = yield* EventStore
    for (const id of ["a", "b", "c"]) yield* events.append([EventStores.event(id)])
    const orchestrator = yield* Orchestrator.make({
      replicaSet: "main",
      workerId: "w",
      drainTimeout: "10 millis",
      projections: [hanging("one"), hanging("two")]
    })
    yield* Effect.forkScoped(orchestrator.run)
    const lagOf = (projection: string) =>
      Effect.map(
        Metric.value(
          Metric.withAttributes(Metrics.projectionLagEvents, { replica_set: "main", worker_id: "w", projection })
        ),
        ({ value }) => value
      )
    const lags = Effect.all([lagOf("one"), lagOf("two")])
    const found = yield* TimeLimits.waitUntil("the lag is sampled", lags, (all) => all.every((lag) => lag === 3))
    assert.deepStrictEqual(found, [3, 3])
  }).pipe(Effect.provide(stores), Effect.provideService(Metric.MetricRegistry, new Map())))
