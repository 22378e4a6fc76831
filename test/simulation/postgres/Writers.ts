/** Writers of a scenario in real time: an application that uses the library, and one that does not. */
import * as PgClient from "@effect/sql-pg/PgClient"
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import * as PostgresStores from "../../../src/layers/postgres/PostgresStores.ts"
import type { NewEvent } from "../../../src/schema/Event.ts"
import { EventStore } from "../../../src/services/EventStore.ts"
import { ParkedEvents } from "../../../src/services/ParkedEvents.ts"
import { type Aggregate, metadataOf } from "../Keys.ts"
import type { Run } from "../Run.ts"
import type { Write } from "../Scenario.ts"
import { unflushed } from "./SimulatedWorker.ts"

const plain = Effect.fnUntraced(function*(aggregate: Aggregate, eventTypes: ReadonlyArray<string>) {
  const sql = yield* SqlClient.SqlClient
  const { correlationId, id, type } = aggregate
  const metadata = JSON.stringify(eventTypes.map((eventType) => metadataOf(aggregate, eventType)))
  yield* sql`
    INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload,
      correlation_id, metadata)
    SELECT 'app', ${type}, ${id}, (SELECT coalesce(max(aggregate_version), 0) FROM events WHERE aggregate_id = ${id})
      + place, gen_random_uuid(), event_type, convert_to('{}', 'UTF8'), ${correlationId}::text,
      (${metadata}::text::json->>(place - 1)::int)::jsonb
    FROM unnest(${eventTypes}::text[]) WITH ORDINALITY AS e (event_type, place) ORDER BY place`
})

const byLibrary = Effect.fnUntraced(function*(aggregate: Aggregate, eventTypes: ReadonlyArray<string>) {
  const { correlationId, id, type } = aggregate
  const store = yield* EventStore
  yield* store.append(eventTypes.map((eventType): NewEvent => ({
    boundedContext: "app",
    aggregateType: type,
    aggregateId: id,
    eventType,
    payload: {},
    ...(correlationId === null ? {} : { correlationId }),
    metadata: JSON.parse(metadataOf(aggregate, eventType) ?? "null")
  })))
})

const transaction = Effect.fnUntraced(function*(aggregate: Aggregate, write: Write) {
  const sql = yield* SqlClient.SqlClient
  yield* sql.withTransaction(Effect.gen(function*() {
    yield* write.isPlain ? plain(aggregate, write.eventTypes) : byLibrary(aggregate, write.eventTypes)
    yield* Effect.sleep(write.lasts)
    if (write.rollsBack) return yield* Effect.fail("rolled back" as const)
  })).pipe(Effect.catchIf((error) => error === "rolled back", () => Effect.void))
})

/**
 * Writers on a database, and the parked events as other processes use them. `write` runs a transaction; `open` returns the
 * number of open ones.
 */
export const make = Effect.fnUntraced(function*(url: string, run: Run) {
  const context = yield* Layer.build(Layer.provideMerge(
    PostgresStores.layerWith({}),
    PgClient.layer({
      url: Redacted.make(url),
      maxConnections: 6,
      applicationName: "writers",
      startupParameters: unflushed
    })
  ))
  const locked = new Set<string>()

  const write = (write: Write): Effect.Effect<void> => {
    const free = run.scenario.aggregates.filter(({ id }) => !locked.has(id))
    const aggregate = free[Math.floor(write.aggregate * free.length)]
    if (aggregate === undefined) return Effect.void
    locked.add(aggregate.id)
    if (write.isLate) run.coverage.count("faults", "commit by a writer late")
    if (write.isPlain) run.coverage.count("faults", "events by plain SQL")
    if (write.rollsBack) run.coverage.count("faults", "writer rolled back")
    return transaction(aggregate, write).pipe(
      Effect.provideContext(context),
      Effect.catchCause((cause) =>
        Effect.sync(() => {
          if (!Cause.hasInterrupts(cause)) run.violation(`a writer fails: ${Cause.pretty(cause)}`)
        })
      ),
      Effect.ensuring(Effect.sync(() => locked.delete(aggregate.id)))
    )
  }
  return { write, open: () => locked.size, parkedEvents: Context.get(context, ParkedEvents) }
})
