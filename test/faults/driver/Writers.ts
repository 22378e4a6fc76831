/**
 * Writers that append during faults: through the event store, as a Go service does, and by every way in which plain SQL
 * can draw a position, including slow and aborting transactions. Like applications, they continue after any failure.
 */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import { SqlClient } from "effect/sql"
import * as PlainWriters from "../../support/PlainWriters.ts"
import type * as Harness from "../Harness.ts"

/** Milliseconds between two transactions of one writer. */
const pauseMillis = 250
/** The longest time that a slow writer keeps its transaction open. */
const slowMillis = 300
/** An older prepared transaction belongs to a writer that has died. */
const orphanAfterMillis = 3_000

const row: PlainWriters.Row = { boundedContext: "faults", aggregateType: "Thing", payload: "{\"weight\": 5}" }

/** Runs repeatedly. Faults make turns fail at any time; the server rolls back what a failed turn has begun. */
const steadily = <A, E, R>(turn: Effect.Effect<A, E, R>) =>
  turn.pipe(
    Effect.catchCause(() => Effect.sleep(200)),
    Effect.andThen(Effect.flatMap(Random.nextIntBetween(0, 2 * pauseMillis), (millis) => Effect.sleep(millis))),
    Effect.forever
  )

/** A transaction with several events of one aggregate that stays open for a while and then commits or rolls back. */
const slowly = Effect.fnUntraced(function*(turn: number) {
  const sql = yield* SqlClient.SqlClient
  const millis = yield* Random.nextIntBetween(0, slowMillis)
  const commits = yield* Random.nextBoolean
  // A new aggregate each time, because its versions may be rolled back.
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

/** Rolls back the prepared transactions of dead writers, as an operator does. */
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
  /** Uses a few aggregates per turn, and other ones the next time. */
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
