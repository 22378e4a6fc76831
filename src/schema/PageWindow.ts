/**
 * Decides what the next statement of a page reads, from the sizes of the rows and the times of the previous statements.
 *
 * A page is read by statements that each read a window of positions. There are two kinds. Statements for *small* rows
 * are cheap, because they do not measure rows, but end at the first row that is not small. Statements for rows of *any
 * size* measure every row. All ranges read on one connection, so a statement should be neither so small that its round
 * trip dominates, nor so large that the others wait for it.
 */

/** The bounds of one page. */
export interface Limits {
  /** The page contains events above this position. */
  readonly after: bigint
  readonly events: number
  /** Total size of the events; does not apply to the first event. */
  readonly bytes: number
  /** Maximum size of one event, because the client cannot receive a larger message. */
  readonly largestEvent: number
  /** Whether a statement may find few events among many positions. */
  readonly isFiltered: boolean
}

const defaultEvents = 1000
const defaultBytes = 4 * 1024 * 1024

/** The limits that the options of a read set: see `ReadOptions`. */
export const pageLimits = ({ bytes = defaultBytes, limit = defaultEvents }: {
  readonly limit?: number | undefined
  readonly bytes?: number | undefined
}): Pick<Limits, "bytes" | "events"> => ({
  events: Math.max(1, Math.floor(limit)),
  bytes: Math.max(1, Math.floor(bytes))
})

/** How far one page has been read. */
export interface PageWindow {
  readonly limits: Limits
  /** The position up to which events may be read. */
  readonly bound: bigint
  /** All matching events up to this position have been read. */
  readonly position: bigint
  readonly events: number
  readonly bytes: number
  /** Number of positions that a statement with a filter scans. */
  readonly scan: bigint
  /** Whether a limit ended the page before the bound. */
  readonly isFull: boolean
  /** The position of the next event if it exceeds `largestEvent` and the page is empty. */
  readonly tooLarge: bigint | undefined
}

/** What recent pages of all readers suggest for the next ones. */
export interface RowSizes {
  /** Number of statements for rows of any size after which the statement for small rows is tried again. */
  readonly anySize: number
  /** Number of rows that a statement measures, because measuring large metadata means reading it. */
  readonly measured: number
}

/** The window that one statement reads. */
export interface Request {
  readonly rows: "any size" | "small"
  /** Reads the positions above `after` up to `upTo`; there is at least one. */
  readonly after: bigint
  readonly upTo: bigint
  /** Maximum number of rows, at least 1. */
  readonly limit: number
  /** Maximum size: of each row if they are small, otherwise of all together. */
  readonly bytes: number
  /** Maximum size of the first row, even if it exceeds `bytes`. */
  readonly largestFirst: number
  /** Whether a smaller request remains if this one takes too long. */
  readonly mayShrink: boolean
}

/** The result of a statement. */
export interface Answer {
  /** The number of events, their size in bytes, and the position of the last one. */
  readonly events: number
  readonly bytes: number
  readonly last: bigint | undefined
  /** The position of the first row that does not fit; it follows the events. */
  readonly oversized: bigint | undefined
  /** Duration of the statement. */
  readonly nanos: bigint
  /** Time since the page was begun. */
  readonly pageNanos: bigint
}

const firstScan = 20_000n
const smallestScan = 500n

const firstMeasured = 100
const mostMeasured = 10_000

/** Number of statements for rows of any size after a row that was not small. */
const anySizeStatements = 32

/** A statement faster than this is too small, a slower one than `slowNanos` too large. */
const fastNanos = 25_000_000n
const slowNanos = 150_000_000n

/** A page that finds few events ends after this time, with the position that it has reached. */
const pageNanos = 500_000_000n

export const rowSizes: RowSizes = { anySize: 0, measured: firstMeasured }

export const make = (limits: Limits, bound: bigint): PageWindow => ({
  limits,
  bound,
  position: limits.after,
  events: 0,
  bytes: 0,
  scan: firstScan,
  isFull: false,
  tooLarge: undefined
})

/** The same page from its beginning, up to another bound. */
export const restart = (self: PageWindow, bound: bigint): PageWindow => ({
  ...make(self.limits, bound),
  scan: self.scan
})

/** The request of the next statement; undefined when the page is complete. */
export const next = (self: PageWindow, sizes: RowSizes): Request | undefined => {
  const { limits, position } = self
  if (self.isFull || position >= self.bound) return undefined
  const upTo = limits.isFiltered && position + self.scan < self.bound ? position + self.scan : self.bound
  const free = Math.max(0, Math.min(limits.bytes, limits.largestEvent) - self.bytes)
  const canScanLess = limits.isFiltered && self.scan > smallestScan
  if (self.events === 0 && sizes.anySize === 0) {
    const bytes = Math.floor(free / limits.events)
    return {
      rows: "small",
      after: position,
      upTo,
      limit: limits.events,
      bytes,
      largestFirst: 0,
      mayShrink: canScanLess
    }
  }
  const limit = Math.min(limits.events - self.events, sizes.measured)
  return {
    rows: "any size",
    after: position,
    upTo,
    limit,
    bytes: free,
    largestFirst: self.events === 0 ? limits.largestEvent : 0,
    mayShrink: canScanLess || limit > 1
  }
}

/** The page after a statement was answered. */
export const answered = (self: PageWindow, request: Request, answer: Answer): PageWindow => {
  const { limits } = self
  const events = self.events + answer.events
  const bytes = self.bytes + answer.bytes
  const read = { ...self, events, bytes, scan: scanAfter(self.scan, answer.nanos) }
  if (answer.oversized !== undefined) {
    // After small rows the page continues with rows of any size.
    const isFull = request.rows === "any size"
    return {
      ...read,
      position: answer.oversized - 1n,
      isFull,
      tooLarge: isFull && events === 0 ? answer.oversized : undefined
    }
  }
  return {
    ...read,
    position: answer.events < request.limit ? request.upTo : answer.last ?? request.upTo,
    isFull: events >= limits.events || bytes >= limits.bytes || answer.pageNanos > pageNanos
  }
}

const scanAfter = (scan: bigint, nanos: bigint): bigint =>
  nanos < fastNanos ? scan * 4n : nanos > slowNanos ? atLeastSmallest(scan / 2n) : scan

const atLeastSmallest = (scan: bigint): bigint => scan < smallestScan ? smallestScan : scan

/** The sizes after a statement was answered. */
export const sizesAnswered = (self: RowSizes, request: Request, answer: Answer): RowSizes =>
  request.rows === "small"
    // After a row that is not small, the next pages are probably similar.
    ? { ...self, anySize: answer.oversized === undefined ? Math.max(0, self.anySize - 1) : anySizeStatements }
    : {
      anySize: Math.max(0, self.anySize - 1),
      measured: answer.nanos < fastNanos
        ? Math.min(mostMeasured, self.measured * 4)
        : answer.nanos > slowNanos
        ? Math.max(1, self.measured >> 1)
        : self.measured
    }

/** The page after a statement was ended by its time limit: the next one scans a quarter of its positions. */
export const timedOut = (self: PageWindow, request: Request): PageWindow => ({
  ...self,
  // Computed from the request, because the scan may reach far beyond the bound.
  scan: atLeastSmallest((request.upTo - request.after) / 4n)
})

/** The sizes after a statement was ended by its time limit: the next one measures a quarter of its rows. */
export const sizesTimedOut = (self: RowSizes, request: Request): RowSizes =>
  request.rows === "small" ? self : { ...self, measured: Math.max(1, request.limit >> 2) }
