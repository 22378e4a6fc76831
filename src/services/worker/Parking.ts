/**
 * The parked keys of a range, as its runner has read them. Events of these keys are not handled but queue behind the
 * parked ones. The counts change only after the commit of the batch that has changed the table.
 *
 * Most ranges have no parked events. The claim or the hand-over reports this, so that their runners need no statement to
 * find out. The report is valid in every server epoch until this runner changes the table: a server that has not lost the
 * new fence has not lost any earlier commit. Keys that were read are valid only in the server epoch of the read, because a
 * later epoch may lack the latest changes of this worker; they are read again for a page of another epoch.
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Data from "effect/Data"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import type { StoreError } from "../../schema/Errors.ts"
import type { Event } from "../../schema/Event.ts"
import * as FailurePolicy from "../../schema/FailurePolicy.ts"
import type { EpochEnded, Fenced } from "../CheckpointStore.ts"
import type { Page, ServerEpoch } from "../EventStore.ts"
import type { ParkedEvents } from "../ParkedEvents.ts"
import type * as Projection from "../Projection.ts"
import type * as Attempt from "./Attempt.ts"
import type * as RangeState from "./RangeState.ts"
import * as Retries from "./Retries.ts"
import type { Startup } from "./Startup.ts"

export interface Parking {
  readonly store: ParkedEvents
  readonly job: RangeState.Job
  /** Whether the projection may park events. */
  readonly mayPark: boolean
  /** The number of parked events by the hash of their key; undefined if it has to be read. */
  counts: Map<number, number> | undefined
  /** The hashes of the keys of the events that the current batch has parked; counted after its commit. */
  inserted: ReadonlyArray<number>
  /** Whether `counts` comes from the claim or the hand-over of the range, not from a read. */
  isFromClaim: boolean
  /** The server epoch of the last read before `counts` was read; undefined if the runner had not read anything. */
  epoch: ServerEpoch | undefined
  /** When to look for requests; undefined if no request is possible. */
  lookAt: bigint | undefined
}

interface Dependencies {
  readonly retries: Retries.Retries
  readonly shared: { readonly startup: Startup }
}

/** A step of `Startup`, shared by the runners of all ranges. */
const reading = "Reading parked events"

export const make = (store: ParkedEvents, job: RangeState.Job): Parking => ({
  store,
  job,
  mayPark: FailurePolicy.mayPark(job.projection.onFailure),
  counts: job.hasNoParked ? new Map() : undefined,
  inserted: [],
  isFromClaim: job.hasNoParked,
  epoch: undefined,
  lookAt: undefined
})

/** Whether pages need the hashes of their events' keys. */
export const needsHashes = ({ counts, mayPark }: Parking): boolean => mayPark || hasAny(counts)

const hasAny = (counts: Parking["counts"]): boolean => counts !== undefined && counts.size > 0

/**
 * Reads the keys unless they are known. Retries until the store answers or the range drains. Fails if the range is not
 * held, or the given server epoch has ended; also if no range has ever read parked events and the failure is permanent
 * (a missing privilege).
 */
export const load = Effect.fnUntraced(function*(
  parking: Parking,
  { retries, shared: { startup } }: Dependencies,
  epoch?: ServerEpoch
): Effect.fn.Return<void, EpochEnded | Fenced | StoreError> {
  const { job, store } = parking
  for (let attempt = 1; parking.counts === undefined && !job.draining.isOpen(); attempt++) {
    const result = yield* Effect.result(store.keys(job.state.held, epoch))
    if (result._tag === "Success") {
      startup.worked(reading)
      yield* retries.succeeded("Reading parked events")
      parking.counts = new Map(result.success)
      parking.epoch = job.state.epoch
      // Requests may have been left while the range had no owner.
      parking.lookAt = result.success.size === 0 ? undefined : yield* Clock.monotonicTimeNanos
      return
    }
    if (!Retries.isRetried(result.failure) || startup.isFatal(reading, result.failure)) return yield* result.failure
    yield* retries.failed("Reading parked events", attempt, result.failure)
    yield* retries.backOff(attempt, result.failure)
  }
})

/** Discards the counts, because the server may have lost changes or a commit has an unknown outcome. */
export const forget = (parking: Parking): void => {
  parking.counts = undefined
  parking.isFromClaim = false
}

/**
 * Reads the keys again if the page is of another epoch: batches of the page commit only if its epoch has not ended when
 * the keys are read. Returns false if the page has to be read again, because it lacks the hashes that are needed.
 */
export const prepare = Effect.fnUntraced(function*(
  parking: Parking,
  page: Page,
  dependencies: Dependencies
): Effect.fn.Return<boolean, EpochEnded | Fenced | StoreError> {
  if (!parking.isFromClaim && parking.epoch !== page.epoch) forget(parking)
  if (parking.counts === undefined) yield* load(parking, dependencies, page.epoch)
  parking.epoch = page.epoch
  parking.isFromClaim = false
  return parking.counts !== undefined && (page.hashes !== undefined || !needsHashes(parking))
})

/** Returns the function from an event of the page to the hash of its key. The page has hashes. */
export const hashesOf = (page: Page): (event: Event) => number => {
  let hashes: Map<bigint, number> | undefined
  return ({ globalPosition }) => {
    hashes ??= new Map(page.events.map((event, index) => [event.globalPosition, page.hashes![index]!]))
    return hashes.get(globalPosition)!
  }
}

/** Whether an event has to queue behind a parked event of its key. */
export const isQueued = ({ counts }: Parking, hashOf: (event: Event) => number, event: Event): boolean =>
  hasAny(counts) && counts!.has(hashOf(event))

/** What a batch does with those of its events that have to queue; undefined if none of them has to. */
export const queue = (
  parking: Parking,
  { hashOf, page }: { readonly page: Page; readonly hashOf: (event: Event) => number },
  events: ReadonlyArray<Event>
): Attempt.Instead | undefined => {
  const { counts } = parking
  // Most pages contain no event of a parked key, and looking up the hash of each event costs several times as much.
  if (!hasAny(counts) || !page.hashes!.some((hash) => counts!.has(hash))) return undefined
  const queued = new Set(events.filter((event) => isQueued(parking, hashOf, event)))
  return queued.size === 0 ? undefined : {
    of: (event) => queued.has(event),
    run: (events) => park(parking, events)
  }
}

/** Parks events in the transaction of a batch. */
export const park = Effect.fnUntraced(function*(
  parking: Parking,
  events: ReadonlyArray<Event>,
  failure?: Parameters<ParkedEvents["park"]>[1]["failure"]
): Effect.fn.Return<void, unknown> {
  const { job: { projection, state }, store } = parking
  parking.inserted = events.length === 0
    ? []
    : yield* store.park(state.held, { events, failure, ...parkingOf(projection) })
})

const parkingOf = ({ parkingLimits, partitionBy }: Projection.Any) => ({ limits: parkingLimits, partitionBy })

/** Records that a batch that has parked events has committed. */
export const added = Effect.fnUntraced(function*(parking: Parking) {
  const counts = parking.counts!
  for (const hash of parking.inserted) counts.set(hash, (counts.get(hash) ?? 0) + 1)
  if (counts.size > 0) parking.lookAt ??= yield* nextLook(parking)
})

/** Records that a batch that has removed a parked event has committed. */
export const removed = (parking: Parking, hash: number): void => {
  const left = (parking.counts?.get(hash) ?? 1) - 1
  if (left > 0) parking.counts?.set(hash, left)
  else parking.counts?.delete(hash)
  if (!hasAny(parking.counts)) parking.lookAt = undefined
}

/** Records that all requests that were found have been executed. */
export const looked = Effect.fnUntraced(function*(parking: Parking) {
  parking.lookAt = hasAny(parking.counts) || parking.counts === undefined ? yield* nextLook(parking) : undefined
})

/** Looks for requests before the next page, because some are known, for example those that have ended a halt. */
export const lookNow = (parking: Parking): void => {
  parking.lookAt = hasAny(parking.counts) ? 0n : undefined
}

/** The request that a batch executes is no longer in the table: it was withdrawn or replaced, or its row was removed. */
export class Withdrawn extends Data.TaggedError("Withdrawn") {
  override get message(): string {
    return "The request about the event was withdrawn"
  }
}

export const isWithdrawn = (failure: Retries.Failure): boolean =>
  failure._tag === "HandlerFailure" &&
  failure.cause.reasons.filter(Cause.isFailReason).some(({ error }) => error instanceof Withdrawn)

const nextLook = ({ job }: Parking) =>
  Effect.map(Clock.monotonicTimeNanos, (now) => now + Duration.toNanosUnsafe(job.settings.pollInterval))
