/**
 * Tracks the settled position for all readers of a stores layer: observes the events, their sequence and its holders,
 * from which `Settled.prove` proves what is settled. All waiting readers share the result of an observation. While no
 * reader waits, nothing is observed.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Queue from "effect/Queue"
import type * as Scope from "effect/Scope"
import type * as SqlError from "effect/sql/SqlError"
import * as Announcement from "../../../schema/Announcement.ts"
import { CheckpointAheadOfEvents, type StoreError } from "../../../schema/Errors.ts"
import type { HashRange } from "../../../schema/HashRange.ts"
import * as Settled from "../../../schema/Settled.ts"
import type { EventStore, OpenWriter, ServerEpoch } from "../../../services/EventStore.ts"
import { Listener, queueCapacity } from "../connection/Listener.ts"
import type { Opened } from "../connection/Session.ts"
import { cannotBeRead, unsupported } from "../connection/SqlErrors.ts"
import { Database } from "../Database.ts"
import * as OpenWriters from "./OpenWriters.ts"
import * as ReadSession from "./ReadSession.ts"
import * as SequenceCheck from "./SequenceCheck.ts"
import * as Waiters from "./Waiters.ts"

/** What was observed and proved on a connection. */
export interface Observed {
  readonly settled: Settled.Settled
  /** The highest visible position. */
  readonly head: bigint
  /** The last position that the sequence returned; absent if the role may not read the sequence. */
  readonly last: bigint | undefined
  readonly epoch: ServerEpoch
}

export interface SettledTracker {
  readonly settledBeyond: EventStore["Service"]["settledBeyond"]
  /**
   * Observes on behalf of a reader that has passed `after`. If nothing has been proved on this connection yet, this is
   * repeated until something is proved, the reader may read up to `upTo`, or 500 ms have elapsed.
   */
  readonly observe: (after: bigint, upTo: bigint | undefined) => Effect.Effect<Observed, StoreError>
  /**
   * Observes until the settled position is proved. If nothing has been proved on this connection yet, it waits until
   * the writers of the first observation have ended; before that, only the history up to its first gap is certain.
   */
  readonly proved: Effect.Effect<Observed, StoreError>
  readonly openWriters: Effect.Effect<ReadonlyArray<OpenWriter>>
  /** What the last observation proved, without a statement; the connection may have been lost since. */
  readonly latest: () => Pick<ReadSession.State, "epoch" | "settled">
  /** Triggers an observation for the waiting readers that an append concerns. */
  readonly announce: (announcement: Announcement.Announcement) => void
}

interface Tracker {
  readonly database: Database["Service"]
  readonly session: ReadSession.ReadSession
  readonly statements: ReturnType<typeof makeStatements>
  readonly waiters: Waiters.Waiters
  latest: Pick<ReadSession.State, "epoch" | "settled">
}

/** Minimum pause after an observation that leaves readers waiting, however many wake-ups arrive. */
const shortestPause = Duration.millis(2)

/** How long a read waits for the first proof on a connection. */
const firstProofNanos = 500_000_000n

/** Approximate number of index rows that an observation reads to find the positions that follow without a gap. */
const longestRuns = 10_000

export const make = Effect.fnUntraced(function*(
  session: ReadSession.ReadSession
): Effect.fn.Return<SettledTracker, never, Database | Listener | Scope.Scope> {
  const database = yield* Database
  const listener = yield* Listener
  const self: Tracker = {
    database,
    session,
    statements: makeStatements(database.qualified("events")),
    waiters: Waiters.make(listener.isListening),
    latest: { epoch: undefined, settled: Settled.unproved }
  }
  yield* run(self, listener).pipe(Effect.withTracerEnabled(false), Effect.forkScoped)
  return {
    settledBeyond: (position, pollInterval, range) => settledBeyond(self, position, pollInterval, range),
    observe: (after, upTo) =>
      observeUntil(
        self,
        [after],
        ({ settled }, waited) =>
          waited > firstProofNanos || upTo !== undefined && Settled.readableUpTo(settled, after) >= upTo
      ),
    proved: observeUntil(self, [], () => false),
    openWriters: openWriters(self),
    latest: () => self.latest,
    announce: (announcement) => Waiters.announce(self.waiters, announcement)
  }
})

const settledBeyond = (
  self: Tracker,
  position: bigint,
  pollInterval: Duration.Duration,
  range: HashRange | undefined
): Effect.Effect<bigint, CheckpointAheadOfEvents | StoreError> =>
  Effect.suspend(() => {
    // Possibly from an earlier connection; reads verify that it is proved on the connection that they use.
    const known = Settled.readableUpTo(self.latest.settled, position)
    if (known > position) return Effect.succeed(known)
    const waiter = Waiters.add(self.waiters, { position, pollMillis: Duration.toMillis(pollInterval), range })
    return Effect.ensuring(Deferred.await(waiter.done), Effect.sync(() => self.waiters.all.delete(waiter)))
  })

/** Takes all messages at once, because a full queue may have discarded some. */
const receive = ({ waiters }: Tracker, messages: Queue.Dequeue<string>): Effect.Effect<void> =>
  Effect.map(Queue.takeAll(messages), (payloads) => {
    if (payloads.length >= queueCapacity) return Waiters.announce(waiters, Announcement.all)
    for (const payload of payloads) Waiters.announce(waiters, Announcement.decode(payload))
  })

/** Observes while readers wait. */
const run = Effect.fnUntraced(
  function*(self: Tracker, listener: Listener["Service"]) {
    const { waiters } = self
    // A process that only appends does not listen.
    yield* Waiters.untilDue(waiters)
    const messages = yield* listener.subscribe(self.database.channels.events)
    yield* Effect.forkScoped(Effect.forever(receive(self, messages)))
    while (true) {
      yield* Waiters.untilDue(waiters)
      const asking = Waiters.begin(waiters)
      const exit = yield* Effect.exit(observe(self, asking.map(({ position }) => position)))
      if (Exit.isFailure(exit)) {
        Waiters.failed(waiters)
        for (const waiter of asking) answer(self, waiter, Exit.failCause(exit.cause))
        continue
      }
      const { head, settled } = exit.value
      yield* Waiters.succeeded(waiters, head, settled.position)
      answerWaiters(self, asking, exit.value)
      if (waiters.all.size > 0) yield* Effect.sleep(shortestPause)
    }
  },
  (loop, self) =>
    Effect.onExit(loop, (exit: Exit.Exit<never>) =>
      Effect.sync(() => {
        const cause = Exit.isFailure(exit) ? exit.cause : Cause.interrupt()
        for (const waiter of self.waiters.all) answer(self, waiter, Exit.failCause(cause))
      }))
)

const answer = (
  { waiters }: Tracker,
  waiter: Waiters.Waiter,
  exit: Exit.Exit<bigint, CheckpointAheadOfEvents | StoreError>
): void => {
  waiters.all.delete(waiter)
  Deferred.doneUnsafe(waiter.done, exit)
}

const answerWaiters = (self: Tracker, asking: ReadonlyArray<Waiters.Waiter>, { last, settled }: Observed): void => {
  for (const waiter of self.waiters.all) {
    const readable = Settled.readableUpTo(settled, waiter.position)
    if (readable > waiter.position) answer(self, waiter, Exit.succeed(readable))
  }
  // Only readers that waited before the observation: later ones may have passed positions that it did not cover.
  for (const waiter of asking) {
    if (last !== undefined && waiter.position > last && self.waiters.all.has(waiter)) {
      answer(self, waiter, Exit.fail(new CheckpointAheadOfEvents({ position: waiter.position, lastPosition: last })))
    }
  }
}

/** Observes until something is proved on this connection, or the result is enough. */
const observeUntil = Effect.fnUntraced(function*(
  self: Tracker,
  positions: ReadonlyArray<bigint>,
  isEnough: (observed: Observed, waitedNanos: bigint) => boolean
) {
  const begun = yield* Clock.monotonicTimeNanos
  let gap: Waiters.GapWait | undefined
  while (true) {
    const observed = yield* observe(self, positions)
    if (observed.settled.isProved || isEnough(observed, (yield* Clock.monotonicTimeNanos) - begun)) return observed
    gap = Waiters.nextGapWait(gap, observed.settled.position)
    yield* Effect.sleep(gap.millis)
  }
})

/**
 * Observes on behalf of readers that have passed `positions`; if there are none, of readers at the settled position.
 */
const observe = (self: Tracker, positions: ReadonlyArray<bigint>): Effect.Effect<Observed, StoreError> =>
  self.session.use("follow the events", (opened) => observeOn(self, opened, positions))

/** One observation: first the events, and if that leaves a gap, in a later statement the writers that may fill it. */
const observeOn = Effect.fnUntraced(function*(
  self: Tracker,
  opened: Opened<ReadSession.State>,
  positions: ReadonlyArray<bigint>
): Effect.fn.Return<Observed, SqlError.SqlError | StoreError> {
  const { state } = opened
  // If readers wait, only the positions that follow theirs are read: reading a long history from 0 would not help them.
  const starts = positions.length === 0
    ? [state.settled.position]
    : [...new Set(positions.map((position) => passed(state.settled, position)))]
  const row = yield* readEvents(self, opened, starts)
  if (row.recovering) return yield* SequenceCheck.readOnly(self.database)
  const head = row.head ?? 0n
  // An unused store is polled without another statement.
  const isUnused = head === 0n && starts.every((from) => from === 0n)
  const last = row.readable !== true
    ? undefined
    : row.last ?? (isUnused ? 0n : yield* SequenceCheck.lastValue(opened))
  if (isRestarted(state, row, last)) {
    ReadSession.reset(state)
    return yield* observeOn(self, opened, positions)
  }
  state.files = row.files
  yield* SequenceCheck.checkNotBehind(self.database, { head, last })
  const writersBefore = state.settled.writers
  state.settled = Settled.observe(state.settled, {
    head,
    runs: starts.map((from, index) => ({ from, to: row.ends[index] ?? from }))
  })
  const holders = Settled.needsHolders(state.settled, head)
    ? yield* SequenceCheck.readHolders(self.database, opened)
    : []
  state.settled = Settled.prove(state.settled, { head, holders, now: yield* Clock.monotonicTimeNanos })
  self.latest = state
  yield* OpenWriters.report(state, writersBefore, heldBack(state.settled, positions, head))
  return { settled: state.settled, head, last, epoch: state.epoch ?? "" }
})

/** The position after which a reader that has passed `position` needs to know more. */
const passed = (settled: Settled.Settled, position: bigint): bigint => {
  const readable = Settled.readableUpTo(settled, position)
  return readable < position ? position : readable
}

/** Whether positions may have restarted. The last value of the sequence decreases only when the sequence is reset. */
const isRestarted = (state: ReadSession.State, row: EventsRow, last: bigint | undefined): boolean =>
  state.files !== undefined && state.files !== row.files ||
  last !== undefined && last < Settled.highest(state.settled)

/** The positions at which readers wait for open writers. */
const heldBack = (settled: Settled.Settled, positions: ReadonlyArray<bigint>, head: bigint): ReadonlyArray<bigint> =>
  (positions.length === 0 ? [settled.position] : positions.map((position) => passed(settled, position)))
    .filter((position) => position < head)

interface EventsRow {
  readonly recovering: boolean
  readonly readable: boolean | null
  readonly last: bigint | null
  readonly files: string
  readonly head: bigint | null
  /** The ends of the runs that begin at the requested positions, in the same order. */
  readonly ends: ReadonlyArray<bigint>
}

const readEvents = Effect.fnUntraced(function*(
  { database, statements }: Tracker,
  opened: Opened<ReadSession.State>,
  starts: ReadonlyArray<bigint>
): Effect.fn.Return<EventsRow, SqlError.SqlError | StoreError> {
  const { sql, state } = opened
  for (let attempt = 0; attempt < 2; attempt++) {
    if (state.sequence === undefined) yield* SequenceCheck.readHolders(database, opened)
    const read = (statement: string) => sql.unsafe<EventsRow>(statement, [starts, state.sequence])
    const [row] = yield* read(statements.events).pipe(
      Effect.catchIf(
        cannotBeRead,
        (error) => Effect.filterOrFail(read(statements.sequence), ([row]) => row?.readable === true, () => error)
      )
    )
    // Another sequence has replaced the known one.
    if (row !== undefined && row.readable !== null) return row
    state.sequence = undefined
  }
  return yield* unsupported({
    problem: `The sequence of the positions of ${database.qualified("events")} is being replaced.`,
    advice: "Do so while no worker or reader runs."
  })
})

/** SQL: the positions after which runs are searched, in the order in which they were requested. */
export const starts = "unnest($1::int8[]) WITH ORDINALITY AS start (position, place)"

const makeStatements = (events: string) => {
  const statement = (head: string, ends: string) => `
    SELECT pg_is_in_recovery() AS recovering,
      has_sequence_privilege($2::oid, 'SELECT, USAGE') AS readable,
      ${SequenceCheck.lastValueSql} AS last,
      ${ReadSession.files(events, "$2::oid::regclass")} AS files,
      ${head} AS head, ${ends} AS ends`
  return {
    events: statement(
      `(SELECT global_position FROM ${events} ORDER BY global_position DESC LIMIT 1)`,
      `ARRAY(
        SELECT coalesce((SELECT max(position) FROM (
          SELECT global_position AS position, row_number() OVER (ORDER BY global_position) AS place
          FROM ${events} WHERE global_position > start.position ORDER BY global_position
          LIMIT 1 + ${longestRuns} / cardinality($1::int8[])
        ) AS next WHERE position - start.position = place), start.position)
        FROM ${starts} ORDER BY start.place
      )`
    ),
    // Reads no event, for tables whose last pages are damaged. The last value of the sequence is a valid head, because
    // the transaction that drew it holds the lock until it ends. Each run ends where it starts.
    sequence: statement(SequenceCheck.lastValueSql, "$1::int8[]")
  }
}

const openWriters = Effect.fnUntraced(function*(self: Tracker) {
  // Waiting readers keep the list current. It is only diagnostic: if this query fails, the last observation is returned,
  // and reads report the failure.
  if (self.waiters.all.size === 0) yield* Effect.ignoreCause(observe(self, []))
  const now = yield* Clock.monotonicTimeNanos
  return OpenWriters.list(self.latest.settled, now)
})
