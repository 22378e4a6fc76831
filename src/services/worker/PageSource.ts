/** Where the events of a range come from: waits for settled events and reads them page by page. */
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { CheckpointAheadOfEvents, type EventError, type StoreError } from "../../schema/Errors.ts"
import { type CheckpointStore, EpochEnded, type Fenced } from "../CheckpointStore.ts"
import type { EventStore, Page, ServerEpoch } from "../EventStore.ts"
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
  Drained: {}
}>
const Next = Data.taggedEnum<Next>()

/** Errors that neither a retry nor another worker can fix. */
export type PageError = CheckpointAheadOfEvents | StoreError

export interface PageSource {
  /** Waits for the next page, for progress to become due, or for the range to drain. Retries transient failures. */
  readonly next: Effect.Effect<Next, EpochEnded | Fenced | PageError>
}

interface Source {
  readonly job: RangeState.Job
  readonly events: EventStore["Service"]
  readonly checkpoints: CheckpointStore
  readonly startup: Startup
  readonly retries: Retries
  /** When empty progress must be written; undefined while there is none. */
  dueAt: bigint | undefined
  /**
   * Whether the next empty progress is due at once. Otherwise its server epoch might end before it is written: each
   * read of an event that the client cannot decode ends one.
   */
  isUrgent: boolean
  /** Failed reads since the last read that succeeded. */
  failures: number
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

export const make = (options: Omit<Source, "dueAt" | "failures" | "isUrgent">): PageSource => ({
  next: next({ ...options, dueAt: undefined, isUrgent: false, failures: 0 })
})

const next = Effect.fnUntraced(function*(source: Source): Effect.fn.Return<Next, EpochEnded | Fenced | PageError> {
  const { job, retries, startup } = source
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
    source.failures = 0
    if (result.success !== undefined) {
      yield* retries.succeeded("Reading")
      startup.worked(reading)
      yield* enterEpoch(source, result.success.page.epoch)
      return result.success
    }
    // Nothing is left to retry: the server may have lost the events of a failed batch or write.
    yield* retries.allSucceeded
  }
})

/** Returns nothing if the wait was interrupted. A read that has begun continues to its result. */
const waitAndRead = ({ events, job }: Source, interruption: Effect.Effect<void, StoreError>) => {
  const { projection, settings, state } = job
  const settled = Effect.raceFirst(
    Effect.asSome(events.settledBeyond(state.handledUpTo, settings.pollInterval)),
    Effect.as(interruption, Option.none<bigint>())
  )
  return Effect.flatMap(settled, (upTo) =>
    Option.isNone(upTo) ? Effect.succeed(undefined) : Effect.map(
      events.read({
        after: state.handledUpTo,
        upTo: upTo.value,
        range: state.held.range,
        filter: projection.filter,
        partitionBy: projection.partitionBy,
        limit: settings.batchSize,
        bytes: settings.batchBytes
      }),
      (page) => Next.Page({ page, isComplete: page.position >= upTo.value })
    ))
}

const interruptionOfWait = ({ dueAt, events, job, retries }: Source, now: bigint) => {
  if (dueAt !== undefined) return Effect.sleep(Duration.nanos(dueAt - now))
  if (!retries.haveFailed()) return Effect.never
  // If no event arrives after a failure, this read shows that the database works again.
  return Effect.andThen(Effect.sleep(Duration.times(job.settings.pollInterval, 2)), Effect.asVoid(events.headPosition))
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
  yield* retries.backOff(source.failures)
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
    yield* retries.backOff(attempt)
    if (job.draining.isOpen()) return false
  }
})
