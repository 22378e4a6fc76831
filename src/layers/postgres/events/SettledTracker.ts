/**
 * Tracks the settled position for all readers of a stores layer. Only one look at the database runs at a time; all
 * waiting readers share its result. While no reader waits, none runs.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import * as Semaphore from "effect/Semaphore"
import type * as SqlError from "effect/sql/SqlError"
import {
  CheckpointAheadOfEvents,
  ReadOnlyReplica,
  type StoreError,
  UnsupportedDatabase
} from "../../../schema/Errors.ts"
import * as Settled from "../../../schema/Settled.ts"
import type { EventStore, OpenWriter, ServerEpoch } from "../../../services/EventStore.ts"
import { Listener } from "../connection/Listener.ts"
import type { Opened } from "../connection/Session.ts"
import { cannotBeRead } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import { files, type Reader, startOver, type State } from "./Reader.ts"

/**
 * The result of one look at the events and their sequence.
 *
 * @category models
 * @since 0.1.0
 */
export interface Look {
  readonly settled: bigint
  /** The position up to which a reader that has passed a position may read; see `Settled.reached`. */
  readonly reached: (after: bigint) => bigint
  /** The highest visible position. */
  readonly head: bigint
  /** The last position that the sequence returned; absent if the role may not read the sequence. */
  readonly last: bigint | undefined
  readonly epoch: ServerEpoch
}

/**
 * @category models
 * @since 0.1.0
 */
export interface SettledTracker {
  readonly settledBeyond: EventStore["Service"]["settledBeyond"]
  /**
   * Looks on behalf of a reader that has passed `after`. If nothing has been proved on this connection yet, the look is
   * repeated until something is proved, the reader may read up to `upTo`, or 500 ms have elapsed.
   */
  readonly look: (after: bigint, upTo: bigint | undefined) => Effect.Effect<Look, StoreError>
  /**
   * The settled position. If nothing has been proved on this connection yet, it waits until the writers of the first
   * look have ended; before that, only the history up to its first gap is certain.
   */
  readonly settled: Effect.Effect<bigint, StoreError>
  readonly openWriters: Effect.Effect<ReadonlyArray<OpenWriter>>
  /**
   * Returns, without a query, the position up to which a reader that has passed `after` may read, and the server epoch.
   */
  readonly known: (after: bigint) => { readonly settled: bigint; readonly epoch: ServerEpoch | undefined }
  /** Triggers a look for the waiting readers, after an append. */
  readonly wake: () => void
}

/** Pause between two looks while a gap is open: 5 ms, growing by half up to 250 ms. */
const shortestGapWait = 5
const longestGapWait = 250

/** Minimum pause after a look that leaves readers waiting, however many wake-ups arrive. */
const breath = Duration.millis(2)

/** Approximate number of index rows that a look reads to find the positions that follow without a gap. */
const longestRuns = 10_000

/** How long a look may wait for the first proof on a connection. */
const firstProofNanos = 500_000_000n

const reportAfterNanos = 10_000_000_000n

interface Waiter {
  readonly position: bigint
  readonly pollMillis: number
  readonly done: Deferred.Deferred<bigint, CheckpointAheadOfEvents | StoreError>
}

interface Seen {
  readonly recovering: boolean
  readonly readable: boolean | null
  readonly last: bigint | null
  readonly files: string
  readonly head: bigint | null
  /** The ends of the runs that begin at the requested positions, in the same order. */
  readonly ends: ReadonlyArray<bigint>
}

interface HolderRow {
  readonly sequences: number
  readonly sequence: string | null
  readonly name: string | null
  readonly cache: bigint | null
  readonly increment: bigint | null
  readonly cycle: boolean | null
  readonly recovering: boolean
  readonly holder: string | null
  readonly pid: number | null
  readonly application: string | null
}

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(
  reader: Reader
): Effect.fn.Return<SettledTracker, never, Database | Listener | Scope.Scope> {
  const database = yield* Database
  const listener = yield* Listener
  const scope = yield* Effect.scope
  const events = database.qualified("events")

  const last =
    "CASE WHEN has_sequence_privilege($2::oid, 'SELECT, USAGE') THEN pg_sequence_last_value($2::oid::regclass) END"

  const seeStatement = (head: string, ends: string) => `
    SELECT pg_is_in_recovery() AS recovering,
      has_sequence_privilege($2::oid, 'SELECT, USAGE') AS readable,
      ${last} AS last,
      ${files(events, "$2::oid::regclass")} AS files,
      ${head} AS head, ${ends} AS ends`

  const seeEvents = seeStatement(
    `(SELECT global_position FROM ${events} ORDER BY global_position DESC LIMIT 1)`,
    `ARRAY(
        SELECT coalesce((SELECT max(position) FROM (
          SELECT global_position AS position, row_number() OVER (ORDER BY global_position) AS place
          FROM ${events} WHERE global_position > start.position ORDER BY global_position
          LIMIT 1 + ${longestRuns} / cardinality($1::int8[])
        ) AS next WHERE position - start.position = place), start.position)
        FROM unnest($1::int8[]) WITH ORDINALITY AS start (position, place) ORDER BY start.place
      )`
  )
  // Reads no event, for tables whose last pages are damaged. The last value of the sequence is a valid head, because
  // the transaction that drew it holds the lock until it ends. Each run ends where it starts.
  const seeSequence = seeStatement(last, "$1::int8[]")

  // Uses the sequence of the column's default or identity; only if there is none, the sequence that the column owns.
  const holdersStatement = `
    WITH target AS MATERIALIZED (
      SELECT attrelid, attnum FROM pg_catalog.pg_attribute WHERE attrelid = $1::text::regclass AND attname = 'global_position'
    ), named AS MATERIALIZED (
      SELECT d.objid AS oid FROM target AS t
      JOIN pg_catalog.pg_depend AS d ON d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = t.attrelid
        AND d.refobjsubid = t.attnum AND d.classid = 'pg_catalog.pg_class'::regclass AND d.deptype = 'i'
      UNION
      SELECT d.refobjid FROM target AS t
      JOIN pg_catalog.pg_attrdef AS f ON f.adrelid = t.attrelid AND f.adnum = t.attnum
      JOIN pg_catalog.pg_depend AS d ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND d.objid = f.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
      JOIN pg_catalog.pg_class AS c ON c.oid = d.refobjid AND c.relkind = 'S'
    ), sources AS MATERIALIZED (
      SELECT oid FROM named
      UNION ALL
      SELECT pg_get_serial_sequence($1::text, 'global_position')::regclass
      WHERE NOT EXISTS (SELECT FROM named) AND pg_get_serial_sequence($1::text, 'global_position') IS NOT NULL
    )
    SELECT (SELECT count(*) FROM sources)::int AS sequences, s.seqrelid::text AS sequence,
      s.seqrelid::regclass::text AS name, s.seqcache AS cache, s.seqincrement AS increment, s.seqcycle AS cycle,
      pg_is_in_recovery() AS recovering, l.virtualtransaction AS holder, l.pid,
      coalesce(a.application_name, 'prepared transaction ' || quote_literal(x.gid)) AS application
    FROM (VALUES (true)) AS one
    LEFT JOIN sources ON true
    LEFT JOIN pg_catalog.pg_sequence AS s ON s.seqrelid = sources.oid
    LEFT JOIN pg_catalog.pg_locks AS l ON l.locktype = 'relation' AND l.relation = s.seqrelid AND l.mode = 'RowExclusiveLock'
      AND l.granted AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
    LEFT JOIN LATERAL pg_stat_get_activity(l.pid) AS a ON l.pid IS NOT NULL
    LEFT JOIN pg_catalog.pg_locks AS o ON l.pid IS NULL AND o.pid IS NULL AND o.locktype = 'transactionid'
      AND o.mode = 'ExclusiveLock' AND o.virtualtransaction = l.virtualtransaction
    LEFT JOIN pg_catalog.pg_prepared_xacts AS x ON x.transaction = o.transactionid`

  const readOnly = new ReadOnlyReplica({ server: database.server.server })

  const seeHolders = Effect.fnUntraced(function*(
    opened: Opened<State>
  ): Effect.fn.Return<ReadonlyArray<Settled.Holder>, SqlError.SqlError | StoreError> {
    const rows = yield* opened.sql.unsafe<HolderRow>(holdersStatement, [events])
    const first = rows[0]
    if (first?.recovering === true) return yield* readOnly
    if (first === undefined || first.sequences !== 1 || first.sequence === null) {
      return yield* new UnsupportedDatabase({
        problem: `The positions of ${events} do not come from one sequence that is the default of global_position.`,
        advice: "Make the column a bigserial, an identity, or give it a default of nextval('…')."
      })
    }
    if (first.cache !== 1n || first.increment !== 1n || first.cycle === true) {
      return yield* new UnsupportedDatabase({
        problem: `The sequence ${first.name} of the events' positions has ${
          first.cache !== 1n
            ? `CACHE ${first.cache}`
            : first.increment !== 1n
            ? `INCREMENT ${first.increment}`
            : "CYCLE"
        }, so that positions are not issued in order.`,
        advice: `Run: ALTER SEQUENCE ${first.name} CACHE 1 INCREMENT 1 NO CYCLE; then reconnect the writers.`
      })
    }
    opened.state.sequence = first.sequence
    return rows.flatMap(({ application, holder, pid }) =>
      holder === null ? [] : [{ id: holder, pid: pid ?? undefined, application: application || undefined }]
    )
  })

  const see = Effect.fnUntraced(function*(
    opened: Opened<State>,
    starts: ReadonlyArray<bigint>
  ): Effect.fn.Return<Seen, SqlError.SqlError | StoreError> {
    for (let attempt = 0; attempt < 2; attempt++) {
      if (opened.state.sequence === undefined) yield* seeHolders(opened)
      const ask = (statement: string) => opened.sql.unsafe<Seen>(statement, [starts, opened.state.sequence])
      const [seen] = yield* ask(seeEvents).pipe(
        Effect.catchIf(
          cannotBeRead,
          (error) => Effect.filterOrFail(ask(seeSequence), ([seen]) => seen?.readable === true, () => error)
        )
      )
      // Another sequence has replaced the known one.
      if (seen !== undefined && seen.readable !== null) return seen
      opened.state.sequence = undefined
    }
    return yield* new UnsupportedDatabase({
      problem: `The sequence of the positions of ${events} is being replaced.`,
      advice: "Do so while no worker or reader runs."
    })
  })

  /**
   * The last value of the sequence, read from the sequence relation: `pg_sequence_last_value` is NULL after
   * `setval(…, false)`.
   */
  const lastOf = Effect.fnUntraced(function*({ sql, state }: Opened<State>) {
    const [named] = yield* sql.unsafe<{ readonly name: string }>("SELECT $1::oid::regclass::text AS name", [
      state.sequence
    ])
    const [row] = yield* sql.unsafe<{ readonly last: bigint }>(
      `SELECT CASE WHEN is_called THEN last_value ELSE last_value - 1 END AS last FROM ${named?.name}`
    )
    return row?.last ?? 0n
  })

  const looking = Semaphore.makeUnsafe(1)
  let current: State | undefined

  /** Looks on behalf of readers that have passed `positions`; if there are none, of readers at the settled position. */
  const lookFor = Effect.fnUntraced(function*(
    opened: Opened<State>,
    positions: ReadonlyArray<bigint>
  ): Effect.fn.Return<Look & { readonly proved: boolean }, SqlError.SqlError | StoreError> {
    const settled = opened.state.settled
    const reached = (after: bigint) => {
      const to = Settled.reached(settled, after)
      return to < after ? after : to
    }
    // If readers wait, only the positions that follow theirs are read: reading a long history from 0 would not help
    // them.
    const starts = positions.length === 0 ? [settled.mark] : [...new Set(positions.map(reached))]
    const seen = yield* see(opened, starts)
    if (seen.recovering) return yield* readOnly
    if (opened.state.files !== undefined && opened.state.files !== seen.files) {
      startOver(opened.state)
      return yield* lookFor(opened, positions)
    }
    opened.state.files = seen.files
    const head = seen.head ?? 0n
    // An unused store is polled without the second statement.
    const isUnused = head === 0n && starts.every((from) => from === 0n)
    const last = seen.readable !== true ? undefined : seen.last ?? (isUnused ? 0n : yield* lastOf(opened))
    if (last !== undefined && head > last) {
      return yield* new UnsupportedDatabase({
        problem:
          `${events} holds an event at position ${head}, but its sequence has only issued positions up to ${last}.`,
        advice:
          "Positions must come from the sequence, never be written explicitly. After an import, set it with setval."
      })
    }
    // The last value of the sequence decreases only when the sequence is reset.
    if (last !== undefined && last < Settled.highest(settled)) {
      startOver(opened.state)
      return yield* lookFor(opened, positions)
    }
    const runs = starts.map((from, index) => ({ from, to: seen.ends[index] ?? from }))
    const holders = Settled.see(settled, runs, head) ? yield* seeHolders(opened) : []
    Settled.prove(settled, head, holders)
    current = opened.state
    const over = Settled.track(settled, holders, yield* Clock.monotonicTimeNanos)
    const kept = (positions.length === 0 ? [settled.mark] : positions.map(reached)).filter((position) =>
      position < head
    )
    yield* report(settled, over, kept)
    return {
      settled: settled.mark,
      reached: (after) => Settled.reached(settled, after),
      head,
      last,
      proved: settled.proved,
      epoch: opened.state.epoch ?? ""
    }
  })

  const describe = (writer: Settled.Writer): string =>
    [
      writer.pid === undefined ? undefined : `pid ${writer.pid}`,
      writer.application === undefined ? undefined : writer.application
    ].filter((part) => part !== undefined).join(", ") || writer.id

  const report = Effect.fnUntraced(function*(
    settled: Settled.Settled,
    over: ReadonlyArray<Settled.Writer>,
    /** The positions at which readers wait. */
    kept: ReadonlyArray<bigint>
  ) {
    if (settled.writers.size === 0 && over.length === 0) return
    const now = yield* Clock.monotonicTimeNanos
    for (const writer of kept.length === 0 ? [] : settled.writers.values()) {
      if (writer.reported || now - writer.since < reportAfterNanos) continue
      writer.reported = true
      yield* Effect.logWarning(
        `An open transaction (${describe(writer)}) has appended events and keeps readers waiting at position ${
          kept.reduce((least, position) => position < least ? position : least)
        }. ${writer.pid === undefined ? "COMMIT PREPARED or ROLLBACK PREPARED it." : "Commit it or roll it back."}`
      )
    }
    for (const writer of over) {
      if (writer.reported) {
        yield* Effect.logInfo(`The transaction that kept readers waiting (${describe(writer)}) has ended.`)
      }
    }
  })

  const lookOnce = (positions: ReadonlyArray<bigint>) =>
    looking.withPermit(reader.use("follow the events", (opened) => lookFor(opened, positions)))

  const waiters = new Set<Waiter>()
  const wanted = Latch.makeUnsafe(false)
  const woken = Latch.makeUnsafe(false)

  const wake = (): void => {
    if (waiters.size > 0) woken.openUnsafe()
  }

  const follow = Effect.gen(function*() {
    yield* wanted.await
    const messages = yield* listener.subscribe(database.channels.events)
    yield* Effect.forkIn(Effect.forever(Effect.map(Queue.take(messages), wake)), scope)
    let gapWait = shortestGapWait
    let mark = 0n
    while (true) {
      yield* wanted.await
      if (waiters.size === 0) {
        wanted.closeUnsafe()
        continue
      }
      woken.closeUnsafe()
      const asking = [...waiters]
      const exit = yield* Effect.exit(lookOnce(asking.map(({ position }) => position)))
      if (Exit.isFailure(exit)) {
        for (const waiter of asking) {
          waiters.delete(waiter)
          Deferred.doneUnsafe(waiter.done, Exit.failCause(exit.cause))
        }
        continue
      }
      const { head, last, reached, settled } = exit.value
      for (const waiter of waiters) {
        const to = reached(waiter.position)
        if (to > waiter.position) {
          waiters.delete(waiter)
          Deferred.doneUnsafe(waiter.done, Exit.succeed(to))
        }
      }
      // Only readers that waited before the look: later ones may have passed positions that it did not cover.
      for (const waiter of asking) {
        if (last !== undefined && waiter.position > last && waiters.delete(waiter)) {
          Deferred.doneUnsafe(
            waiter.done,
            Exit.fail(new CheckpointAheadOfEvents({ position: waiter.position, lastPosition: last }))
          )
        }
      }
      if (waiters.size === 0) continue
      const isKept = [...waiters].some(({ position }) => position < head)
      if (settled > mark || !isKept) gapWait = shortestGapWait
      mark = settled
      const poll = [...waiters].reduce((least, { pollMillis }) => Math.min(least, pollMillis), Infinity)
      const wait = isKept ? Math.min(gapWait, poll) : poll
      if (isKept) gapWait = Math.min(longestGapWait, gapWait * 1.5)
      yield* Effect.sleep(breath)
      yield* Effect.timeoutOption(woken.await, wait)
    }
  })

  yield* follow.pipe(
    Effect.onExit((exit) =>
      Effect.sync(() => {
        const cause = Exit.isFailure(exit) ? exit.cause : Cause.interrupt()
        for (const waiter of waiters) Deferred.doneUnsafe(waiter.done, Exit.failCause(cause))
      })
    ),
    Effect.withTracerEnabled(false),
    Effect.forkIn(scope)
  )

  const settledBeyond: SettledTracker["settledBeyond"] = (position, pollInterval) =>
    Effect.suspend(() => {
      // Possibly from an earlier connection; reads verify that it is proved on the connection that they use.
      const known = current === undefined ? position : Settled.reached(current.settled, position)
      if (known > position) return Effect.succeed(known)
      const waiter: Waiter = { position, pollMillis: Duration.toMillis(pollInterval), done: Deferred.makeUnsafe() }
      waiters.add(waiter)
      wanted.openUnsafe()
      woken.openUnsafe()
      return Effect.ensuring(Deferred.await(waiter.done), Effect.sync(() => waiters.delete(waiter)))
    })

  const lookUntil = Effect.fnUntraced(function*(
    positions: ReadonlyArray<bigint>,
    isEnough: (found: Look & { readonly proved: boolean }, waitedNanos: bigint) => boolean
  ) {
    const begun = yield* Clock.monotonicTimeNanos
    let wait = shortestGapWait
    let mark = 0n
    while (true) {
      const found = yield* lookOnce(positions)
      if (found.proved || isEnough(found, (yield* Clock.monotonicTimeNanos) - begun)) return found
      if (found.settled > mark) wait = shortestGapWait
      mark = found.settled
      yield* Effect.sleep(wait)
      wait = Math.min(longestGapWait, wait * 1.5)
    }
  })

  const openWriters = Effect.gen(function*() {
    // Waiting readers keep the list current.
    if (waiters.size === 0) yield* Effect.ignoreCause(lookOnce([]))
    const now = yield* Clock.monotonicTimeNanos
    return [...current?.settled.writers.values() ?? []].map((writer): OpenWriter => ({
      pid: writer.pid,
      application: writer.application,
      seenForMillis: Number((now - writer.since) / 1_000_000n)
    }))
  })

  return {
    settledBeyond,
    look: (after, upTo) =>
      lookUntil(
        [after],
        ({ reached }, waited) => waited > firstProofNanos || upTo !== undefined && reached(after) >= upTo
      ),
    settled: Effect.map(lookUntil([], () => false), ({ settled }) => settled),
    openWriters,
    known: (after) => ({
      settled: current === undefined ? 0n : Settled.reached(current.settled, after),
      epoch: current?.epoch
    }),
    wake
  }
})
