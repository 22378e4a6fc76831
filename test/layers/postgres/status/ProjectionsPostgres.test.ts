import { assert, it } from "@effect/vitest"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Schema from "effect/Schema"
import * as SqlClient from "effect/sql/SqlClient"
import * as PostgresStores from "../../../../src/layers/postgres/PostgresStores.ts"
import * as EventFilter from "../../../../src/schema/EventFilter.ts"
import * as LagWindow from "../../../../src/schema/LagWindow.ts"
import * as Status from "../../../../src/schema/Status.ts"
import { Projections } from "../../../../src/services/Projections.ts"
import * as ParkedOperationsSuite from "../../../suites/ParkedOperationsSuite.ts"
import * as ProjectionsSuite from "../../../suites/ProjectionsSuite.ts"
import { realTime } from "../../../suites/Suite.ts"
import * as EventStores from "../../../support/EventStores.ts"

const stores = PostgresStores.layer.pipe(Layer.provideMerge(EventStores.database()))

ProjectionsSuite.suite("postgres", stores, { time: realTime })
ParkedOperationsSuite.suite("postgres", stores, { time: realTime })

const status = Effect.flatMap(Projections, ({ status }) => status)

/** Appends `count` events, half of them of type `Even`, in one statement. */
const fill = (count: number) =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) =>
      sql`INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
      SELECT 'test', 'Test', gen_random_uuid(), 1, gen_random_uuid(), CASE i % 2 WHEN 0 THEN 'Even' ELSE 'Odd' END, ''
      FROM generate_series(1, ${count}::int) AS i`
  )

const row = (position: number, filter: EventFilter.EventFilter) =>
  Effect.flatMap(
    SqlClient.SqlClient,
    (sql) =>
      sql`INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, position, replica_set, filter)
      VALUES ('even', 0, 4294967296, ${position}::int, 'main', ${EventFilter.canonical(filter)})`
  )

const lag = Effect.map(status, ({ replicaSets }) => replicaSets[0]!.projections[0]!.ranges[0]!.lag)

it.live("counts at most a window of events, and extrapolates beyond it", () =>
  Effect.gen(function*() {
    yield* row(0, { eventTypes: ["Even"] })
    yield* fill(LagWindow.largest - 2)
    assert.deepInclude(yield* lag, { events: BigInt(LagWindow.largest - 2) / 2n, isEstimate: false })
    yield* fill(LagWindow.largest + 2)
    const { events, isEstimate, oldest } = yield* lag
    assert.isTrue(isEstimate)
    assert.approximately(Number(events), LagWindow.largest, LagWindow.largest / 100)
    assert.instanceOf(oldest, Date)
  }).pipe(Effect.provide(stores)))

it.live("counts fewer events of each range if many ranges lag", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const ranges = 2 * LagWindow.budget / LagWindow.largest
    yield* sql`INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, position, replica_set, filter)
      SELECT 'p' || i, 0, 4294967296, 0, 'main', ${EventFilter.canonical({ eventTypes: ["Even"] })}
      FROM generate_series(1, ${ranges}::int) AS i`
    const lags = Effect.map(status, ({ replicaSets }) =>
      replicaSets[0]!.projections.flatMap(({ ranges }) => ranges.map(({ lag }) => lag)))
    yield* fill(LagWindow.largest / 2)
    for (const { events, isEstimate } of yield* lags) {
      assert.isTrue(isEstimate)
      assert.strictEqual(events, BigInt(LagWindow.largest / 4))
    }
    // Ranges that do not lag leave their share to the others.
    yield* sql`UPDATE orchestrator_checkpoints SET position = ${
      LagWindow.largest / 2
    }::int WHERE projection_name <> 'p1'`
    assert.lengthOf((yield* lags).filter(({ isEstimate }) => isEstimate), 0)
  }).pipe(Effect.provide(stores)))

it.live("lists more ranges than fit into one message of the server", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    const [projections, ranges] = [100, 16]
    yield* sql`INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, position, replica_set, filter)
      SELECT 'p' || i, r::int8 * 268435456, (r + 1)::int8 * 268435456, 0, 'main', ${EventFilter.canonical({})}
      FROM generate_series(1, ${projections}::int) AS i, generate_series(0, ${ranges}::int - 1) AS r`
    const found = (yield* status).replicaSets[0]!.projections
    assert.lengthOf(found, projections)
    for (const { ranges: own } of found) {
      assert.deepStrictEqual(own.map(({ start }) => start), Array.from({ length: ranges }, (_, r) => r * 268435456))
    }
  }).pipe(Effect.provide(
    PostgresStores.layer.pipe(Layer.provideMerge(EventStores.database({ client: { maxMessageSize: 64 * 1024 } })))
  )))

for (const time of ["infinity", "294000-01-01"]) {
  it.live(`can be written as JSON although the oldest event is of ${time}`, () =>
    Effect.gen(function*() {
      const sql = yield* SqlClient.SqlClient
      yield* row(0, {})
      yield* fill(1)
      yield* sql`UPDATE events SET created_at = ${time}::text::timestamptz`
      const read = yield* status
      assert.deepStrictEqual(read.replicaSets[0]!.projections[0]!.ranges[0]!.lag, { events: 1n, isEstimate: false })
      yield* Schema.encodeEffect(Schema.toCodecJson(Status.Status))(read)
    }).pipe(Effect.provide(stores)))
}

it.live("lists the transactions for which readers wait", () =>
  Effect.gen(function*() {
    const sql = yield* SqlClient.SqlClient
    assert.deepStrictEqual((yield* status).openWriters, [])
    const [isOpen, end] = [Latch.makeUnsafe(false), Latch.makeUnsafe(false)]
    const writer = yield* fill(1).pipe(
      Effect.andThen(isOpen.open),
      Effect.andThen(end.await),
      sql.withTransaction,
      Effect.forkScoped
    )
    yield* isOpen.await
    const [found] = (yield* status).openWriters ?? []
    assert.isNumber(found?.pid)
    assert.instanceOf(found?.since, Date)
    yield* Effect.andThen(end.open, Fiber.join(writer))
    assert.deepStrictEqual((yield* status).openWriters, [])
  }).pipe(Effect.provide(stores)))
