/**
 * One scenario with real worker processes for each promise (P1 to P6) of docs/reliability.md. `npm test` runs these; the other
 * files of this directory test the same guarantees in more ways.
 */
import { assert } from "@effect/vitest"
import { Deferred, Effect, Fiber } from "effect"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import * as Harness from "./Harness.ts"
import { test } from "./Live.ts"
import * as Scenarios from "./Scenarios.ts"

/** Milliseconds; longer than a test may take. */
const never = 3_600_000

test("P1 exactly once: workers join, leave and die under load", function*() {
  // Missed heartbeats would reveal the death only after the test's time limit, so the loss of the presence lock has
  // to.
  yield* Scenarios.membership({
    settings: { heartbeatInterval: 2_000, staleWorkerTimeout: never, coordinationTimeout: never }
  })
})

test("P2 in order: two workers are replaced one after the other under load", function*({ harness }) {
  const projections = ["per_aggregate", "journal"]
  const start = (name: string, workerId: string) => harness.start(name, { workerId, projections, delayMillis: 1 })
  const stopLoad = yield* harness.load({ perSecond: 400, aggregates: 8 })
  const a = yield* start("a", "a")
  const b = yield* start("b", "b")
  yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
  assert.deepStrictEqual(yield* a.stop, { code: 0, signal: null })
  yield* start("the next a", "a")
  yield* harness.waitUntil("a is back", Harness.sharedBy(["a", "b"]))
  yield* b.kill
  yield* start("the next b", "b")
  yield* harness.waitUntil("b is back", Harness.sharedBy(["a", "b"]))
  yield* stopLoad
  // per_aggregate refuses every version except the next one. journal has one line per event, in the order of
  // handling.
  const end = yield* harness.quiesce(projections)
  assert.deepStrictEqual(end.refusals, [])
})

test(
  "P3 nothing skipped: a writer that commits late holds readers back, across hand-overs",
  function*({ harness, sql }) {
    const drawn = yield* Deferred.make<bigint>()
    const release = yield* Deferred.make<void>()
    const a = yield* harness.start("a")
    yield* harness.waitUntil("a works", Harness.sharedBy(["a"]))
    yield* harness.append(100)

    const late = yield* Effect.gen(function*() {
      const [row] = yield* sql<{ readonly global_position: bigint }>`
          INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
          VALUES ('faults', 'Thing', 'late', 1, gen_random_uuid(), 'Happened', convert_to('{"weight": 7}', 'UTF8'))
          RETURNING global_position`
      yield* Deferred.succeed(drawn, row!.global_position)
      yield* Deferred.await(release)
    }).pipe(sql.withTransaction, Effect.forkScoped)
    const position = yield* Deferred.await(drawn)
    yield* harness.append(200)

    const isBefore = ({ checkpoints }: Harness.State) => checkpoints.every((row) => row.position < position)
    yield* harness.waitUntil(
      "all earlier events are handled",
      ({ applied }) => Object.keys(applied).length === 2 && Object.values(applied).every((events) => events === 100)
    )
    const b = yield* harness.start("b")
    const joined = yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
    assert.isTrue(isBefore(joined.state))
    yield* a.kill
    const taken = yield* harness.waitUntil("b holds every range", Harness.sharedBy(["b"]))
    assert.isTrue(isBefore(taken.state))
    assert.deepStrictEqual(taken.state.applied, { per_aggregate: 100, shared_totals: 100 })

    yield* Deferred.succeed(release, undefined)
    yield* Fiber.join(late)
    const end = yield* harness.quiesce()
    assert.strictEqual(end.events, 301)
    assert.deepStrictEqual(end.refusals, [])
    assert.deepStrictEqual(yield* b.stop, { code: 0, signal: null })
  }
)

test("P4 one owner: a worker that has not noticed its eviction cannot commit", function*({ harness }) {
  // Worker b sends heartbeats so rarely that a evicts it without b noticing. So its transactions reach their end;
  // the server would have ended the idle transactions of a frozen process.
  const slow = {
    heartbeatInterval: never / 3,
    staleWorkerTimeout: never,
    coordinationTimeout: never,
    pollInterval: TimeLimits.scaledMillis(10_000)
  }
  yield* harness.append(100, { hold: { workerId: "b", gate: "of b" }, writers: 1 })
  const b = yield* harness.start("b", { settings: slow, listen: false })
  // Each projection holds a transaction open before any other event was handled.
  yield* harness.waitForOutput(b, "holding", 2)

  yield* harness.start("a")
  const taken = yield* harness.waitUntil("a holds every range", Harness.sharedBy(["a"]))
  assert.deepStrictEqual(taken.state.applied, {})
  yield* harness.openGate("of b")
  // The first refusal ends this registration of b, and with it the other transaction if that is still held.
  yield* harness.waitForOutput(b, "let go", 1)
  const end = yield* harness.quiesce()
  assert.deepStrictEqual(end.refusals, [])
  yield* harness.waitForOutput(b, "It registers again")
})

test(
  "P5 progress: a worker frozen in the middle of a transaction delays the others only until it is evicted",
  function*({ harness, sql }) {
    const b = yield* harness.start("b")
    yield* harness.waitUntil("b works", Harness.sharedBy(["b"]))
    yield* harness.append(300, { hold: { workerId: "b", gate: "of b" } })
    // Both projections, so two transactions of b are open, each with locks on its read model. They are counted before
    // the freeze, because the server ends them soon after it; and until both are found, because b may lose one on a
    // slow machine and then repeats the batch.
    yield* harness.waitForOutput(b, "holding per_aggregate")
    yield* harness.waitForOutput(b, "holding shared_totals")
    yield* TimeLimits.waitUntil(
      "two transactions of b are open",
      sql`
        SELECT FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = 'faults b' AND state = 'idle in transaction'`,
      (open) => open.length === 2
    )
    yield* b.freeze

    yield* harness.start("a")
    yield* harness.waitUntil("a holds every range", Harness.sharedBy(["a"]))
    // The rows that b had locked are free too, otherwise a would wait for them here.
    yield* harness.quiesce()

    // Its handlers continue in transactions that the server has ended.
    yield* harness.openGate("of b")
    yield* b.wake
    yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
    yield* harness.append(300)
    yield* harness.quiesce()
  }
)

test(
  "P6 honest failure: an event beyond the client's limit halts its range only, after everything before it",
  function*({ harness, sql }) {
    for (const id of ["a", "b"]) yield* harness.start(id, { projections: ["journal"] })
    yield* harness.waitUntil("a and b share the work", Harness.sharedBy(["a", "b"]))
    yield* harness.append(500)
    const [large] = yield* sql<{ readonly position: bigint }>`
        INSERT INTO events (bounded_context, aggregate_type, aggregate_id, aggregate_version, event_id, event_type, payload)
        VALUES ('faults', 'Thing', 'large', 1, gen_random_uuid(), 'Happened', convert_to(repeat('x', 17000000), 'UTF8'))
        RETURNING global_position AS position`
    yield* harness.append(500)

    yield* harness.expectHalts
    const { state: { checkpoints } } = yield* harness.waitUntil(
      "one range is halted and the other has handled everything",
      ({ checkpoints, head }) => checkpoints.every(({ halted, position }) => halted !== null || position >= head)
    )
    const [halted, ...others] = checkpoints.filter((row) => row.halted !== null)
    assert(halted !== undefined && others.length === 0 && checkpoints.length === 2)
    assert.include(halted.halted, "maxMessageSize")
    const { end, start } = halted.range
    const wrong = yield* sql`
        SELECT e.global_position FROM events e LEFT JOIN journal j ON j.position = e.global_position
        WHERE (j.position IS NULL) <> (e.global_position >= ${large!.position}::bigint
          AND (hashtext(e.aggregate_id COLLATE "C")::int8 & 4294967295) >= ${start}::bigint
          AND (hashtext(e.aggregate_id COLLATE "C")::int8 & 4294967295) < ${end}::bigint)`
    assert.deepStrictEqual(wrong, [])
  }
)
