/**
 * Orchestrators in the test's own process, through the public API, on a real server: for tests that need no other
 * process.
 */
import { PgClient } from "@effect/sql-pg"
import { assert, it } from "@effect/vitest"
import { Effect, Layer, References, type Scope } from "effect"
import { SqlClient } from "effect/sql"
import { type Event, EventStore, Orchestrator, PostgresStores, Projection } from "pupsourcing-orchestrator"
import * as EventStores from "../support/EventStores.ts"
import * as Tests from "../support/Tests.ts"

const Live = PostgresStores.layer.pipe(
  Layer.provideMerge(EventStores.database({
    alter: (sql) =>
      sql`CREATE TABLE recorded (projection text, position bigint, aggregate_id text NOT NULL, version bigint NOT NULL,
        bytes int NOT NULL, metadata jsonb, PRIMARY KEY (projection, position))`
  }))
)

/** A test on its own database, without the library's log. */
export const test = Tests.register(
  Effect.all({ sql: PgClient.PgClient, url: Tests.url }),
  (
    name,
    steps: Effect.Effect<void, unknown, Layer.Success<typeof Live> | Scope.Scope>,
    options?: { tags: Array<string> }
  ) =>
    it.live(
      name,
      () => Effect.provide(Effect.scoped(steps), Live).pipe(Effect.provideService(References.MinimumLogLevel, "None")),
      options
    )
)

/** Records what the handler of a projection receives with an event. */
export const record = Effect.fnUntraced(function*(projection: string, event: Event.Event) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`
    INSERT INTO recorded VALUES (${projection}, ${event.globalPosition}::bigint, ${event.aggregateId},
      ${event.aggregateVersion}::bigint, ${event.payload.length}, ${JSON.stringify(event.metadata)}::jsonb)`
})

/** Accepts any payload. */
export const recording = (name: string, filter: Projection.CommonOptions = {}) =>
  Projection.make(name, { ...filter, handle: (event) => record(name, event) })

type Settings = Partial<Omit<Orchestrator.Options<[]>, "projections">>

/** Runs until every event is handled. */
export const catchUp = <E, R>(
  projection: Projection.Projection<E, R>,
  settings: Settings = {}
) =>
  Effect.flatMap(
    Orchestrator.make({ replicaSet: "faults", projections: [projection], ...settings }),
    (orchestrator) => orchestrator.catchUp
  )

/** Returns the error of the halted range. */
export const halted = Effect.fnUntraced(function*<E, R>(
  projection: Projection.Projection<E, R>,
  settings: Settings = {}
) {
  const error = yield* Effect.flip(catchUp(projection, { pollInterval: "50 millis", ...settings }))
  assert(error._tag === "ProjectionHalted")
  return error
})

interface Recorded {
  readonly position: bigint
  readonly aggregateId: string
  readonly version: bigint
  readonly bytes: number
  readonly metadata: unknown
}

/** What was committed. */
export const recorded = (projection: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql<Recorded>`
      SELECT position, aggregate_id AS "aggregateId", version, bytes, metadata FROM recorded
      WHERE projection = ${projection} ORDER BY position`)

export const append = Effect.fnUntraced(function*(...events: ReadonlyArray<Event.NewEvent>) {
  const { positions } = yield* (yield* EventStore.EventStore).append(events)
  return positions
})
