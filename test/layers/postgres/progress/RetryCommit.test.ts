/**
 * The answer to the COMMIT of a retried event is lost. The batch does not move the position, so its outcome cannot be
 * looked up there: the table of parked events shows it.
 */
import { assert } from "@effect/vitest"
import * as Data from "effect/Data"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Layer from "effect/Layer"
import * as Redacted from "effect/Redacted"
import * as SqlClient from "effect/sql/SqlClient"
import { EventStore } from "../../../../src/services/EventStore.ts"
import * as Orchestrator from "../../../../src/services/Orchestrator.ts"
import * as Projection from "../../../../src/services/Projection.ts"
import { Projections } from "../../../../src/services/Projections.ts"
import * as TimeLimits from "../../../../src/testing/TimeLimits.ts"
import * as EventStores from "../../../support/EventStores.ts"
import * as Seam from "../../../support/Seam.ts"

class Broken extends Data.TaggedError("Broken") {}

/** Whether the server has executed COMMIT when the connection is lost, or executes it afterwards. */
const cases = {
  "before the server receives it": (lose) => lose,
  "after the server has executed it": (lose, send) => Effect.andThen(send, lose),
  "while the server executes it": (lose, send) =>
    Effect.andThen(Effect.forkDetach(send, { startImmediately: true }), lose)
} satisfies Record<
  string,
  <A, E>(lose: Effect.Effect<never, E>, send: Effect.Effect<A, E>) => Effect.Effect<A, E>
>

for (const [name, loseAt] of Object.entries(cases)) {
  const duringCommit = name.startsWith("while")
  EventStores.test(`a retried event whose COMMIT is lost ${name} is handled once`, function*({ sql, url }) {
    yield* sql`CREATE TABLE handled (seq bigserial, version bigint)`
    yield* sql`CREATE TABLE open (value int)`
    // The server completes the COMMIT that removes the row when the table has a row.
    yield* sql.unsafe(`CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
      WHILE NOT EXISTS (SELECT FROM open) LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN NULL; END $$`)
    yield* sql.unsafe(`CREATE CONSTRAINT TRIGGER wait AFTER DELETE ON orchestrator_parked_events
      DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()`)
    if (!duringCommit) yield* sql`INSERT INTO open VALUES (1)`

    let isBroken = true
    let isRemoving = false
    let isLost = false
    const lost = yield* Deferred.make<void>()
    const hooks: Seam.Hooks = {
      around: (statement, send) => {
        if (/DELETE FROM \S*orchestrator_parked_events/.test(statement.text)) isRemoving = true
        if (!isRemoving || isLost || statement.text !== "COMMIT") return send
        isLost = true
        const lose = duringCommit ? Effect.fail(Seam.connectionLost("execute")) : statement.lose
        return Effect.andThen(Deferred.succeed(lost, undefined), loseAt(lose, send))
      }
    }
    const projection = Projection.make("retried", {
      onFailure: "park",
      handle: Effect.fnUntraced(function*(event) {
        if (isBroken) return yield* new Broken()
        const sql = yield* SqlClient.SqlClient
        yield* sql`INSERT INTO handled (version) VALUES (${String(event.aggregateVersion)}::bigint)`
      })
    })
    const stores = Seam.stores(hooks).pipe(
      Layer.provideMerge(Seam.client({ url: Redacted.make(url), maxConnections: 4 }, hooks))
    )
    yield* Effect.gen(function*() {
      const { append } = yield* EventStore
      const { parked, retryParked } = yield* Projections
      const orchestrator = yield* Orchestrator.make({
        replicaSet: "retried",
        projections: [projection],
        pollInterval: "20 millis"
      })
      for (let version = 1; version <= 3; version++) yield* append([EventStores.event("a")])
      const run = yield* Effect.forkChild(orchestrator.run)
      // The query may lose its connection with the batch; it is sent again.
      const found = Effect.orElseSucceed(parked("retried"), () => [])
      const untilParked = (count: number) =>
        TimeLimits.waitUntil(`${count} events are parked`, found, (events) => events.length === count)
      yield* untilParked(3)
      isBroken = false
      yield* retryParked("retried", { first: 1 })
      yield* Deferred.await(lost)
      // The row shows the outcome only when the transaction has ended.
      if (duringCommit) yield* sql`INSERT INTO open VALUES (1)`
      yield* untilParked(2)
      // The counts in memory are those of the table: a later event queues behind the last parked one, but not afterwards.
      yield* retryParked("retried", { first: 1 })
      yield* untilParked(1)
      yield* append([EventStores.event("a")])
      yield* untilParked(2)
      yield* retryParked("retried", "all")
      yield* untilParked(0)
      yield* append([EventStores.event("a")])
      yield* TimeLimits.waitUntil("event 5 is handled", sql`SELECT FROM handled`, (rows) => rows.length === 5)
      yield* Fiber.interrupt(run)
    }).pipe(Effect.provide(stores))
    const versions = yield* sql<{ readonly version: string }>`SELECT version::text FROM handled ORDER BY seq`
    assert.deepStrictEqual(versions.map(({ version }) => version), ["1", "2", "3", "4", "5"])
  })
}
