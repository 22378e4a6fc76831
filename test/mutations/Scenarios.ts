/**
 * Scenarios in which a single mechanism keeps a guarantee. A scenario returns the violated guarantees; it checks what
 * was handled and by which worker, never the mechanism.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Fiber from "effect/Fiber"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import * as SqlClient from "effect/sql/SqlClient"
import { key } from "../../src/schema/Checkpoint.ts"
import { CheckpointStore } from "../../src/services/CheckpointStore.ts"
import { EventStore } from "../../src/services/EventStore.ts"
import { Membership } from "../../src/services/Membership.ts"
import * as PostgresTest from "../../src/testing/PostgresTest.ts"
import * as TimeLimits from "../../src/testing/TimeLimits.ts"
import { patient } from "../suites/Suite.ts"
import { decide, join, preview } from "../support/CoordinationStores.ts"
import * as PlainWriters from "../support/PlainWriters.ts"
import * as Proxy from "../support/Proxy.ts"
import { effects, enter, handle, impatient, type Mutation, signal } from "./World.ts"

export type Scenario = (
  mutation: Mutation
) => Effect.Effect<ReadonlyArray<string>, unknown, PostgresTest.TestDatabase | SqlClient.SqlClient | Scope.Scope>

const terminate = (name: string) =>
  Effect.flatMap(SqlClient.SqlClient, (sql) =>
    sql`SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
      WHERE datname = current_database() AND application_name LIKE ${name}`)

/** A worker is evicted, and its batch ends after another worker has claimed its range. */
export const replaced: Scenario = Effect.fnUntraced(function*(mutation) {
  const one = yield* enter(mutation)
  const other = yield* enter(mutation)
  const a = yield* one(join("set", "a", ["p"]))
  const [held] = (yield* one(decide(a))).ownedRows
  const b = yield* other(join("set", "b", ["p"]))
  yield* other(decide(b, { rules: impatient }))
  const exit = yield* one(handle(held!, ["e"]))
  return Exit.isSuccess(exit) ? ["P4: a committed to a range that b has claimed"] : []
})

/** A process that starts while the first is frozen takes over the same worker id. */
export const reincarnated: Scenario = Effect.fnUntraced(function*(mutation) {
  const one = yield* enter(mutation)
  const other = yield* enter(mutation)
  const first = yield* one(join("set", "w", ["p"]))
  const [held] = (yield* one(decide(first))).ownedRows
  const second = yield* other(
    Effect.flatMap(
      Membership,
      (membership) => membership.join({ replicaSet: "set", workerId: "w", projections: ["p"], rules: impatient })
    )
  )
  yield* other(decide(second))
  const exit = yield* one(handle(held!, ["e"]))
  return Exit.isSuccess(exit)
    ? ["P4: the first registration of w committed to a range that the second has claimed"]
    : []
})

/** Half of a range has to be released while a batch works on the whole range. */
export const handedOver: Scenario = Effect.fnUntraced(function*(mutation) {
  const one = yield* enter(mutation)
  const other = yield* enter(mutation)
  const begun = yield* signal
  const over = yield* signal
  const a = yield* one(join("set", "a", ["p"]))
  const [held] = (yield* one(decide(a))).ownedRows
  const batch = yield* Effect.forkChild(
    one(handle(held!, ["low", "high"], Effect.andThen(begun.send, over.wait)))
  )
  yield* begun.wait
  const b = yield* other(join("set", "b", ["p"]))
  yield* other(decide(b))
  const activeKeys = new Set(mutation.withoutActiveKeys === true ? [] : [key(held!)])
  yield* one(decide(a, { activeKeys }))
  const taken = (yield* other(decide(b))).ownedRows
  yield* over.send
  yield* Fiber.join(batch)
  // As the next holder does: events up to its position were handled by other workers.
  for (const row of taken) yield* other(handle(row, ["high"]))
  const times = yield* effects
  return (times.get("high") ?? 0) > 1 ? [`P1: an event was handled ${times.get("high")} times`] : []
})

/** Several processes decide at the same moment. */
export const atOnce: Scenario = Effect.fnUntraced(function*(mutation) {
  const found: Array<string> = []
  const workers = yield* Effect.forEach(
    ["a", "b", "c", "d", "e", "f"],
    Effect.fnUntraced(function*(id) {
      const process = yield* enter(mutation)
      return { process, registration: yield* process(join("set", id, ["p", "q"])) }
    })
  )
  const exits = yield* Effect.forEach(
    workers,
    ({ process, registration }) => Effect.exit(process(decide(registration))),
    { concurrency: "unbounded" }
  )
  for (const exit of exits) if (Exit.isFailure(exit)) found.push("P6: a decision failed although nothing was wrong")
  const sql = yield* SqlClient.SqlClient
  const generations = yield* sql`SELECT FROM orchestrator_generations`
  if (generations.length !== 1) found.push(`P5: ${generations.length} generations were formed of the same workers`)
  return found
})

/** A batch commits after a decision has read its row and before the decision writes it. */
export const outdated: Scenario = Effect.fnUntraced(function*(mutation) {
  const read = yield* signal
  const committed = yield* signal
  const one = yield* enter(mutation)
  const other = yield* enter(mutation, {
    around: ({ session, text }, send) =>
      session.includes("coordination") && /UPDATE\s+"?[\w".]*orchestrator_checkpoints/.test(text)
        ? read.send.pipe(
          Effect.andThen(Effect.timeoutOption(committed.wait, "500 millis")),
          Effect.andThen(send)
        )
        : send
  })
  const a = yield* one(join("set", "a", ["p"]))
  const [held] = (yield* one(decide(a))).ownedRows
  const b = yield* other(join("set", "b", ["p"]))
  const batch = yield* Effect.forkChild(
    Effect.tap(one(handle(held!, ["e"], read.wait)), () => committed.send)
  )
  yield* other(decide(b, { rules: impatient }))
  yield* Fiber.join(batch)
  const [row] = yield* one(Effect.flatMap(CheckpointStore, ({ rows }) => rows("p")))
  return (yield* effects).has("e") && row?.position === 0n
    ? ["P1: an event that was handled will be handled again"]
    : []
})

/** A batch commits after a worker has previewed the plan by which it hands the row over. */
export const outdatedPreview: Scenario = Effect.fnUntraced(function*(mutation) {
  const one = yield* enter(mutation)
  const a = yield* one(join("set", "a", ["p"]))
  const [held] = (yield* one(decide(a))).ownedRows
  const b = yield* one(join("set", "b", ["p"]))
  yield* one(decide(b))
  const plan = yield* one(preview(a))
  yield* one(handle(held!, ["e"]))
  yield* one(decide(a, {}, plan))
  const rows = yield* one(Effect.flatMap(CheckpointStore, ({ rows }) => rows("p")))
  return (yield* effects).has("e") && rows.some(({ position }) => position === 0n)
    ? ["P1: an event that was handled will be handled again"]
    : []
})

/** Reads as a runner does until every event is delivered; returns the events that were skipped. */
const readAll = Effect.fnUntraced(
  function*(mutation: Mutation, after: bigint, between: Effect.Effect<unknown, unknown>) {
    const events = yield* EventStore
    const sql = yield* SqlClient.SqlClient
    const handed: Array<bigint> = []
    let seen = after
    const visible = Effect.map(
      sql<{ readonly position: bigint }>`
      SELECT global_position AS position FROM events WHERE global_position > ${after}::bigint ORDER BY 1`,
      (rows) => rows.map(({ position }) => position)
    )
    const early = yield* visible
    const settling = yield* Effect.forkChild(events.settledBeyond(seen, Duration.millis(20)))
    // A reader that passes the settled position has done so by now.
    yield* Effect.timeoutOption(Fiber.await(settling), TimeLimits.scaled("400 millis"))
    const page = (upTo: bigint) =>
      mutation.readsBeforeProof === true
        ? Effect.succeed({ positions: early.filter((position) => position <= upTo), position: upTo })
        : Effect.map(
          events.read({ after: seen, upTo }),
          ({ events, position }) => ({ positions: events.map(({ globalPosition }) => globalPosition), position })
        )
    const premature = Fiber.isFiber(settling) && settling.pollUnsafe() !== undefined
    if (premature) {
      const { position, positions } = yield* page(yield* Fiber.join(settling))
      handed.push(...positions)
      seen = position
    }
    yield* between
    if (!premature) {
      const { position, positions } = yield* page(yield* Fiber.join(settling))
      handed.push(...positions)
      seen = position
    }
    const rest = yield* events.settledBeyond(seen, Duration.millis(20)).pipe(
      Effect.flatMap((upTo) => events.read({ after: seen, upTo })),
      Effect.timeoutOption(TimeLimits.scaled("500 millis"))
    )
    if (rest._tag === "Some") handed.push(...rest.value.events.map(({ globalPosition }) => globalPosition))
    const missing = (yield* visible).filter((position) => !handed.includes(position))
    return missing.length === 0 ? [] : [`P3: ${missing.length} of ${(yield* visible).length} events were skipped`]
  }
)

/** A writer draws the lower position and commits after a writer with a higher one. */
export const late: Scenario = Effect.fnUntraced(function*(mutation) {
  const process = yield* enter(mutation)
  const { url } = yield* PostgresTest.TestDatabase
  const slow = yield* PlainWriters.make(url)
  const quick = yield* PlainWriters.make(url)
  yield* slow.sql`BEGIN`
  yield* slow.insert(1)
  yield* quick.insert(1)
  return yield* process(readAll(mutation, 0n, slow.sql`COMMIT`))
})

/** The same, with the checkpoint of another projection set by hand to the last position. */
export const raised: Scenario = Effect.fnUntraced(function*(mutation) {
  const sql = yield* SqlClient.SqlClient
  const process = yield* enter(mutation)
  const { url } = yield* PostgresTest.TestDatabase
  const slow = yield* PlainWriters.make(url)
  const quick = yield* PlainWriters.make(url)
  yield* slow.sql`BEGIN`
  yield* slow.insert(1)
  yield* quick.insert(1)
  yield* sql`
    INSERT INTO orchestrator_checkpoints (projection_name, range_start, range_end, position, replica_set, filter)
    SELECT 'raised', 0, 4294967296, max(global_position), 'set', '{}' FROM events`
  return yield* process(readAll(mutation, 0n, slow.sql`COMMIT`))
})

/** The same, after the server has lost events that were proved settled on the previous connection. */
export const less: Scenario = Effect.fnUntraced(function*(mutation) {
  const sql = yield* SqlClient.SqlClient
  const process = yield* enter(mutation)
  const { url } = yield* PostgresTest.TestDatabase
  const slow = yield* PlainWriters.make(url)
  const quick = yield* PlainWriters.make(url)
  yield* quick.insert(10)
  yield* process(Effect.flatMap(EventStore, ({ settledPosition }) => settledPosition))
  yield* sql`DELETE FROM events WHERE global_position > 5`
  yield* sql`SELECT setval('events_global_position_seq', 5)`
  yield* terminate("pupsourcing-orchestrator reader")
  yield* slow.sql`BEGIN`
  yield* slow.insert(1)
  // Beyond the position that was proved before.
  yield* quick.insert(6)
  return yield* process(readAll(mutation, 5n, slow.sql`COMMIT`))
})

/**
 * The server loses an event that a worker passed because its projection's filter excludes it, and reissues the
 * position.
 */
export const outlived: Scenario = Effect.fnUntraced(function*(mutation) {
  const sql = yield* SqlClient.SqlClient
  const process = yield* enter(mutation)
  const writer = yield* PlainWriters.make((yield* PostgresTest.TestDatabase).url)
  const [held] = (yield* process(Effect.flatMap(join("set", "a", ["p"]), decide))).ownedRows
  yield* writer.insert(3)
  const { epoch, position: to } = yield* process(Effect.flatMap(
    EventStore,
    ({ read, settledBeyond }) =>
      Effect.flatMap(
        settledBeyond(0n, Duration.seconds(1)),
        (upTo) => read({ after: 0n, upTo, filter: { eventTypes: ["Never"] } })
      )
  ))
  yield* sql`DELETE FROM events WHERE global_position > 2`
  yield* sql`SELECT setval('events_global_position_seq', 2)`
  yield* terminate("pupsourcing-orchestrator reader")
  const exit = yield* Effect.exit(process(
    Effect.flatMap(CheckpointStore, ({ advance }) => advance(held!, { from: 0n, to, epoch }))
  ))
  yield* writer.insert(1)
  return Exit.isSuccess(exit) ? [`P3: the event at ${to} was skipped`] : []
})

/** All sessions are lost at once, and one worker reconnects later than the other. */
export const outage: Scenario = Effect.fnUntraced(function*(mutation) {
  let away = false
  const back = yield* signal
  const slow = yield* enter(mutation, {
    around: (_, send) => away ? Effect.andThen(back.wait, send) : send
  })
  const quick = yield* enter(mutation)
  const a = yield* slow(join("set", "a", ["p"]))
  const b = yield* quick(join("set", "b", ["p"]))
  yield* slow(Effect.flatMap(Membership, (membership) => membership.wakeUps(a)))
  yield* quick(Effect.flatMap(Membership, (membership) => membership.wakeUps(b)))
  yield* slow(decide(a))
  yield* quick(decide(b))
  away = true
  yield* terminate("pupsourcing-orchestrator %")
  const evicted: Array<string> = []
  yield* quick(decide(b, { rules: { ...patient, presenceGraceMillis: 100 } })).pipe(
    Effect.tap(({ evict }) => Effect.sync(() => evicted.push(...evict.map(({ workerId }) => workerId)))),
    Effect.retry(Schedule.spaced("20 millis")),
    // Enough decisions for one after the grace period, however long each takes.
    Effect.repeat({ until: () => evicted.length > 0, schedule: Schedule.spaced("50 millis"), times: 10 })
  )
  yield* back.send
  return evicted.length > 0 ? [`P5: ${evicted.join()} was evicted for an outage`] : []
})

/** A process is frozen in the middle of a batch, with a row of the read model locked. */
export const frozen: Scenario = Effect.fnUntraced(function*(mutation) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE TABLE total AS SELECT 0 AS n`
  let stands = false
  const wakes = yield* signal
  const locked = yield* signal
  const one = yield* enter(mutation, { around: (_, send) => stands ? Effect.andThen(wakes.wait, send) : send })
  const other = yield* enter(mutation)
  const add = Effect.flatMap(SqlClient.SqlClient, (sql) => sql`UPDATE total SET n = n + 1`)
  const a = yield* one(join("set", "a", ["p"]))
  const [held] = (yield* one(decide(a))).ownedRows
  const stop = Effect.suspend(() => {
    stands = true
    return Effect.andThen(locked.send, wakes.wait)
  })
  const batch = yield* Effect.forkChild(one(
    Effect.flatMap(
      Effect.context<SqlClient.SqlClient>(),
      (context) => handle(held!, ["e"], Effect.provide(Effect.andThen(add, stop), context), Duration.millis(600))
    )
  ))
  yield* locked.wait
  const b = yield* other(join("set", "b", ["p"]))
  const [taken] = (yield* other(decide(b, { rules: impatient }))).ownedRows
  const began = yield* Clock.monotonicTimeNanos
  // Less than the 20 seconds after which b's statement would time out.
  const done = yield* other(
    Effect.flatMap(
      Effect.context<SqlClient.SqlClient>(),
      (context) => handle(taken!, ["e"], Effect.provide(add, context))
    )
  ).pipe(Effect.timeoutOption(Math.min(TimeLimits.scaledMillis(4_000), 15_000)))
  const millis = Number((yield* Clock.monotonicTimeNanos) - began) / 1e6
  stands = false
  yield* wakes.send
  yield* Fiber.await(batch)
  return done._tag === "None" ? [`P5: b still waits for the frozen worker after ${Math.round(millis)} ms`] : []
})

/** The connection is lost during COMMIT; the server completes the commit a moment later. */
export const unknown: Scenario = Effect.fnUntraced(function*(mutation) {
  const sql = yield* SqlClient.SqlClient
  yield* sql`CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.6); RETURN NULL; END $$`
  yield* sql`CREATE CONSTRAINT TRIGGER slow_commit AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION dawdle()`
  const through = new URL((yield* PostgresTest.TestDatabase).url)
  const proxy = yield* Proxy.make({ host: through.hostname, port: Number(through.port) })
  through.hostname = "127.0.0.1"
  through.port = String(proxy.port)
  let cut = false
  const process = yield* enter(mutation, {
    url: through.href,
    around: ({ session, text }, send) => {
      // Only the COMMIT of the batch: joining and deciding commit too.
      if (session !== "pool" || text !== "COMMIT" || cut) return send
      cut = true
      const loss = Effect.sleep("200 millis").pipe(
        Effect.andThen(proxy.refuse(true)),
        Effect.andThen(proxy.refuse(false))
      )
      return Effect.andThen(Effect.forkDetach(loss), send)
    }
  })
  const a = yield* process(join("set", "a", ["p"]))
  const [held] = (yield* process(decide(a))).ownedRows
  const first = yield* process(handle(held!, ["e"]))
  // As the runner does: a batch that has not committed is retried.
  if (Exit.isFailure(first)) yield* process(handle(held!, ["e"]))
  const times = (yield* effects).get("e") ?? 0
  return times === 1 ? [] : [`P1: an event was handled ${times} times`]
})
