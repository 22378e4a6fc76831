/**
 * The reconciler: one worker's loop that compares the ranges it should process with the ranges it processes, and
 * corrects the difference. It is level-triggered: a notification, a poll and the worker's own start all trigger the
 * same pass, so a lost notification costs one interval between polls and nothing else. The loop never waits for a range
 * to end: a range that has closed wakes the loop.
 */
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import { Activity, type ChangeReason } from "../../schema/Activity.ts"
import * as Checkpoint from "../../schema/Checkpoint.ts"
import {
  CoordinationTimeout,
  type EventVersionTooNew,
  type SelectionChanged,
  type StoreError,
  type WorkerReplaced
} from "../../schema/Errors.ts"
import * as Generation from "../../schema/Generation.ts"
import type * as HashRange from "../../schema/HashRange.ts"
import * as Plan from "../../schema/Plan.ts"
import * as RangePlan from "../../schema/RangePlan.ts"
import type { Settings } from "../../schema/Settings.ts"
import type * as Worker from "../../schema/Worker.ts"
import type { CoordinationStore } from "../CoordinationStore.ts"
import type { Membership } from "../Membership.ts"
import type * as Projection from "../Projection.ts"
import type { ActivityStream } from "../telemetry/ActivityStream.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"
import * as Alarm from "./Alarm.ts"
import * as LongHandlers from "./LongHandlers.ts"
import * as Merging from "./Merging.ts"
import * as Planning from "./Planning.ts"
import type { Ranges } from "./Ranges.ts"
import type { RangeState } from "./RangeState.ts"
import type { Startup } from "./Startup.ts"

/** The dependencies and callbacks of a reconciler. */
export interface Options {
  readonly registration: Worker.Registration
  readonly settings: Settings
  readonly projections: ReadonlyMap<string, Projection.Any>
  readonly carried: () => ReadonlyArray<Plan.Carried>
  /**
   * Gives up the projection whose filter or partition key has changed. Fails if the worker has not been part of a
   * generation yet.
   */
  readonly giveUpChanged: (failure: SelectionChanged) => Effect.Effect<void, SelectionChanged>
  /** Called by a runner; see `RangeState.Job`. */
  readonly giveUp: (projection: string, error: EventVersionTooNew) => Effect.Effect<void>
  readonly captured: Context.Context<unknown>
  readonly coordination: CoordinationStore
  readonly membership: Membership
  readonly ranges: Ranges
  readonly log: Pick<ActivityStream, "record">
  readonly retryLog: RetryLog
  readonly alarm: Alarm.Alarm
  /** Returns whether the worker is suspended; while it is, no range may run. */
  readonly suspended: () => boolean
  readonly startup: Startup
  readonly onGeneration: (generation: Generation.Generation) => void
  /** Called with whether the worker processes all of its assignment. */
  readonly onAssigned: (assigned: boolean) => void
}

/** The errors that end a reconciler. */
type ReconcilerError = CoordinationTimeout | Plan.PlanError | StoreError | WorkerReplaced

/** Pause before a pass is retried after a store error. */
const storeBackoff = Duration.millis(250)
/** A step of `Startup`. */
const coordinating = "Coordination"
/** Time limit of the query that distinguishes workers that left from workers that were lost. */
const lookupTimeout = Duration.millis(250)

/** The state of a reconciler between passes. Times are in nanoseconds of the monotonic clock. */
interface State {
  /** When the current pass began; 0 before the first one. */
  passBeganAt: bigint
  /** The newest generation that this worker has read, when it first read it, and the one that it replaced. */
  generation: Generation.Generation | undefined
  generationReadAt: bigint
  previous: Generation.Generation | undefined
  /** Whether the worker has processed all of its assignment in that generation. */
  hasReachedAssignment: boolean
  /** Keys (`Checkpoint.key`) of the rows that the worker owned after its last plan. */
  ownedKeys: ReadonlySet<string>
  /**
   * The time from which the wait for the assignment counts; undefined while the worker is suspended or the database is
   * unavailable, because that time does not count.
   */
  waitingSince: bigint | undefined
  readonly merging: Merging.Merging
  readonly longHandlers: LongHandlers.LongHandlers
}

/** Runs until the registration has ended, the assignment cannot be reached, or a permanent failure occurs. */
export const run = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<never, ReconcilerError> {
  const startedAt = yield* Clock.monotonicTimeNanos
  const state: State = {
    passBeganAt: 0n,
    generation: undefined,
    generationReadAt: startedAt,
    previous: undefined,
    hasReachedAssignment: false,
    ownedKeys: new Set(),
    waitingSince: startedAt,
    merging: Merging.make(startedAt),
    longHandlers: new WeakMap()
  }
  while (true) {
    yield* Alarm.letBurstPass(options.alarm, state.passBeganAt)
    state.passBeganAt = yield* Clock.monotonicTimeNanos
    yield* LongHandlers.report(state.longHandlers, options.ranges, options.log, state.passBeganAt)
    yield* options.suspended() ? suspend(options, state) : step(options, state)
  }
})

/** A pass of a suspended worker: ends all ranges and waits. */
const suspend = Effect.fnUntraced(function*({ alarm, ranges }: Options, state: State) {
  state.waitingSince = undefined
  yield* Effect.forEach([...ranges.all.keys()], (key) => ranges.close(key, "now"), { discard: true })
  yield* alarm.latch.await
})

/**
 * One pass: decide, follow the generation, close, open, report, and wait for a change.
 *
 * A merge takes several passes. The end of one pass closes adjacent ranges (`Merging.closeAdjacent`). While they drain,
 * the following passes open no range of their projection (`merging`). Once all have ended, their rows are no longer
 * active, so the plan merges them, and `openOwned` opens the merged range. A range that does not end in time
 * (`Merging.patienceMillis`) cancels this: the others are opened again as they were.
 */
const step = Effect.fnUntraced(function*(options: Options, state: State) {
  const activeKeys: ReadonlySet<string> = new Set(options.ranges.all.keys())
  Merging.forgetEnded(state.merging, activeKeys, state.passBeganAt)
  const decided = yield* decide(options, state, activeKeys)
  if (Option.isNone(decided)) return
  const plan = decided.value

  yield* followGeneration(options, state, plan)
  const merging = Merging.projections(state.merging, options.ranges)
  const shares = sharesOf(options, state)
  yield* closeLostAndUnassigned(options, state, plan, shares)
  yield* openOwned(options, plan, { activeKeys, merging, shares })

  // A range that is closing still belongs to the old assignment, although its row may be in order.
  if (plan.isComplete && merging.size === 0 && !isClosingAny(options)) yield* reportAssignment(options, state)
  if (state.hasReachedAssignment) {
    const canMerge = (left: Checkpoint.Held, right: Checkpoint.Held) =>
      isInPart(shares, { ...left, range: { start: left.range.start, end: right.range.end } })
    yield* Merging.closeAdjacent(state.merging, options.ranges, state.passBeganAt, canMerge)
  } else yield* failWhenLate(options, state)
  yield* Alarm.wait(options.alarm, {
    longestMillis: Math.min(yield* pollMillis(options), Merging.patienceMillis(state.merging)),
    recheckMillis: plan.recheckAfterMillis
  })
})

/**
 * The interval between polls. While LISTEN is active, a poll only finds changes whose notification was lost or discarded,
 * and those of another replica set that has processed one of the worker's projections.
 */
const pollMillis = ({ membership, settings: { heartbeatInterval, pollInterval } }: Options) =>
  Effect.map(
    membership.connections,
    ({ isListening }) => Duration.toMillis(isListening ? heartbeatInterval : pollInterval)
  )

/** Returns the current plan, or none after a store error that is retried or after a projection was given up. */
const decide = (
  options: Options,
  state: State,
  activeKeys: ReadonlySet<string>
): Effect.Effect<Option.Option<Plan.Plan>, Plan.PlanError | StoreError | WorkerReplaced> =>
  Planning.makeAndApply({
    ...options,
    projections: options.carried(),
    activeKeys,
    ownedKeys: state.ownedKeys
  }).pipe(
    Effect.tap(({ ownedRows }) => {
      state.ownedKeys = new Set(ownedRows.map(Checkpoint.key))
      options.startup.worked(coordinating)
      state.waitingSince ??= state.passBeganAt
      return options.retryLog.succeeded(coordinating)
    }),
    Effect.asSome,
    // Turns `WorkerEvicted` into `WorkerReplaced` where that is the reason: the store only detects that the registration
    // has ended, the heartbeat detects whether another registration has replaced it.
    Effect.tapErrorTag(
      "WorkerEvicted",
      () => Effect.catchTag(options.membership.heartbeat(options.registration), "StoreError", () => Effect.void)
    ),
    Effect.catchTags({
      FilterChanged: (failure) => Effect.as(options.giveUpChanged(failure), Option.none()),
      PartitionKeyChanged: (failure) => Effect.as(options.giveUpChanged(failure), Option.none()),
      StoreError: (failure) => backOff(options, state, failure)
    })
  )

const backOff = Effect.fnUntraced(function*({ retryLog, startup }: Options, state: State, failure: StoreError) {
  if (startup.isFatal(coordinating, failure)) return yield* failure
  state.waitingSince = undefined
  yield* retryLog.failed(coordinating, failure.message)
  yield* Effect.sleep(storeBackoff)
  return Option.none()
})

/** Records the generation, if this worker has not read it before. */
const followGeneration = Effect.fnUntraced(function*(
  options: Options,
  state: State,
  { form, generation }: Plan.Plan
) {
  if (generation === undefined) return
  if (state.generation !== undefined && Generation.equals(state.generation, generation)) return
  const { log, membership, onAssigned, onGeneration, registration } = options
  state.previous = state.generation
  state.generation = generation
  state.generationReadAt = state.waitingSince = state.passBeganAt
  state.hasReachedAssignment = false
  onAssigned(false)
  onGeneration(generation)
  yield* membership.watch(registration, generation)
  const partition = Generation.partitionKey(generation, registration)
  const reasons = state.previous === undefined ? [] : yield* reasonsFor(options, state.previous, generation)
  const formedByThisWorker = form !== undefined
  yield* log.record(Activity.GenerationChanged({ generation, partition, formedByThisWorker, reasons }))
})

/**
 * Returns why the generation differs. The query's time limit is short, because ranges wait for it; without an answer, all
 * missing members count as having left.
 */
const reasonsFor = Effect.fnUntraced(function*(
  { membership, registration }: Options,
  previous: Generation.Generation,
  next: Generation.Generation
) {
  const { gone, joined } = Generation.difference(previous, next)
  // The row of a member that registered again under its id does not record how the earlier registration ended.
  const missing = gone.filter((member) => !joined.some(({ workerId }) => workerId === member.workerId))
  const departed = missing.length === 0 ? Option.none() : yield* membership.departed(registration, missing).pipe(
    Effect.timeoutOption(lookupTimeout),
    Effect.catch(() => Effect.succeedNone)
  )
  const left = missing.filter(({ incarnation }) => Option.isNone(departed) || departed.value.has(incarnation))
  const reasons: ReadonlyArray<ChangeReason> = [
    ...(joined.length > 0 ? ["WorkerJoined" as const] : []),
    ...(left.length > 0 ? ["WorkerLeft" as const] : []),
    ...(left.length < missing.length ? ["WorkerLost" as const] : [])
  ]
  return reasons.length > 0 ? reasons : ["ProjectionsChanged" as const]
})

/** The parts of the worker's share of each projection. */
type Shares = ReadonlyMap<string, ReadonlyArray<HashRange.HashRange>>

/** Computed once in a pass, because a worker can have thousands of projections. */
const sharesOf = ({ carried, registration }: Options, { generation }: State): Shares =>
  new Map(carried().map((projection) => [projection.name, Plan.parts(generation, projection, registration)]))

/** Whether a row lies within one part of the worker's share. */
const isInPart = (shares: Shares, { projection, range }: Pick<Checkpoint.Held, "projection" | "range">): boolean =>
  RangePlan.isInPart(shares.get(projection) ?? [], range)

/** Ends the ranges whose rows this worker no longer owns, and drains those that are not in one part of its share. */
const closeLostAndUnassigned = Effect.fnUntraced(function*(
  options: Options,
  state: State,
  plan: Plan.Plan,
  shares: Shares
) {
  const rows = new Map(plan.ownedRows.map((row) => [Checkpoint.key(row), row]))
  for (const [key, range] of options.ranges.all) {
    const row = rows.get(key)
    if (row === undefined || isBehind(row, range, state.passBeganAt) || !Checkpoint.isHeldAs(row, range.held)) {
      // Without a row, the range is lost. With a row that is behind, the server has lost commits. With another fence,
      // the row was claimed again. In each case a batch in flight cannot commit.
      yield* options.ranges.close(key, "now")
    } else if (!isInPart(shares, row)) {
      yield* options.ranges.close(key, "drain")
    }
  }
})

/**
 * Whether the row is behind the range. A server that lost its last commits may have lost the halt or the progress; an
 * idle range would not detect it.
 */
const isBehind = (row: Checkpoint.Held, range: Readonly<RangeState>, passBeganAt: bigint): boolean =>
  (range.halt !== undefined && row.halt === undefined && range.haltedAt < passBeganAt) ||
  (row.position < range.writtenUpTo && range.writtenAt < passBeganAt)

/** Opens the ranges of the rows that this worker owns in its share. */
const openOwned = Effect.fnUntraced(function*(
  options: Options,
  { ownedRows, withoutParked }: Plan.Plan,
  { activeKeys, merging, shares }: {
    readonly activeKeys: ReadonlySet<string>
    readonly shares: Shares
    /** Projections whose rows are about to be merged. */
    readonly merging: ReadonlySet<string>
  }
) {
  const { captured, giveUp, log: { record }, projections, ranges, registration, settings } = options
  for (const held of ownedRows) {
    const key = Checkpoint.key(held)
    const projection = projections.get(held.projection)
    if (projection === undefined || !isInPart(shares, held) || merging.has(held.projection)) continue
    // A runner that has ended since the plan was made may have moved its row. Its end triggers another pass at once.
    if (activeKeys.has(key) || ranges.all.has(key)) continue
    yield* ranges.open(held, {
      settings,
      projection,
      registration,
      hasNoParked: withoutParked.has(key),
      captured,
      record,
      giveUp: (error) => giveUp(held.projection, error)
    })
  }
})

const isClosingAny = ({ ranges }: Options): boolean => [...ranges.all.values()].some((range) => range.closing)

const reportAssignment = Effect.fnUntraced(function*(
  { log, onAssigned, registration }: Options,
  state: State
) {
  const { generation, hasReachedAssignment, previous } = state
  if (generation === undefined || hasReachedAssignment) return
  state.hasReachedAssignment = true
  const after = Duration.nanos((yield* Clock.monotonicTimeNanos) - state.generationReadAt)
  const partition = Generation.partitionKey(generation, registration)
  const isLeftAlone = generation.members.length === 1 && (previous?.members.length ?? 1) > 1
  yield* log.record(Activity.AssignmentReached({ generation, partition, after, isLeftAlone }))
  onAssigned(true)
})

const failWhenLate = Effect.fnUntraced(function*(
  { ranges, registration, settings }: Options,
  { generation, waitingSince }: State
) {
  if (generation === undefined || waitingSince === undefined) return
  const waited = Duration.nanos((yield* Clock.monotonicTimeNanos) - waitingSince)
  const closing = [...ranges.all.values()].filter((range) => range.closing).map(({ held }) => held.projection)
  // Workers that block others fail first, so that workers that only wait do not have to fail.
  const patience = closing.length > 0 ? settings.coordinationTimeout : Duration.times(settings.coordinationTimeout, 2)
  if (!Duration.isGreaterThan(waited, patience)) return
  return yield* new CoordinationTimeout({
    replicaSet: settings.replicaSet,
    workerId: registration.workerId,
    generationId: generation.generationId,
    timeout: Duration.format(patience),
    waitingFor: closing.length > 0
      ? `the handler of ${[...new Set(closing)].join(", ")} does not stop`
      : "ranges assigned to it are still held by another worker, or missing from the table"
  })
})
