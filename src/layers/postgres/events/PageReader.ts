/** Reads one page of settled events, in as many statements as `PageWindow` decides. */
import * as Clock from "effect/Clock"
import * as Effect from "effect/Effect"
import type * as SqlError from "effect/sql/SqlError"
import { CheckpointAheadOfEvents, type EventError, type StatementFailed, StoreError } from "../../../schema/Errors.ts"
import type { Event } from "../../../schema/Event.ts"
import * as PageWindow from "../../../schema/PageWindow.ts"
import * as Settled from "../../../schema/Settled.ts"
import type { Page, ReadOptions, ServerEpoch } from "../../../services/EventStore.ts"
import * as ServerEpochSql from "../connection/ServerEpochSql.ts"
import { codeOf, isUnreadable } from "../connection/SqlErrors.ts"
import type { Database } from "../Database.ts"
import * as EventSql from "./EventSql.ts"
import * as FaultyEvent from "./FaultyEvent.ts"
import * as ReadSession from "./ReadSession.ts"
import type { SettledTracker } from "./SettledTracker.ts"

/** What all pages share. */
export interface PageReader {
  readonly database: Database["Service"]
  readonly session: ReadSession.ReadSession
  readonly tracker: SettledTracker
  readonly statements: EventSql.ReadStatements
  /** Maximum size in bytes of an event that the client can receive. */
  readonly largestEvent: number
  sizes: PageWindow.RowSizes
}

/** A page while it is read. */
interface Reading {
  readonly options: ReadOptions
  readonly where: EventSql.Conditions
  readonly begun: bigint
  /** The server epoch in which the bound was proved, and in which all statements read. */
  epoch: ServerEpoch
  window: PageWindow.PageWindow
  events: ReadonlyArray<Event>
  /** The hashes of their keys, if the read asked for them. */
  hashes: ReadonlyArray<number>
  /** The first event that cannot be read; the page ends before it. */
  unreadable: FaultyEvent.Unreadable | undefined
}

/** The driver's default limit for one message, that is, for one row. */
const defaultMessageSize = 16 * 1024 * 1024

/** Room in a message for bytes that the measured size of its row does not include. */
const messageHeadroom = 512 * 1024

export const make = (
  options: Pick<PageReader, "database" | "session" | "statements" | "tracker">
): PageReader => {
  const messageSize = options.database.pg.config.maxMessageSize ?? defaultMessageSize
  return {
    ...options,
    largestEvent: messageSize - Math.min(messageHeadroom, Math.floor(messageSize / 4)),
    sizes: PageWindow.rowSizes
  }
}

export const read = Effect.fnUntraced(function*(
  self: PageReader,
  options: ReadOptions
): Effect.fn.Return<Page, CheckpointAheadOfEvents | EventError | StoreError> {
  const page = yield* begin(self, options)
  while (true) {
    const request = PageWindow.next(page.window, self.sizes)
    if (request === undefined) return yield* finish(self, page)
    const started = yield* Clock.monotonicTimeNanos
    const answer = yield* readRows(self, page, request)
    if (answer._tag === "Rows") {
      accept(self, page, request, answer.rows, { started, ended: yield* Clock.monotonicTimeNanos })
    } else if (answer._tag === "Unproved") {
      yield* restart(self, page)
    } else if (answer._tag === "Timeout") {
      page.window = PageWindow.timedOut(page.window, request)
      self.sizes = PageWindow.sizesTimedOut(self.sizes, request)
    } else {
      yield* endBeforeUnreadable(self, page, request, answer.failure)
    }
  }
})

const begin = Effect.fnUntraced(function*(self: PageReader, options: ReadOptions) {
  const where = EventSql.conditions(options)
  const begun = yield* Clock.monotonicTimeNanos
  const { bound, epoch } = provedBefore(self, options) ?? (yield* prove(self, options.after, options.upTo))
  const limits: PageWindow.Limits = {
    ...PageWindow.pageLimits(options),
    after: options.after,
    largestEvent: self.largestEvent,
    isFiltered: where.text !== ""
  }
  const page: Reading = {
    options,
    where,
    begun,
    epoch,
    window: PageWindow.make(limits, bound),
    events: [],
    hashes: [],
    unreadable: undefined
  }
  return page
})

/** The position up to which events may be read, and the server epoch for which this is proved. */
interface Proved {
  readonly bound: bigint
  readonly epoch: ServerEpoch
}

/**
 * Returns the bound without a statement if `upTo` was proved before. The proof may be from an earlier connection, so
 * `send` checks it again on the connection that it uses.
 */
const provedBefore = ({ tracker }: PageReader, { after, upTo }: ReadOptions): Proved | undefined => {
  const { epoch, settled } = tracker.latest()
  return upTo !== undefined && epoch !== undefined && upTo <= Settled.readableUpTo(settled, after)
    ? { bound: upTo, epoch }
    : undefined
}

/** Proves a bound on the session's current connection. The bound is at most `upTo`. */
const prove = Effect.fnUntraced(function*(self: PageReader, after: bigint, upTo: bigint | undefined) {
  const observed = yield* self.tracker.observe(after, upTo)
  if (observed.last !== undefined && after > observed.last) {
    return yield* new CheckpointAheadOfEvents({ position: after, lastPosition: observed.last })
  }
  const readable = Settled.readableUpTo(observed.settled, after)
  return { bound: upTo !== undefined && upTo < readable ? upTo : readable, epoch: observed.epoch } satisfies Proved
})

/** What a statement that reads a window of events returned. */
type Answer =
  /** Of a statement that returns events. */
  | { readonly _tag: "Rows"; readonly rows: ReadonlyArray<EventSql.Row> }
  /** Not sent, or answered without rows: the bound is not proved on the session's connection, or the epoch differs. */
  | { readonly _tag: "Unproved" }
  | { readonly _tag: "Timeout" }
  /** It failed at a row that cannot be read. */
  | { readonly _tag: "Unreadable"; readonly failure: StatementFailed }

const readRows = (self: PageReader, page: Reading, request: PageWindow.Request) => {
  const isSmall = request.rows === "small"
  return send(self, page, {
    statement: isSmall ? self.statements.small(page.where) : self.statements.anySize(page.where),
    window: [request.after, request.upTo, EventSql.rowCount(request.limit), BigInt(request.bytes)],
    rest: isSmall ? [] : [BigInt(request.largestFirst)],
    mayShrink: request.mayShrink
  })
}

/** Sends a statement on the connection on which the page's bound was proved. */
const send = (self: PageReader, page: Reading, options: {
  readonly statement: string
  readonly window: readonly [after: bigint, upTo: bigint, limit: bigint, bytes: bigint]
  /** The parameters after those of the conditions. */
  readonly rest: ReadonlyArray<unknown>
  /** Whether a timeout is reported as such, because the caller can read less. */
  readonly mayShrink: boolean
}): Effect.Effect<Answer, StoreError> =>
  self.session.use(
    "read events",
    ({ sql, state }): Effect.Effect<Answer, SqlError.SqlError | StoreError> =>
      Settled.readableUpTo(state.settled, page.options.after) < page.window.bound || state.epoch !== page.epoch
        ? Effect.succeed({ _tag: "Unproved" })
        : sql.unsafe(options.statement, [
          ...options.window,
          state.sequence,
          state.files,
          ...page.where.parameters,
          ...options.rest
        ]).values.pipe(
          Effect.map((rows): Answer => ({ _tag: "Rows", rows: rows as unknown as ReadonlyArray<EventSql.Row> })),
          Effect.catch((error): Effect.Effect<Answer, SqlError.SqlError> => {
            if (options.mayShrink && error.reason._tag === "StatementTimeoutError") {
              return Effect.succeed({ _tag: "Timeout" })
            }
            // The statement divides by zero on a standby, and when the table or the sequence was replaced.
            if (codeOf(error) !== divisionByZero) return Effect.fail(error)
            ReadSession.reset(state)
            return Effect.succeed({ _tag: "Unproved" })
          })
        )
  ).pipe(
    // Runs outside the session, so that the session replaces a connection that the driver has closed.
    Effect.catchIf(
      isUnreadable,
      ({ reason }): Effect.Effect<Answer> => Effect.succeed({ _tag: "Unreadable", failure: reason })
    )
  )

const divisionByZero = "22012"

/** Adds the rows of a statement up to the first that does not fit. */
const accept = (
  self: PageReader,
  page: Reading,
  request: PageWindow.Request,
  rows: ReadonlyArray<EventSql.Row>,
  { ended, started }: { readonly started: bigint; readonly ended: bigint }
): void => {
  const isSmall = request.rows === "small"
  const events: Array<Event> = []
  const hashes: Array<number> = []
  let bytes = 0
  let oversized: bigint | undefined
  for (const row of rows) {
    if (!EventSql.isWhole(row)) {
      oversized = row[0]
      break
    }
    events.push(EventSql.toEvent(row))
    if (page.options.hashes === true) hashes.push(EventSql.hashOfRow(row))
    bytes = isSmall ? bytes + row[12].length : EventSql.runningOf(row)
  }
  const answer: PageWindow.Answer = {
    events: events.length,
    bytes,
    last: events[events.length - 1]?.globalPosition,
    oversized,
    nanos: ended - started,
    pageNanos: ended - page.begun
  }
  page.events = page.events.length === 0 ? events : [...page.events, ...events]
  if (page.options.hashes === true) page.hashes = [...page.hashes, ...hashes]
  page.window = PageWindow.answered(page.window, request, answer)
  self.sizes = PageWindow.sizesAnswered(self.sizes, request, answer)
}

/**
 * Begins again after the proof was lost, usually because the connection was lost: the server epoch may differ, and a
 * page must not mix epochs. The bound can only fall.
 */
const restart = Effect.fnUntraced(function*(self: PageReader, page: Reading) {
  const { bound, epoch } = yield* prove(self, page.options.after, page.window.bound)
  page.events = []
  page.hashes = []
  page.unreadable = undefined
  page.epoch = epoch
  page.window = PageWindow.restart(page.window, bound)
})

/** Begins again, finds the event at which a statement failed, and ends the page before that event. */
const endBeforeUnreadable = Effect.fnUntraced(function*(
  self: PageReader,
  page: Reading,
  { upTo }: PageWindow.Request,
  failure: StatementFailed
) {
  // The driver closes a connection on which it cannot decode a row, so the bound has to be proved again.
  yield* restart(self, page)
  const { bound, position } = page.window
  page.unreadable = yield* FaultyEvent.find(check(self, page), position, upTo < bound ? upTo : bound)
  if (page.unreadable === undefined) return yield* new StoreError({ reason: failure })
  page.window = PageWindow.restart(page.window, page.unreadable.position - 1n)
})

const check = (self: PageReader, page: Reading) =>
  Effect.fnUntraced(function*(after: bigint, upTo: bigint) {
    const answer = yield* send(self, page, {
      statement: self.statements.check(page.where),
      window: [after, upTo, EventSql.rowCount(Infinity), 0n],
      rest: [],
      mayShrink: upTo - after > 1n
    })
    if (answer._tag === "Unproved") return yield* ServerEpochSql.epochEnded(self.database.sessionServer)
    return answer._tag === "Timeout" ? "timeout" : answer._tag === "Unreadable" ? answer.failure : undefined
  })

const finish = Effect.fnUntraced(function*(self: PageReader, page: Reading) {
  const { epoch, events, hashes, options, unreadable, window: { position, tooLarge } } = page
  const read = { partitionBy: options.partitionBy, epoch }
  if (tooLarge !== undefined) return yield* Effect.flatMap(FaultyEvent.toTooLarge(self, tooLarge, read), Effect.fail)
  if (unreadable !== undefined && events.length === 0 && position >= unreadable.position - 1n) {
    return yield* Effect.flatMap(FaultyEvent.toUnreadable(self, unreadable, read), Effect.fail)
  }
  return { events, position, epoch, ...(options.hashes === true ? { hashes } : {}) } satisfies Page
})
