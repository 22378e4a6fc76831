/** Where the events of a range come from: waits for settled events and reads them page by page. */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as BatchWindow from "../../schema/BatchWindow.ts"
import { CheckpointAheadOfEvents, type EventError, type StoreError } from "../../schema/Errors.ts"
import * as PartitionKey from "../../schema/PartitionKey.ts"
import { type CheckpointStore, EpochEnded, type Fenced } from "../CheckpointStore.ts"
import type { EventStore, Page, ReadOptions, ServerEpoch } from "../EventStore.ts"
import * as Feed from "./Feed.ts"
import * as Parking from "./Parking.ts"
import * as RangeState from "./RangeState.ts"
import { isRetried, type Retries } from "./Retries.ts"
import type { Startup } from "./Startup.ts"

/** What the runner has to work on next. */
type Next = Data.TaggedEnum<{
  /** The events after `handledUpTo`, possibly none. `isComplete` if the page reaches the settled position. */
  Page: { readonly page: Page; readonly isComplete: boolean }
  /** The next event cannot be received or read. */
  Unreadable: { readonly error: EventError }
  /** Progress past events that do not match must be written now. */
  ProgressDue: {}
  /** It is time to look for requests about parked events. */
  RequestsDue: {}
  Drained: {}
}>
const Next = Data.taggedEnum<Next>()
type NextPage = Extract<Next, { readonly _tag: "Page" }>

/** Errors that neither a retry nor another worker can fix. */
export type PageError = CheckpointAheadOfEvents | StoreError

export interface PageSource {
  /** Waits for the next page, for progress to become due, or for the range to drain. Retries transient failures. */
  readonly next: Effect.Effect<Next, EpochEnded | Fenced | PageError>
  /** Reads one event that was handled or parked before: a page with it, or without it if it no longer matches. */
  readonly at: (position: bigint) => Effect.Effect<Next, EpochEnded | Fenced | PageError>
}

interface Source {
  readonly job: RangeState.Job
  readonly events: EventStore["Service"]
  readonly feed: Feed.Feed
  readonly member: Feed.Member
  readonly checkpoints: CheckpointStore
  readonly startup: Startup
  readonly retries: Retries
  readonly parking: Parking.Parking
  /** When empty progress must be written; undefined while there is none. */
  dueAt: bigint | undefined
  /**
   * Whether the next empty progress is due at once. Otherwise its server epoch might end before it is written: each
   * read of an event that the client cannot decode ends one.
   */
  isUrgent: boolean
  /** A page whose events wait for more; kept while requests are executed and progress is written. */
  waiting: Waiting | undefined
  /** Failed reads since the last read that succeeded. */
  failures: number
}

/** The events of a page wait until their batch window ends. */
interface Waiting {
  readonly window: BatchWindow.BatchWindow
  readonly until: bigint
  readonly next: NextPage
}

/**
 * Progress past events that do not match the projection is written at multiples of this time. All ranges of a process
 * share these times, so that the store can write their progress with one statement.
 */
const emptyProgressNanos = 1_000_000_000n

/**
 * A step of `Startup`, shared by the runners of all ranges. Once any range has read successfully, a read that fails is
 * retried instead of failing the worker.
 */
const reading = "Reading"

export const make = (options: Omit<Source, "dueAt" | "failures" | "isUrgent" | "waiting">): PageSource => {
  const source: Source = { ...options, dueAt: undefined, isUrgent: false, waiting: undefined, failures: 0 }
  return { next: next(source), at: (position) => at(source, position) }
}

const next = Effect.fnUntraced(function*(source: Source): Effect.fn.Return<Next, EpochEnded | Fenced | PageError> {
  const { job, parking, retries } = source
  while (true) {
    const now = yield* Clock.monotonicTimeNanos
    if (!RangeState.hasUnwritten(job.state)) source.dueAt = undefined
    else source.dueAt ??= source.isUrgent ? now : (now / emptyProgressNanos + 1n) * emptyProgressNanos
    if (source.dueAt !== undefined && now >= source.dueAt) {
      // If the write fails, the progress is due again at the next multiple of `emptyProgressNanos`.
      source.dueAt = undefined
      source.isUrgent = false
      return Next.ProgressDue()
    }
    if (parking.lookAt !== undefined && now >= parking.lookAt && !job.draining.isOpen()) return Next.RequestsDue()
    if (source.waiting !== undefined) {
      const outcome = yield* waitForMore(source, source.waiting)
      if (outcome !== undefined) return outcome
      continue
    }
    const result = yield* Effect.result(Effect.raceFirst(
      // First, so that nothing starts once the range is draining.
      Effect.as(job.draining.await, Next.Drained()),
      waitAndRead(source, interruptionOfWait(source, now))
    ))
    if (result._tag === "Failure") {
      const outcome = yield* afterFailure(source, result.failure)
      if (outcome !== undefined) return outcome
      continue
    }
    if (result.success?._tag === "Drained") return result.success
    // Interrupted, because progress is due.
    if (result.success === undefined && RangeState.hasUnwritten(job.state)) continue
    if (result.success !== undefined) {
      const page = yield* received(source, result.success)
      source.waiting = yield* letWait(source, page)
      if (source.waiting === undefined) return page
      continue
    }
    source.failures = 0
    // Nothing is left to retry: the server may have lost the events of a failed batch or write.
    yield* retries.allSucceeded
  }
})

const readOptions = (
  { job: { projection, state }, parking }: Source,
  after: bigint,
  upTo: bigint,
  limits: BatchWindow.Room
): ReadOptions => ({
  after,
  upTo,
  range: state.held.range,
  filter: projection.filter,
  partitionBy: projection.partitionBy,
  ...limits,
  ...(Parking.needsHashes(parking) ? { hashes: true } : {})
})

const at = Effect.fnUntraced(function*(
  source: Source,
  position: bigint
): Effect.fn.Return<Next, EpochEnded | Fenced | PageError> {
  const { job } = source
  while (true) {
    const result = yield* Effect.result(Effect.raceFirst(
      Effect.as(job.draining.await, Next.Drained()),
      Effect.map(
        source.events.read(
          readOptions(source, position - 1n, position, { limit: 1, bytes: job.settings.batchBytes })
        ),
        (page): NextPage => ({ _tag: "Page", page, isComplete: false })
      )
    ))
    if (result._tag === "Failure") {
      const outcome = yield* afterFailure(source, result.failure)
      if (outcome !== undefined) return outcome
    } else if (result.success._tag === "Drained") return result.success
    else if (result.success.page.position >= position) return yield* received(source, result.success)
    // A position that was settled may have to be proved again, which takes as long as a writer is open.
    else yield* RangeState.sleepUnlessDraining(job, job.settings.pollInterval)
  }
})

/** A read has succeeded. */
const received = Effect.fnUntraced(function*(source: Source, next: NextPage) {
  source.failures = 0
  yield* source.retries.succeeded("Reading")
  source.startup.worked(reading)
  yield* enterEpoch(source, next.page.epoch)
  return next
})

/**
 * Waits for settled events. Passes the range to the store only if the projection has the default partition key:
 * announcements of appends contain the hashes of aggregate ids, which cannot be compared with ranges of another key.
 */
const settledBeyond = (
  { events, job: { projection, settings, state } }: Pick<Source, "events" | "job">,
  position: bigint
) =>
  events.settledBeyond(
    position,
    settings.pollInterval,
    PartitionKey.isDefault(projection.partitionBy) ? state.held.range : undefined
  )

/** Returns nothing if the wait was interrupted. A read that has begun continues to its result. */
const waitAndRead = (source: Source, interruption: Effect.Effect<void, StoreError>) => {
  const { feed, job: { state: { handledUpTo: after } }, member, parking } = source
  const settled = Effect.raceFirst(
    Effect.asSome(settledBeyond(source, after)),
    Effect.as(interruption, Option.none<bigint>())
  )
  return Effect.flatMap(settled, (settled) => {
    if (Option.isNone(settled)) return Effect.succeed(undefined)
    const upTo = settled.value
    return Effect.map(
      Feed.read(feed, member, { after, upTo, hashes: Parking.needsHashes(parking) }),
      (page): NextPage => ({ _tag: "Page", page, isComplete: page.position >= upTo })
    )
  })
}

/** Lets the events of a page wait for more, if the projection has a batch window. */
const letWait = Effect.fnUntraced(function*({ job: { projection: { handler } } }: Source, next: NextPage) {
  const window = handler._tag === "Batch" ? handler.window : undefined
  if (window === undefined || next.page.events.length === 0) return undefined
  const until = (yield* Clock.monotonicTimeNanos) + Duration.toNanosUnsafe(Duration.fromInputUnsafe(window.time))
  return { window, until, next } satisfies Waiting
})

/**
 * Returns the page whose events wait, once its batch window has ended or it does not reach the settled position. Returns
 * nothing if it waits on after it was extended, or until requests about parked events are executed, or if it is invalid.
 */
const waitForMore = Effect.fnUntraced(function*(source: Source, waiting: Waiting) {
  const { job: { draining, settings, state }, parking: { lookAt } } = source
  const { next, until, window } = waiting
  source.waiting = undefined
  // The epoch of the page has ended meanwhile.
  if (next.page.epoch !== state.epoch) return undefined
  const room = next.isComplete ? BatchWindow.room(window, settings, next.page.events) : undefined
  if (room === undefined || (yield* Clock.monotonicTimeNanos) >= until) return next
  const end = lookAt === undefined || until < lookAt ? until : lookAt
  const longer = yield* Effect.raceFirst(
    Effect.as(draining.await, Next.Drained()),
    extended(source, next, window, room, end)
  )
  if (longer._tag === "Drained") return longer
  source.waiting = { ...waiting, next: longer }
  return undefined
})

/**
 * Returns the page with the events that follow it until then. It is not complete, and so does not wait longer, if an
 * operation of the store fails or the next event has no room: the next read encounters the failure or the event again,
 * after the events of the page are handled.
 */
const extended = Effect.fnUntraced(function*(
  source: Source,
  next: NextPage,
  window: BatchWindow.BatchWindow,
  room: BatchWindow.Room,
  until: bigint
): Effect.fn.Return<NextPage, EpochEnded> {
  const { page } = next
  const upTo = yield* Effect.result(awaitRoomFilled(source, page, window, room, until))
  if (upTo._tag === "Failure") return { ...next, isComplete: false }
  if (upTo.success === page.position) return next
  const result = yield* Effect.result(source.events.read(readOptions(source, page.position, upTo.success, room)))
  if (result._tag === "Failure") return { ...next, isComplete: false }
  const more = result.success
  if (more.epoch !== page.epoch) return yield* new EpochEnded()
  // A read returns an event of any size if it is the first one.
  if (!BatchWindow.hasRoom(room, more.events)) return { ...next, isComplete: false }
  const { epoch, position } = more
  return {
    _tag: "Page",
    page: {
      events: [...page.events, ...more.events],
      position,
      epoch,
      ...(page.hashes === undefined || more.hashes === undefined ? {} : { hashes: [...page.hashes, ...more.hashes] })
    },
    isComplete: position >= upTo.success
  }
})

/** Returns the settled position once so many positions follow the page that its room may be filled, or at the end. */
const awaitRoomFilled = Effect.fnUntraced(function*(
  source: Pick<Source, "events" | "job">,
  { position }: Page,
  { bytes }: BatchWindow.BatchWindow,
  { limit }: BatchWindow.Room,
  until: bigint
) {
  let upTo = position
  while (true) {
    const left = until - (yield* Clock.monotonicTimeNanos)
    if (left <= 0n) return upTo
    const settled = yield* Effect.raceFirst(
      Effect.asSome(settledBeyond(source, upTo)),
      Effect.as(Effect.sleep(Duration.nanos(left)), Option.none<bigint>())
    )
    if (Option.isNone(settled)) return upTo
    upTo = settled.value
    // The size of the events is unknown before they are read.
    if (bytes !== undefined || upTo - position >= BigInt(limit)) return upTo
  }
})

const interruptionOfWait = ({ dueAt, events, job, parking: { lookAt }, retries }: Source, now: bigint) => {
  const until = [dueAt, lookAt].reduce((a, b) => a === undefined || (b !== undefined && b < a) ? b : a)
  const wait = until === undefined ? Duration.times(job.settings.pollInterval, 2) : Duration.nanos(until - now)
  if (dueAt !== undefined) return Effect.sleep(wait)
  if (!retries.haveFailed()) return until === undefined ? Effect.never : Effect.sleep(wait)
  // If no event arrives after a failure, this read shows that the database works again.
  return Effect.andThen(Effect.sleep(wait), Effect.asVoid(events.headPosition))
}

/** Records the epoch of a read. Unwritten progress of another epoch is invalid, and so is a read from its position. */
const enterEpoch = (source: Source, epoch: ServerEpoch | undefined): Effect.Effect<void, EpochEnded> =>
  Effect.suspend(() => {
    const { state } = source.job
    if (RangeState.hasUnwritten(state) && state.epoch !== epoch) {
      source.isUrgent = true
      return Effect.fail(new EpochEnded())
    }
    state.epoch = epoch
    return Effect.void
  })

/** Returns what the runner has to do, or nothing if the read must be repeated. */
const afterFailure = Effect.fnUntraced(function*(
  source: Source,
  failure: CheckpointAheadOfEvents | EventError | StoreError
): Effect.fn.Return<Next | undefined, EpochEnded | Fenced | PageError> {
  const { job, retries, startup } = source
  switch (failure._tag) {
    case "EventTooLarge":
    case "EventUnreadable":
      source.failures = 0
      yield* retries.succeeded("Reading")
      yield* enterEpoch(source, failure.epoch)
      return Next.Unreadable({ error: failure })
    case "CheckpointAheadOfEvents": {
      // A position that exists only in memory is dropped; it does not end the worker.
      if (RangeState.hasUnwritten(job.state)) return yield* new EpochEnded()
      if (!(yield* confirmRow(source))) return Next.Drained()
      const { lastPosition, position } = failure
      return yield* new CheckpointAheadOfEvents({ projection: job.projection.name, position, lastPosition })
    }
    case "StoreError":
      if (failure.reason._tag === "UnsupportedDatabase" || startup.isFatal(reading, failure)) return yield* failure
  }
  source.failures++
  yield* retries.failed("Reading", source.failures, failure)
  yield* retries.backOff(source.failures, failure)
  return undefined
})

/**
 * Fails with `Fenced` unless the row is still at the position that this worker has written. A server that has lost
 * events may have lost the progress, too. Returns false if the range drained before the row could be read.
 */
const confirmRow = Effect.fnUntraced(function*({ checkpoints, job, retries }: Source) {
  const { held, writtenUpTo } = job.state
  for (let attempt = 1;; attempt++) {
    const result = yield* Effect.result(checkpoints.advance(held, { from: writtenUpTo, to: writtenUpTo }))
    if (result._tag === "Success") {
      yield* retries.succeeded("Progress")
      return true
    }
    if (!isRetried(result.failure)) return yield* result.failure
    yield* retries.failed("Progress", attempt, result.failure)
    yield* retries.backOff(attempt, result.failure)
    if (job.draining.isOpen()) return false
  }
})
