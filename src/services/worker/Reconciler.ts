/**
 * The reconciler: one worker's loop that compares the ranges it should hold with the ranges it works on, and corrects
 * the difference. The loop never waits for a range to end: a range that has closed wakes the loop.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import { Activity, type ChangeReason } from "../../schema/Activity.ts"
import * as Checkpoint from "../../schema/Checkpoint.ts"
import {
  CoordinationTimeout,
  type FilterChanged,
  isStoreError,
  type ProjectionInOtherReplicaSet,
  type StoreError,
  type WorkerEvicted,
  type WorkerReplaced
} from "../../schema/Errors.ts"
import * as Generation from "../../schema/Generation.ts"
import * as HashRange from "../../schema/HashRange.ts"
import type * as Plan from "../../schema/Plan.ts"
import type { Settings } from "../../schema/Settings.ts"
import type { Registration } from "../../schema/Worker.ts"
import type { Membership } from "../Membership.ts"
import type * as Projection from "../Projection.ts"
import type { ActivityStream } from "../telemetry/ActivityStream.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"
import type { Coordinator } from "./Coordinator.ts"
import type { Ranges } from "./Ranges.ts"
import type { RangeState } from "./RangeState.ts"
import type { Startup } from "./Startup.ts"

/**
 * The dependencies and callbacks of a reconciler.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options {
  readonly registration: Registration
  readonly settings: Settings
  readonly projections: ReadonlyMap<string, Projection.Any>
  readonly carried: () => ReadonlyArray<Plan.Carried>
  /** Gives up the projection whose filter has changed. Fails if the worker has not been part of a generation yet. */
  readonly giveUp: (failure: FilterChanged) => Effect.Effect<void, FilterChanged>
  readonly captured: Context.Context<unknown>
  readonly coordinator: Coordinator["Service"]
  readonly membership: Membership["Service"]
  readonly ranges: Ranges
  readonly log: ActivityStream
  readonly retryLog: RetryLog
  readonly alarm: Alarm
  /** Returns whether the worker is suspended; while it is, no range may run. */
  readonly suspended: () => boolean
  readonly startup: Startup
  readonly onGeneration: (generation: Generation.Generation) => void
  /** Called with whether the worker works on all of its assignment. */
  readonly onAssigned: (assigned: boolean) => void
}

/**
 * The errors that end a reconciler.
 *
 * @category errors
 * @since 0.1.0
 */
export type Ending =
  | CoordinationTimeout
  | FilterChanged
  | ProjectionInOtherReplicaSet
  | StoreError
  | WorkerEvicted
  | WorkerReplaced

/**
 * The signal that wakes a reconciler.
 *
 * @category models
 * @since 0.1.0
 */
export interface Alarm {
  readonly latch: Latch.Latch
  /** Whether an external wake-up is pending; these arrive in bursts. */
  fromOutside: boolean
}

/**
 * @category constructors
 * @since 0.1.0
 */
export const makeAlarm = (): Alarm => ({ latch: Latch.makeUnsafe(false), fromOutside: false })

/** External wake-ups within this time are handled by one reconciliation. */
const burst = Duration.millis(20)
/** Pause before a reconciliation is retried after a store error. */
const storeBackoff = Duration.millis(250)
/** A step of `Startup`. */
const coordinating = "Coordination"
/** Maximum interval to which repeated rechecks back off. */
const longestRecheckMillis = 250
/** Time limit of the query that distinguishes workers that left from workers that were lost. */
const longestLookup = Duration.millis(250)
/** A range is not merged if its batch has been open for this long, because the batch may stay open much longer. */
const slowBatchNanos = 500_000_000n
/** Minimum time between merges of adjacent ranges, because a merge pauses the ranges for a moment. */
const mergeInterval = Duration.seconds(5)
/** Maximum time for which closed ranges wait for the other ranges of a merge to close. */
const mergePatience = Duration.millis(250)

/**
 * Runs until the registration has ended, the assignment cannot be reached, or a permanent failure occurs.
 *
 * @category running
 * @since 0.1.0
 */
export const run = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<never, Ending> {
  const { alarm, coordinator, log, membership, ranges, registration, settings } = options
  let generation: Generation.Generation | undefined
  /** When this worker first read the newest generation. */
  let seenAt = yield* Clock.monotonicTimeNanos
  /**
   * The time from which the wait for the assignment counts; undefined while the worker is suspended or the database is
   * unavailable, because that time does not count.
   */
  let waitingSince: bigint | undefined = seenAt
  let reached = false
  /** Whether the newest generation replaced another one under this registration. */
  let isReconfigured = false
  let rechecks = 0
  let lookedAt = 0n
  let mergedAt = seenAt
  /** Keys of ranges that were closed to be merged. */
  let merging: ReadonlySet<string> = new Set()

  const letBurstPass = Effect.gen(function*() {
    const sinceLook = Duration.nanos((yield* Clock.monotonicTimeNanos) - lookedAt)
    if (alarm.fromOutside && lookedAt > 0n && Duration.isLessThan(sinceLook, burst)) {
      yield* Effect.sleep(Duration.subtract(burst, sinceLook))
    }
    alarm.fromOutside = false
  })

  /** Returns the current decision, or none after a store error that is retried or after a projection was given up. */
  const decide = Effect.gen(function*() {
    const busy = new Set(ranges.all.keys())
    // The ranges of a merge stay closed until the last of them has ended, because the decision merges only rows that
    // are not busy. `mergePatience` limits the wait for a slow handler.
    merging = Duration.isGreaterThan(Duration.nanos(lookedAt - mergedAt), mergePatience)
      ? new Set()
      : new Set([...merging].filter((key) => busy.has(key)))
    const result = yield* Effect.result(
      coordinator.reconcile({ registration, projections: options.carried(), busy }, settings)
    )
    if (result._tag === "Success") {
      options.startup.worked(coordinating)
      yield* options.retryLog.succeeded(coordinating)
      waitingSince ??= lookedAt
      return Option.some({ ...result.success, busy })
    }
    const failure = result.failure
    if (failure._tag === "WorkerEvicted") {
      // A decision only detects that the registration has ended; the heartbeat detects whether it was replaced.
      yield* Effect.catchIf(membership.heartbeat(registration), isStoreError, () => Effect.void)
    }
    if (failure._tag === "FilterChanged") {
      yield* options.giveUp(failure)
      return Option.none()
    }
    if (!isStoreError(failure)) return yield* failure
    if (options.startup.isFatal(coordinating, failure)) return yield* failure
    waitingSince = undefined
    yield* options.retryLog.failed(coordinating, failure.message)
    yield* Effect.sleep(storeBackoff)
    return Option.none()
  })

  /** Returns why the next generation differs. The query's time limit is short, because ranges wait for it. */
  const reasonsFor = Effect.fnUntraced(function*(previous: Generation.Generation, next: Generation.Generation) {
    const { gone, joined } = Generation.difference(previous, next)
    // The row of a member that registered again under its id does not record how the earlier registration ended.
    const missing = gone.filter((member) => !joined.some(({ workerId }) => workerId === member.workerId))
    const departed = missing.length === 0 ? Option.none() : yield* membership.departed(registration, missing).pipe(
      Effect.timeoutOption(longestLookup),
      Effect.catch(() => Effect.succeedNone)
    )
    const left = missing.filter(({ incarnation }) => Option.isNone(departed) || departed.value.has(incarnation))
    const lost = missing.filter((member) => !left.includes(member))
    const reasons: ReadonlyArray<ChangeReason> = [
      ...(joined.length > 0 ? ["WorkerJoined" as const] : []),
      ...(left.length > 0 ? ["WorkerLeft" as const] : []),
      ...(lost.length > 0 ? ["WorkerLost" as const] : [])
    ]
    return reasons.length > 0 ? reasons : ["ProjectionsChanged" as const]
  })

  const switchTo = Effect.fnUntraced(function*(next: Generation.Generation, formed: boolean) {
    const previous = generation
    seenAt = waitingSince = lookedAt
    reached = false
    isReconfigured = previous !== undefined
    generation = next
    options.onAssigned(false)
    options.onGeneration(next)
    const partition = Generation.partitionKey(next, registration)
    yield* membership.watch(registration, next)
    const reasons = previous === undefined ? [] : yield* reasonsFor(previous, next)
    yield* log.record(Activity.GenerationChanged({ generation: next, partition, formedByThisWorker: formed, reasons }))
  })

  const shareOf = (projection: string): HashRange.HashRange | undefined =>
    generation === undefined ? undefined : Generation.share(generation, projection, registration)

  const isMine = (row: Checkpoint.Held): boolean => {
    const share = shareOf(row.projection)
    return share !== undefined && HashRange.contains(share, row.range)
  }

  const closeWhatIsNotMine = Effect.fnUntraced(function*(decision: Plan.Plan) {
    const rows = new Map(decision.held.map((row) => [Checkpoint.key(row), row]))
    for (const [key, range] of ranges.all) {
      const row = rows.get(key)
      if (row === undefined || isBehind(row, range, lookedAt) || !Checkpoint.isHeldAs(row, range.held)) {
        // The row no longer matches this range, so a batch in flight cannot commit.
        yield* ranges.close(key, "now")
      } else if (!isMine(row)) {
        yield* ranges.close(key, "drain")
      }
    }
  })

  const openWhatIsMine = Effect.fnUntraced(function*(
    decision: Plan.Plan,
    paused: ReadonlySet<string | undefined>,
    busy: ReadonlySet<string>
  ) {
    for (const held of decision.held) {
      // A runner that has ended in the meantime may have moved its row since the decision read it. Its end triggers
      // another reconciliation at once.
      if (busy.has(Checkpoint.key(held))) continue
      const projection = options.projections.get(held.projection)
      if (
        projection === undefined || !isMine(held) || paused.has(held.projection) || ranges.all.has(Checkpoint.key(held))
      ) continue
      yield* ranges.open(held, { settings, projection, captured: options.captured, record: log.record })
    }
  })

  /** Records the worker's state, for operators, if the record differs from the actual state. */
  const report = Effect.fnUntraced(function*(
    { activates, recorded }: Plan.Plan,
    current: Generation.Generation
  ) {
    const state = reached ? "running" : "ready"
    if (recorded?.state === state && recorded.generationId === current.generationId && !activates) return
    yield* membership.report(registration, { state, generation: current }).pipe(
      // The next reconciliation writes it again.
      Effect.catchCause((cause) => Effect.logDebug("The worker's state could not be recorded", cause))
    )
  })

  const arrive = Effect.fnUntraced(function*(current: Generation.Generation) {
    reached = true
    const after = Duration.nanos((yield* Clock.monotonicTimeNanos) - seenAt)
    const partition = Generation.partitionKey(current, registration)
    yield* log.record(Activity.AssignmentReached({ generation: current, partition, after, isReconfigured }))
    options.onAssigned(true)
  })

  const failWhenLate = Effect.fnUntraced(function*(current: Generation.Generation) {
    if (waitingSince === undefined) return
    const waited = Duration.nanos((yield* Clock.monotonicTimeNanos) - waitingSince)
    const closing = [...ranges.all.values()].filter((range) => range.closing).map(({ held }) => held.projection)
    // Workers that block others fail first, so that workers that only wait do not have to fail.
    const patience = closing.length > 0
      ? settings.coordinationTimeout
      : Duration.times(settings.coordinationTimeout, 2)
    if (!Duration.isGreaterThan(waited, patience)) return
    return yield* new CoordinationTimeout({
      replicaSet: settings.replicaSet,
      workerId: registration.workerId,
      generationId: current.generationId,
      timeout: Duration.format(patience),
      waitingFor: closing.length > 0
        ? `the handler of ${[...new Set(closing)].join(", ")} does not stop`
        : "ranges assigned to it are still held by another worker, or missing from the table"
    })
  })

  /**
   * Closes adjacent ranges of a projection that are at the same position, so that the next decision merges them. This
   * undoes the fragmentation caused by many generation switches.
   */
  const mergeNeighbours = Effect.gen(function*() {
    if (!Duration.isGreaterThan(Duration.nanos(lookedAt - mergedAt), mergeInterval)) return
    mergedAt = lookedAt
    // A slow batch is not ended for a merge, because its work would have to start again.
    const idle = [...ranges.all.values()].filter(({ batchSince, closing, halt }) =>
      !closing && halt === undefined && (batchSince === undefined || lookedAt - batchSince < slowBatchNanos)
    )
    const keys = new Set<string>()
    for (const left of idle) {
      const right = idle.find(({ handledUpTo, held }) =>
        held.projection === left.held.projection && held.range.start === left.held.range.end &&
        handledUpTo === left.handledUpTo
      )
      if (right !== undefined) keys.add(Checkpoint.key(left.held)).add(Checkpoint.key(right.held))
    }
    yield* Effect.forEach(keys, (key) => ranges.close(key, "drain"), { discard: true })
    merging = keys
  })

  /** Waits for a wake-up, or until time alone may have changed the decision; at most `pollInterval`. */
  const wait = Effect.fnUntraced(function*(recheck: number | undefined) {
    // Backs off while a row stays locked, for example by a slow handler or a frozen worker.
    rechecks = recheck === undefined || recheck > longestRecheckMillis ? 0 : rechecks + 1
    const patience = Math.min(
      Duration.toMillis(settings.pollInterval),
      recheck === undefined
        ? Infinity
        : rechecks === 0
        ? recheck
        : Math.min(recheck * 2 ** (rechecks - 1), longestRecheckMillis),
      merging.size === 0 ? Infinity : Duration.toMillis(mergePatience) + 1
    )
    yield* Effect.timeoutOption(alarm.latch.await, patience)
  })

  while (true) {
    yield* letBurstPass
    alarm.latch.closeUnsafe()
    lookedAt = yield* Clock.monotonicTimeNanos

    if (options.suspended()) {
      waitingSince = undefined
      yield* Effect.forEach([...ranges.all.keys()], (key) => ranges.close(key, "now"), { discard: true })
      yield* alarm.latch.await
      continue
    }
    const outcome = yield* decide
    if (Option.isNone(outcome)) continue
    const { busy, decision, formed } = outcome.value
    if (decision.evict.length > 0) {
      const workers = decision.evict.map(({ incarnation, workerId }) => ({ workerId, incarnation }))
      yield* log.record(Activity.DeadWorkersEvicted({ workers }))
    }
    const current = decision.generation
    const switched = current !== undefined && (generation === undefined || !Generation.equals(current, generation))
    if (switched) yield* switchTo(current, formed)

    const paused = new Set([...merging].map((key) => ranges.all.get(key)?.held.projection))
    yield* closeWhatIsNotMine(decision)
    yield* openWhatIsMine(decision, paused, busy)

    if (current !== undefined) {
      const settled = decision.settled && paused.size === 0 &&
        [...ranges.all.values()].every((range) => !range.closing)
      if (settled && !reached) yield* arrive(current)
      // After the ranges, so that no range waits for a record that only operators read.
      yield* report(decision, current)
      if (!reached) yield* failWhenLate(current)
    }
    if (reached) yield* mergeNeighbours
    yield* wait(decision.recheckAfterMillis)
  }
})

/**
 * Returns whether the row is behind the range. A server that lost its last commits may have lost the halt or the
 * progress; an idle range would not detect it.
 */
const isBehind = (row: Checkpoint.Held, range: Readonly<RangeState>, lookedAt: bigint): boolean =>
  (range.halt !== undefined && row.halt === undefined && range.haltedAt < lookedAt) ||
  (row.position < range.writtenUpTo && range.writtenAt < lookedAt)
