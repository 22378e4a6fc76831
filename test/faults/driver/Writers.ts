/**
 * Those who append while faults happen: through the event store, as a Go service does it, and in every way in which
 * plain SQL may come to a position, slow and aborting ones among them. They go on after any failure, as applications do.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { SqlClient } from "effect/sql"
import * as PlainWriters from "../../support/PlainWriters.ts"
import type * as Harness from "../Harness.ts"

/** Between two transactions of one writer, in milliseconds. */
const pauseMillis = 250
/** A slow writer keeps its transaction open so long at most. */
const slowMillis = 300
/** A prepared transaction that is older belongs to a writer that has died. */
const orphanAfterMillis = 3_000

const row: PlainWriters.Row = { boundedContext: "faults", aggregateType: "Thing", payload: "{\"weight\": 5}" }

/** Runs again and again; what a failed turn has begun is rolled back by the server. */
const steadily = <A, E, R>(turn: Effect.Effect<A, E, R>) =>
  turn.pipe(
    Effect.catchCause(() => Effect.sleep(200)),
    Effect.andThen(Effect.flatMap(Random.nextIntBetween(0, 2 * pauseMillis), (millis) => Effect.sleep(millis))),
    Effect.forever
  )

/** A transaction of several events of one aggregate, that stays open for a while and then commits, or does not. */
const slowly = Effect.fnUntraced(function*(turn: number) {
  const sql = yield* SqlClient.SqlClient
  const millis = yield* Random.nextIntBetween(0, slowMillis)
  const commits = yield* Random.nextBoolean
  // One aggregate each: a version that was rolled back is nobody's.
  const aggregateId = `slow-${yield* Clock.currentTimeMillis}-${turn}`
  yield* Effect.gen(function*() {
    for (const version of [1, 2, 3]) {
      yield* sql`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES ('faults', 'Thing', ${aggregateId}, ${version}, gen_random_uuid(), 'Happened',
          convert_to(${`{"weight": ${version}}`}, 'UTF8'))`
      yield* Effect.sleep(millis / 3)
    }
    if (!commits) return yield* Effect.fail("changed its mind")
  }).pipe(sql.withTransaction)
})

/** Rolls back what dead writers have prepared, as an operator does. */
export const tidy = Effect.gen(function*() {
  const sql = yield* SqlClient.SqlClient
  const orphans = yield* sql<{ readonly gid: string }>`
    SELECT gid FROM pg_prepared_xacts
    WHERE database = current_database() AND gid LIKE 'writer-%'
      AND prepared < clock_timestamp() - make_interval(secs => ${orphanAfterMillis / 1000})`
  for (const { gid } of orphans) yield* sql.unsafe(`ROLLBACK PREPARED '${gid}'`).unprepared
})

/** Writes until the scope closes. */
export const start = Effect.fnUntraced(function*(harness: Harness.Harness["Service"]) {
  yield* PlainWriters.createFunction(yield* SqlClient.SqlClient, row)
  const plain = PlainWriters.load(harness.url, { writers: 1, transactions: 2, row })
  let turns = 0
  /** A few aggregates at a time: the next time others. */
  const prefix = (name: string) => `${name}${++turns % 20}`
  const writers: ReadonlyArray<Effect.Effect<void, unknown, SqlClient.SqlClient>> = [
    Effect.suspend(() => harness.append(10, { through: "store", prefix: prefix("s"), writers: 1 })),
    Effect.suspend(() => harness.append(5, { through: "store", prefix: prefix("t"), writers: 1, each: 1 })),
    Effect.suspend(() => harness.append(10, { through: "sql", prefix: prefix("g"), writers: 1 })),
    Effect.suspend(() => slowly(++turns)),
    plain,
    tidy
  ]
  yield* Effect.forEach(writers, (writer) => Effect.forkScoped(steadily(writer)), { discard: true })
})
