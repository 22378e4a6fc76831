/** The spans of a worker on PostgreSQL, where effect/sql opens a span for each statement. */
import * as PgClient from "@effect/sql-pg/PgClient"
import { assert } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as Tracer from "effect/Tracer"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../src/services/Orchestrator.ts"
import * as Projection from "../../../src/services/Projection.ts"
import * as TimeLimits from "../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../support/EventStores.ts"
import * as Traces from "../../support/Traces.ts"

const users = Projection.make("users", {
  handle: Effect.fnUntraced(function*({ aggregateId }) {
    const sql = yield* SqlClient.SqlClient
    yield* sql`INSERT INTO users VALUES (${aggregateId})`.pipe(sql.withTransaction, Effect.withSpan("insert user"))
    yield* Effect.annotateCurrentSpan("app.user", aggregateId)
    const events = yield* EventStore
    if (aggregateId === "ada") yield* events.append([EventStores.event("bob")])
  })
})

EventStores.test("only batches, hand-overs, appends and handlers have spans", function*({ sql, url }) {
  const traces = Traces.make()
  yield* sql`CREATE TABLE users (id text PRIMARY KEY)`
  const settings = {
    replicaSet: "main",
    projections: [users],
    heartbeatInterval: "50 millis",
    staleWorkerTimeout: "1 minute"
  } as const
  const Live = Orchestrator.layer(settings).pipe(
    Layer.provideMerge(PostgresStores.layer),
    Layer.provide(PostgresStores.layerMigrations),
    Layer.provide(PgClient.layer({ url: Redacted.make(url) }))
  )
  yield* Effect.gen(function*() {
    const events = yield* EventStore
    const fiber = yield* Effect.forkScoped(Orchestrator.run)
    yield* Effect.withSpan(events.append([EventStores.event("ada")]), "request")
    const stored = Effect.withTracerEnabled(sql<{ id: string }>`SELECT id FROM users`, false)
    yield* TimeLimits.waitUntil("both users are stored", stored, (rows) => rows.length === 2)
    yield* Fiber.interrupt(fiber)
  }).pipe(
    Effect.scoped,
    Effect.provide(Live),
    Effect.provideService(Tracer.Tracer, traces.tracer)
  )

  const tree = (span: Tracer.NativeSpan): unknown => {
    const children = traces.childrenOf(span).map(tree)
    return children.length === 0 ? span.name : [span.name, ...children]
  }
  const trees = traces.spans.filter(({ parent }) => Option.isNone(parent)).map(tree)
  assert.deepStrictEqual(trees.filter((name) => typeof name === "string"), ["switch generation", "leave"])
  const insert = ["insert user", ["sql.transaction", traces.spans.find(({ name }) => name.includes("postgres"))?.name]]
  assert.deepStrictEqual(trees.filter((name) => typeof name !== "string"), [
    ["request", "append"],
    ["process users", insert, "append"],
    ["process users", insert]
  ])

  const [first, second] = traces.named("process users")
  const [appended, caused] = traces.named("append")
  assert.deepStrictEqual(first!.links.map(({ span }) => span.traceId), [appended!.traceId])
  assert.deepStrictEqual(second!.links.map(({ span }) => span.traceId), [caused!.traceId])
  assert.strictEqual(caused!.traceId, first!.traceId)
  assert.strictEqual(first!.attributes.get("app.user"), "ada")
})
