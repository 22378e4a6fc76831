/** Faults inside workers: they are frozen in the middle of a transaction, and their handlers misbehave. */
import * as Data from "effect/Data"
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as Schedule from "effect/Schedule"
import * as Harness from "../../Harness.ts"
import type { Misbehaviour } from "../../Misbehaviour.ts"
import { Driver, projections, settings } from "../Driver.ts"
import type { Fault } from "../Fault.ts"
import type { Member } from "../Fleet.ts"
import { takenOver } from "./Signals.ts"

/** The fault could not be injected, because its moment did not come. */
class Missed extends Data.TaggedError("Missed")<{ readonly message: string }> {}

const startsWithin = 10_000
const endsWithin = 10_000

/** Transactions of its batches that have written and are between two statements. */
const batchesOf = Effect.fnUntraced(function*({ workerId }: Member) {
  const { admin } = yield* Driver
  return yield* admin`
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = ${`faults ${workerId}`} AND state = 'idle in transaction'
      AND backend_xid IS NOT NULL`
})

/** Freezes the worker repeatedly, until it is frozen while a batch's transaction is open. */
const freezeInBatch = (member: Member) =>
  Effect.gen(function*() {
    yield* member.worker.freeze
    // Lets statements that were already sent take effect.
    yield* Effect.sleep("10 millis")
    if ((yield* batchesOf(member)).length > 0) return
    yield* member.worker.wake
    yield* Effect.sleep(yield* Random.nextIntBetween(1, 20))
    return yield* new Missed({ message: `${member.workerId} was never frozen in the middle of a batch` })
  }).pipe(Effect.retry({ times: 500 }))

/**
 * Waits until the server has ended the idle transactions, so that they hold no locks. There can be two in a row, the
 * second having acquired the locks just before its lock timeout; each ends after half of the stale timeout.
 */
const batchesEnd = Effect.fnUntraced(function*(member: Member) {
  const { watch } = yield* Driver
  yield* batchesOf(member).pipe(
    Effect.repeat({ until: (open) => open.length === 0, schedule: Schedule.spaced("50 millis") }),
    Effect.timeoutOrElse({
      duration: settings.staleWorkerTimeout + settings.heartbeatInterval,
      orElse: () =>
        Effect.sync(() => watch.violate(`P5: the transaction of ${member.workerId} outlives its standstill`))
    })
  )
})

const frozenInBatch: Fault = {
  kind: "SIGSTOP in the middle of a batch, SIGCONT",
  alone: true,
  inject: Effect.gen(function*() {
    const { fleet } = yield* Driver
    for (const member of yield* fleet.pick(1)) {
      yield* Effect.ensuring(
        Effect.andThen(
          freezeInBatch(member),
          Effect.all([batchesEnd(member), takenOver([member.workerId])], { concurrency: "unbounded", discard: true })
        ),
        member.worker.wake
      )
    }
  })
}

/**
 * Freezes a leaving worker in the middle of a decision: this session holds the decision lock, the worker is frozen
 * while it waits for the lock, and then the lock is released.
 */
const freezeInDecision = ({ worker, workerId }: Member) =>
  Effect.gen(function*() {
    const { admin } = yield* Driver
    yield* Effect.gen(function*() {
      yield* admin`SELECT pg_advisory_xact_lock('orchestrator_generations'::regclass::oid::int4, hashtext('faults'))`
      yield* worker.send("SIGTERM")
      yield* admin`
        SELECT FROM pg_locks
        WHERE locktype = 'advisory' AND classid = 'orchestrator_generations'::regclass AND NOT granted
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`.pipe(
        Effect.repeat({ until: (waiting) => waiting.length > 0, schedule: Schedule.spaced("5 millis") })
      )
      yield* worker.freeze
    }).pipe(admin.withTransaction)
    // No other worker takes this long between two statements of a decision.
    yield* admin`
      SELECT FROM pg_stat_activity
      WHERE datname = current_database() AND application_name = 'pupsourcing-orchestrator coordination'
        AND state = 'idle in transaction' AND state_change < clock_timestamp() - interval '500 milliseconds'`.pipe(
      Effect.repeat({ until: (standing) => standing.length > 0, schedule: Schedule.spaced("50 millis") })
    )
  }).pipe(
    Effect.timeoutOrElse({
      duration: startsWithin,
      orElse: () => Effect.fail(new Missed({ message: `${workerId} was never in the middle of a decision` }))
    })
  )

/** The worker receives a signal to stop, and the others have taken over before it can. */
const frozenInDecision: Fault = {
  kind: "SIGSTOP in the middle of a decision, SIGCONT",
  alone: true,
  inject: Effect.gen(function*() {
    const { fleet } = yield* Driver
    for (const member of yield* fleet.pick(1)) {
      fleet.forget(member)
      yield* Effect.ensuring(
        Effect.andThen(freezeInDecision(member), takenOver([member.workerId])),
        member.worker.wake
      )
      yield* Effect.timeout(member.worker.ended, endsWithin)
    }
  })
}

/** Starts a misbehaving worker beside the others; returns it and its registration when the misbehaviour has begun. */
const misbehaving = Effect.fnUntraced(function*(id: string, misbehaviour: Misbehaviour, sign: string) {
  const { awaitRows, harness } = yield* Driver
  const worker = yield* harness.start(id, { projections, settings, misbehaviour, mayEnd: true })
  const begun = yield* awaitRows(`${id}: ${sign}`, startsWithin, () => worker.output().includes(sign))
  return { worker, before: begun === undefined ? undefined : Harness.registered(begun.rows, id) }
})

const blocked: Fault = {
  kind: "handler blocks the event loop",
  alone: true,
  inject: Effect.gen(function*() {
    const { awaitRows } = yield* Driver
    const millis = settings.staleWorkerTimeout * 2
    const { before } = yield* misbehaving("blocked", { kind: "blocks", millis }, "blocks at")
    yield* takenOver(["blocked"])
    yield* awaitRows("the blocked worker has registered again", startsWithin, (rows) => {
      const now = Harness.registered(rows, "blocked")
      return now !== undefined && before !== undefined && now.incarnation > before.incarnation &&
        rows.checkpoints.some(({ incarnation }) => incarnation === now.incarnation)
    })
  })
}

/** The worker keeps both its transaction and its registration. */
const asleep: Fault = {
  kind: "handler sleeps in its transaction",
  alone: true,
  inject: Effect.gen(function*() {
    const { admin, awaitRows, watch } = yield* Driver
    const millis = settings.staleWorkerTimeout * 1.2
    const { before, worker } = yield* misbehaving("asleep", { kind: "sleeps", millis }, "sleeps at")
    const woken = yield* awaitRows(
      "the sleeping handler continues",
      startsWithin,
      () => worker.output().includes("continues at")
    )
    if (woken === undefined || before === undefined) return
    if (Harness.registered(woken.rows, "asleep")?.incarnation !== before.incarnation) {
      watch.violate("P5: a worker was evicted while its handler slept")
    }
    // The line was written before the sleep, by a transaction that was kept alive until it committed.
    const position = /continues at (\d+)/.exec(worker.output())?.[1] ?? ""
    yield* admin`
      SELECT FROM journal
      WHERE projection = 'journal' AND worker = 'asleep' AND position = ${position}::bigint
        AND at < clock_timestamp() - make_interval(secs => ${millis / 1000})`.pipe(
      Effect.repeat({ until: (lines) => lines.length > 0, schedule: Schedule.spaced("20 millis") }),
      Effect.timeoutOrElse({
        duration: 5_000,
        orElse: () => Effect.sync(() => watch.violate("P5: the transaction of a handler that slept was lost"))
      })
    )
  })
}

const strays: Fault = {
  kind: "handler leaves fibers behind",
  alone: true,
  inject: Effect.gen(function*() {
    const { worker } = yield* misbehaving("stray", { kind: "leaves fibers", millis: 1_000 }, "refused what came late")
    yield* Effect.sleep("2 seconds")
    yield* worker.stop
  })
}

export const handlers: ReadonlyArray<Fault> = [frozenInBatch, frozenInDecision, blocked, asleep, strays]
