/** Faults caused by writers: they stay open, abort, and die after PREPARE TRANSACTION. */
import * as Effect from "effect/Effect"
import * as Random from "effect/Random"
import * as PlainWriters from "../../../support/PlainWriters.ts"
import { Driver } from "../Driver.ts"
import type { Fault } from "../Fault.ts"

const row: PlainWriters.Row = { boundedContext: "faults", aggregateType: "Thing", payload: "{\"weight\": 7}" }

/** From this length on, a run has time for slow faults. */
const longRunMinutes = 5
/** Workers report a writer after waiting for 10 s, and a worker behind a slow network detects it late. */
const reportedMillis = 20_000

/** Log lines of a worker whose connections are disturbed. */
const disturbed = /was lost|retr(?:ied|ying)|evicted|suspended/

const lasting = (shortMillis: number, longMillis: number) =>
  Effect.map(Driver, ({ minutes }) => minutes < longRunMinutes ? shortMillis : longMillis)

/**
 * Opens a transaction that has appended an event; returns the connection, the event's position and the backend's pid.
 */
const opened = Effect.fnUntraced(function*(name: string) {
  const { harness } = yield* Driver
  const { insert, sql } = yield* PlainWriters.make(harness.url, name, row)
  yield* sql`BEGIN`
  yield* insert(1)
  const [found] = yield* sql<{ readonly position: bigint; readonly pid: number }>`
    SELECT lastval() AS position, pg_backend_pid() AS pid`
  return { sql, position: found!.position, pid: found!.pid }
})

/** Within this time the events of a minute are handled while more are appended. */
const backlogMillis = 60_000

/**
 * Checks that no worker passes the position while the transaction is open, and that workers that waited for long have
 * reported the writer.
 */
const waitedFor = Effect.fnUntraced(function*(position: bigint, millis: number, name: string) {
  const { admin, fleet, watch } = yield* Driver
  const before = new Map(fleet.members().map(({ worker }) => [worker, worker.output().length]))
  yield* Effect.sleep(millis)
  const passed = yield* admin`
    SELECT FROM journal WHERE projection = 'journal' AND position > ${position}::bigint LIMIT 1`
  if (passed.length > 0) watch.violate(`P3: ${name} was open at ${position}, and events beyond it were handled`)
  if (millis < reportedMillis) return
  for (const { worker, workerId } of fleet.members()) {
    const from = before.get(worker)
    const output = worker.output()
    // A worker that started meanwhile, or was cut off by a concurrent fault, has not waited this long.
    if (output.includes(name) || from === undefined || disturbed.test(output.slice(from))) continue
    watch.violate(`P5: ${workerId} has waited for ${name} without reporting it`)
  }
})

const staysOpen: Fault = {
  kind: "writer's transaction stays open",
  recoversWithin: backlogMillis,
  inject: Effect.gen(function*() {
    const millis = yield* lasting(5_000, 60_000)
    const { pid, position, sql } = yield* opened("faults slow writer")
    yield* waitedFor(position, millis, `pid ${pid}, faults slow writer`)
    yield* (yield* Random.nextBoolean) ? sql`COMMIT` : sql`ROLLBACK`
  })
}

/** The writer dies between the two phases of its commit; an operator then commits or rolls back. */
const orphaned: Fault = {
  kind: "prepared transaction, orphaned",
  inject: Effect.gen(function*() {
    const { admin } = yield* Driver
    const millis = yield* lasting(3_000, reportedMillis)
    const name = `orphan-${yield* Random.nextIntBetween(0, 2 ** 31)}`
    const decision = (yield* Random.nextBoolean) ? "COMMIT" : "ROLLBACK"
    yield* Effect.acquireUseRelease(
      Effect.scoped(Effect.gen(function*() {
        const { position, sql } = yield* opened("faults orphaning writer")
        yield* sql.unsafe(`PREPARE TRANSACTION '${name}'`).unprepared
        return position
      })),
      (position) => waitedFor(position, millis, `prepared transaction '${name}'`),
      () => admin.unsafe(`${decision} PREPARED '${name}'`).unprepared
    )
  })
}

/** Rolls back repeatedly; the last transaction ends with its connection. */
const abort = Effect.scoped(Effect.gen(function*() {
  const { harness } = yield* Driver
  const { insert, sql } = yield* PlainWriters.make(harness.url, "faults aborting writer", row)
  for (let turn = 0; turn < 50; turn++) {
    yield* sql`BEGIN`
    yield* insert(yield* Random.nextIntBetween(1, 40))
    yield* Effect.sleep(yield* Random.nextIntBetween(0, 40))
    yield* sql`ROLLBACK`
  }
  yield* sql`BEGIN`
  yield* insert(1)
}))

const aborts: Fault = {
  kind: "writers that abort, a burst",
  inject: Effect.forEach(Array.from({ length: 6 }), () => abort, { concurrency: "unbounded", discard: true })
}

/** Gaps between positions that are far wider than one read. */
const burnt: Fault = {
  kind: "positions burnt by the hundred thousand",
  inject: Effect.gen(function*() {
    const { harness } = yield* Driver
    const { insert, sql } = yield* PlainWriters.make(harness.url, "faults burning writer", row)
    for (let turn = 0; turn < 4; turn++) {
      yield* sql`BEGIN`
      yield* sql`SELECT count(nextval('events_global_position_seq')) FROM generate_series(1, 200000)`
      yield* sql`ROLLBACK`
      yield* insert(3)
    }
  })
}

export const writers: ReadonlyArray<Fault> = [staysOpen, orphaned, aborts, burnt]
