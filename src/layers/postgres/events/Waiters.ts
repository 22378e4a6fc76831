/**
 * The readers that wait for the settled position, and when the next observation is due for them: at once after an append
 * that concerns one of them, within a second after any other append, and otherwise after their poll interval, or earlier
 * while a gap is open.
 */
import * as Clock from "effect/Clock"
import * as Deferred from "effect/Deferred"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Announcement from "../../../schema/Announcement.ts"
import type { CheckpointAheadOfEvents, StoreError } from "../../../schema/Errors.ts"
import type { HashRange } from "../../../schema/HashRange.ts"

/** What a reader waits for. */
interface Wait {
  /** The position that it has passed. */
  readonly position: bigint
  readonly pollMillis: number
  /** The hashes of the aggregates for whose events it waits; absent if every append may concern it. */
  readonly range: HashRange | undefined
}

export interface Waiter extends Wait {
  readonly done: Deferred.Deferred<bigint, CheckpointAheadOfEvents | StoreError>
  /** Whether it needs an observation at once. */
  isDue: boolean
}

export interface Waiters {
  readonly isListening: () => boolean
  readonly all: Set<Waiter>
  /** Open when the next observation may be due earlier than before. */
  readonly hasChanged: Latch.Latch
  /** The last observation; undefined before the first one, and after one that failed. */
  last: Observation | undefined
  /** The appends that were announced since that observation began. */
  announced: Announcement.Announcement | undefined
  /** When a reader first waited after one of them. */
  announcedAt: number | undefined
}

/** An observation that has ended. */
interface Observation {
  /** In milliseconds of the monotonic clock, as all times here. */
  readonly endedAt: number
  readonly head: bigint
  /** How readers below the head wait; undefined if there is no gap. */
  readonly gap: GapWait | undefined
}

/** How long to wait at a gap, and the settled position for which the wait was chosen. */
export interface GapWait {
  readonly millis: number
  readonly position: bigint
}

/**
 * Appends that concern no waiting reader are observed within this time, so that the positions of other ranges stay
 * current.
 */
const unconcernedMillis = 1000

/** Pause between two observations while a gap is open: 5 ms, growing by half up to 250 ms. */
const shortestGapMillis = 5
const longestGapMillis = 250

export const nextGapWait = (previous: GapWait | undefined, position: bigint): GapWait => ({
  position,
  millis: previous === undefined || position > previous.position
    ? shortestGapMillis
    : Math.min(longestGapMillis, previous.millis * 1.5)
})

export const make = (isListening: () => boolean): Waiters => ({
  isListening,
  all: new Set(),
  hasChanged: Latch.makeUnsafe(false),
  last: undefined,
  announced: undefined,
  announcedAt: undefined
})

/** A reader begins to wait. */
export const add = (self: Waiters, wait: Wait): Waiter => {
  const waiter: Waiter = { ...wait, done: Deferred.makeUnsafe(), isDue: !isCovered(self, wait) }
  self.all.add(waiter)
  self.hasChanged.openUnsafe()
  return waiter
}

/**
 * Whether a reader that begins to wait can rely on the last observation: it covered the reader's position, and no append
 * that concerns the reader has been announced since. Otherwise a worker would observe after each of its batches, find
 * only events of other workers, read past them, and observe again. Events of writers that do not notify are found within
 * the poll interval after that observation.
 */
const isCovered = (self: Waiters, wait: Wait): boolean => {
  const { announced, isListening, last } = self
  return wait.range !== undefined && isListening() && last !== undefined &&
    (wait.position === last.head || wait.position === last.gap?.position) &&
    (announced === undefined || !isConcerned(self, wait, announced))
}

/** Any append may be the one that holds a reader back. */
const isConcerned = ({ last }: Waiters, { position, range }: Wait, announcement: Announcement.Announcement): boolean =>
  last !== undefined && position < last.head || Announcement.concerns(announcement, range)

/** Events were appended. */
export const announce = (self: Waiters, announcement: Announcement.Announcement): void => {
  const { all, announced, hasChanged } = self
  self.announced = announced === undefined ? announcement : Announcement.merge(announced, announcement)
  if (announced === undefined && all.size > 0) hasChanged.openUnsafe()
  for (const waiter of all) {
    if (!isConcerned(self, waiter, announcement)) continue
    waiter.isDue = true
    hasChanged.openUnsafe()
  }
}

/** Waits until an observation is due for a waiting reader. */
export const untilDue = Effect.fnUntraced(function*(self: Waiters) {
  while (true) {
    self.hasChanged.closeUnsafe()
    const now = yield* nowMillis
    const wait = dueAt(self, now) - now
    if (wait <= 0) return
    yield* Effect.timeoutOption(self.hasChanged.await, Math.ceil(wait))
  }
})

const nowMillis = Effect.map(Clock.monotonicTimeNanos, (nanos) => Number(nanos) / 1e6)

/** When the next observation is due, or was due; never while no reader waits. */
const dueAt = (self: Waiters, now: number): number => {
  if (self.announced !== undefined && self.all.size > 0) self.announcedAt ??= now
  let due = Infinity
  for (const waiter of self.all) due = Math.min(due, dueFor(self, waiter))
  return due
}

const dueFor = ({ announcedAt = Infinity, last }: Waiters, { isDue, pollMillis, position }: Waiter): number => {
  if (isDue || last === undefined) return 0
  const gapMillis = position < last.head ? last.gap?.millis : undefined
  return Math.min(last.endedAt + Math.min(pollMillis, gapMillis ?? Infinity), announcedAt + unconcernedMillis)
}

/**
 * An observation begins; returns the readers for which it is made. It need not include what is announced from now on.
 */
export const begin = (self: Waiters): ReadonlyArray<Waiter> => {
  const asking = [...self.all]
  for (const waiter of asking) waiter.isDue = false
  self.announced = self.announcedAt = undefined
  return asking
}

export const succeeded = (self: Waiters, head: bigint, settled: bigint): Effect.Effect<void> =>
  Effect.map(nowMillis, (endedAt) => {
    self.last = { endedAt, head, gap: head > settled ? nextGapWait(self.last?.gap, settled) : undefined }
  })

export const failed = (self: Waiters): void => {
  self.last = undefined
}
