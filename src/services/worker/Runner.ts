/** The runner of one range: what its steps share. */
import type * as Array from "effect/Array"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { Activity } from "../../schema/Activity.ts"
import type * as BatchPolicy from "../../schema/BatchPolicy.ts"
import type { Event } from "../../schema/Event.ts"
import type { CheckpointStore, EpochEnded } from "../CheckpointStore.ts"
import type { EventStore, Page } from "../EventStore.ts"
import type { ParkedEvents } from "../ParkedEvents.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"
import type * as Batch from "./Batch.ts"
import type * as BlockingHandlers from "./BlockingHandlers.ts"
import type * as FailingEvent from "./FailingEvent.ts"
import type * as Feed from "./Feed.ts"
import type * as HaltReason from "./HaltReason.ts"
import type * as PageSource from "./PageSource.ts"
import type * as Parking from "./Parking.ts"
import type * as RangeState from "./RangeState.ts"
import type * as Retries from "./Retries.ts"
import type { Startup } from "./Startup.ts"

/** What the runners of a process share. */
export interface Shared {
  readonly events: EventStore["Service"]
  readonly feed: Feed.Feed
  readonly checkpoints: CheckpointStore
  readonly parkedEvents: ParkedEvents
  readonly startup: Startup
  readonly retryLog: RetryLog
  readonly blocking: BlockingHandlers.BlockingHandlers
  /** The time until which no further conflict warning is logged for a projection, in any of its ranges. */
  readonly conflictsQuietUntil: Map<string, bigint>
}

/** One runner. */
export interface Runner {
  readonly shared: Shared
  readonly job: RangeState.Job
  readonly retries: Retries.Retries
  readonly pages: PageSource.PageSource
  readonly batches: Batch.Environment
  readonly parking: Parking.Parking
  policy: BatchPolicy.State
  /** Failures since the row was last written, except those of batches, which `policy` counts. */
  failures: number
  /** `never`: not caught up since the runner last began with the row. `before`: it was, but events have followed. */
  caughtUp: "never" | "before" | "now"
  /** The parked event whose retry has not ended; undefined if there is none. */
  retried: Retried | undefined
  /** The event whose handler has failed since the last commit; undefined if none has. */
  failing: FailingEvent.FailingEvent | undefined
}

/** A parked event that is retried, as requested at this time. */
export interface Retried {
  readonly eventId: string
  readonly requestedAt: Date | undefined
  /** The state of its batches. */
  readonly policy: BatchPolicy.State
  /**
   * Why the retry has failed. Until this is recorded, the handler is not called again: it may crash the server, which
   * then cannot record it. A request that is made again calls it again.
   */
  readonly reason: HaltReason.HaltReason | undefined
}

/** The events of a page that are still to be handled. */
export interface Rest {
  readonly page: Page
  readonly events: Array.NonEmptyReadonlyArray<Event>
  /** Returns the hash of an event's key, if the page has hashes. */
  readonly hashOf: (event: Event) => number
}

/** The range's position after the first `count` of the events. */
export const endOf = ({ events, page }: Rest, count: number): bigint =>
  count === events.length ? page.position : events[count - 1]!.globalPosition

/** Reports a failure, and waits before the operation is repeated. */
export const retry = Effect.fnUntraced(
  function*({ retries }: Runner, operation: Retries.Operation, attempt: number, failure: EpochEnded | Retries.Failure) {
    yield* retries.failed(operation, attempt, failure)
    yield* retries.backOff(attempt, failure)
  }
)

/** Reports that a batch has committed, in which the handler has handled `events` events. */
export const committed = Effect.fnUntraced(function*(runner: Runner, events: number, tookNanos: bigint) {
  const { job, retries } = runner
  const { handledUpTo: position, held: { projection, range } } = job.state
  runner.failures = 0
  if (runner.failing !== undefined && runner.failing.event.globalPosition <= position) runner.failing = undefined
  yield* retries.allSucceeded
  if (events === 0) return
  yield* job.record(
    Activity.BatchCommitted({ projection, range, events, position, took: Duration.nanos(tookNanos) })
  )
})
