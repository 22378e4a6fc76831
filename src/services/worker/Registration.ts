/**
 * One worker's registration, from `join` to `leave`: heartbeats, ranges and reconciliation run in between. A worker
 * that is evicted registers again.
 */
import type * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import { Activity } from "../../schema/Activity.ts"
import type { GivenUp, OrchestratorError, WorkerEvicted, WorkerReplaced } from "../../schema/Errors.ts"
import * as Generation from "../../schema/Generation.ts"
import type * as Plan from "../../schema/Plan.ts"
import type { Settings } from "../../schema/Settings.ts"
import { display, livenessRules, type Registration, type WorkerState } from "../../schema/Worker.ts"
import type { CheckpointStore } from "../CheckpointStore.ts"
import type { CoordinationStore } from "../CoordinationStore.ts"
import type { EventStore } from "../EventStore.ts"
import type { Membership } from "../Membership.ts"
import type * as Projection from "../Projection.ts"
import type { Projections } from "../Projections.ts"
import type { ActivityStream } from "../telemetry/ActivityStream.ts"
import * as LogAnnotations from "../telemetry/LogAnnotations.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"
import * as Sampler from "../telemetry/Sampler.ts"
import * as Alarm from "./Alarm.ts"
import * as CarriedProjections from "./CarriedProjections.ts"
import * as Heartbeat from "./Heartbeat.ts"
import * as Planning from "./Planning.ts"
import type { RangeRunner } from "./RangeRunner.ts"
import * as Ranges from "./Ranges.ts"
import * as Reconciler from "./Reconciler.ts"
import * as Startup from "./Startup.ts"

/** What a worker is made of. */
export interface Worker {
  readonly settings: Settings
  readonly projections: ReadonlyMap<string, Projection.Any>
  /** The services of the handlers, captured when the orchestrator was built. */
  readonly captured: Context.Context<unknown>
  readonly events: EventStore["Service"]
  readonly checkpoints: CheckpointStore
  readonly membership: Membership
  readonly coordination: CoordinationStore
  readonly status: Projections["Service"]["status"]
  readonly runner: RangeRunner["Service"]
  readonly startup: Startup.Startup
  readonly retryLog: RetryLog
  readonly log: Pick<ActivityStream, "health" | "record">
  readonly state: State
}

/** The present state of a worker. Only this module and `CarriedProjections` write it. */
export interface State {
  /** The projections of this run, with their start positions. */
  carried: ReadonlyArray<Plan.Carried>
  /** Projections that this run has given up to workers of a newer version. */
  readonly givenUp: Map<string, GivenUp>
  /** Whether this run has been part of a generation. */
  hasStarted: boolean
  /** The annotations of the run's log lines. */
  annotations: LogAnnotations.LogAnnotations | undefined
  registration: Registration | undefined
  generation: Generation.Generation | undefined
  ranges: Ranges.Ranges | undefined
  /** Whether the registration works on its whole assignment. */
  isAssigned: boolean
  /** Set if another worker has ended the registration. */
  eviction: WorkerEvicted | WorkerReplaced | undefined
  /** Whether the worker is leaving: its ranges drain, then it unregisters. */
  isStopping: boolean
  /** Opened when this state changes, and when a range has handled all settled events. */
  readonly changed: Latch.Latch
}

export const makeState = (): State => ({
  carried: [],
  givenUp: new Map(),
  hasStarted: false,
  annotations: undefined,
  registration: undefined,
  generation: undefined,
  ranges: undefined,
  isAssigned: false,
  eviction: undefined,
  isStopping: false,
  changed: Latch.makeUnsafe(false)
})

/** Returns the activities that lead to the present state. */
export const present = (state: State): ReadonlyArray<Activity> => {
  const { generation, ranges, registration } = state
  if (registration === undefined) return []
  return [
    Activity.WorkerRegistered({ registration }),
    ...(generation === undefined ? [] : [Activity.GenerationChanged({
      generation,
      partition: Generation.partitionKey(generation, registration),
      formedByThisWorker: false,
      reasons: []
    })]),
    ...CarriedProjections.present(state),
    ...[...(ranges?.all.values() ?? [])].flatMap(({ halt, handledUpTo, held: { projection, range } }) => [
      Activity.RangeClaimed({ projection, range, position: handledUpTo }),
      ...(halt === undefined ? [] : [Activity.RangeHalted({ projection, range, halt, stack: "" })])
    ])
  ]
}

/** Pause before an evicted worker registers again. */
const registrationBackoff = Duration.millis(250)
/**
 * Time limit of unregistering. A database that does not answer must not delay the process's end; other workers detect the
 * end of the presence anyway.
 */
const leaveTimeout = Duration.seconds(5)

/** Works until it fails or is interrupted: runs one registration after another, a new one after each eviction. */
export const runRegistrations = Effect.fnUntraced(
  function*(
    worker: Worker,
    workerId: string,
    annotations: LogAnnotations.LogAnnotations
  ): Effect.fn.Return<never, OrchestratorError> {
    worker.state.annotations = annotations
    yield* worker.log.record(Activity.WorkerStarting({ workerId, projections: [...worker.projections.keys()] }))
    yield* CarriedProjections.begin(worker, workerId)
    return yield* Effect.scoped(runRegistration(worker, workerId)).pipe(
      Effect.retry({
        while: (error) => error._tag === "WorkerEvicted",
        schedule: Schedule.spaced(registrationBackoff)
      }),
      // Cannot occur, because the retry has no limit.
      Effect.catchTag("WorkerEvicted", Effect.die)
    )
  }
)

/**
 * Runs one registration. Ends with a failure, which can be `WorkerEvicted`, or by interruption. Its parts end in this
 * order, the reverse of the order in which they are added to their scopes:
 *
 * 1. the listener and the reconciler, so that no further plan is made;
 * 2. after an eviction, all ranges, which are interrupted;
 * 3. the inner scope: the subscription to wake-ups;
 * 4. the registration's scope: the ranges, which drain, then the sampler and the heartbeat, which run while they drain,
 *    then the registration (`leave`), which hands the rows over, and last what `Membership.join` has added, such as the
 *    watch on the neighbour.
 */
const runRegistration = Effect.fnUntraced(function*(
  worker: Worker,
  workerId: string
): Effect.fn.Return<never, OrchestratorError | WorkerEvicted, Scope.Scope> {
  const { log, membership, retryLog, settings, state } = worker
  LogAnnotations.setGeneration(state.annotations, undefined)
  const failed = yield* Deferred.make<never, OrchestratorError | WorkerEvicted>()
  const alarm = Alarm.make()
  const onChange = () => alarm.latch.openUnsafe()
  const registration = yield* Effect.acquireRelease(
    join(worker, workerId),
    (registration) => leave(worker, registration),
    // A worker that is interrupted while the database is unreachable must not wait for it. If the registration was
    // just created, the other workers detect the end of its presence.
    { interruptible: true }
  )
  state.registration = registration
  state.eviction = undefined
  state.isStopping = false
  yield* log.record(Activity.WorkerRegistered({ registration }))

  const heartbeat = yield* Heartbeat.make({
    membership,
    registration,
    settings,
    log,
    retryLog,
    displayed: () => display(registration, stateOf(state), state.generation),
    onChange
  })
  // Before the ranges, so that it ends after them.
  yield* heartbeat.run.pipe(
    Effect.onError((cause) => Deferred.failCause(failed, cause)),
    Effect.forkScoped
  )
  const sampler = Sampler.make({ ...worker, ...settings })
  yield* Effect.forkScoped(sampler.run)
  const ranges = state.ranges = yield* Ranges.make({
    runner: worker.runner,
    drainTimeout: settings.drainTimeout,
    onChange,
    caughtUp: state.changed,
    onFailure: (error) => Effect.asVoid(Deferred.fail(failed, error))
  })
  const reconcile = Reconciler.run({
    ...worker,
    registration,
    ranges,
    alarm,
    carried: () => CarriedProjections.current(state),
    giveUpChanged: (changed) => CarriedProjections.giveUpChanged(worker, changed),
    giveUp: (projection, error) =>
      Effect.ensuring(CarriedProjections.giveUp(worker, projection, error), Effect.sync(onChange)),
    suspended: heartbeat.suspended,
    onGeneration: (generation) => {
      state.hasStarted = true
      state.generation = generation
      LogAnnotations.setGeneration(state.annotations, generation.generationId)
      heartbeat.beatSoon()
    },
    onAssigned: (isAssigned) => {
      state.isAssigned = isAssigned
      if (isAssigned) {
        heartbeat.beatSoon()
        sampler.sampleNow()
      }
      state.changed.openUnsafe()
    }
  })
  return yield* Effect.raceAllFirst([listen(worker, registration, alarm), reconcile, Deferred.await(failed)]).pipe(
    Effect.tapError((error) =>
      Effect.suspend(() => {
        if (error._tag === "WorkerEvicted" || error._tag === "WorkerReplaced") state.eviction = error
        // Other workers claim the ranges of an evicted worker. Batches in flight are then fenced, so nothing is
        // drained.
        return state.eviction === undefined ? Effect.void : ranges.closeAll("now")
      })
    ),
    Effect.scoped,
    // Before the ranges drain, so that the heartbeat displays it.
    Effect.ensuring(Effect.suspend(() => {
      state.isStopping = true
      if (state.eviction !== undefined) return Effect.void
      heartbeat.beatSoon()
      return log.record(Activity.WorkerStopping({ registration }))
    }))
  )
})

/** Registers the worker. A registration after an eviction omits the projections that this run has given up. */
const join = ({ membership, projections, settings, startup, state }: Worker, workerId: string) =>
  membership.join({
    replicaSet: settings.replicaSet,
    workerId,
    projections: [...projections.keys()].filter((name) => !state.givenUp.has(name)),
    rules: livenessRules(settings)
  }).pipe(
    startup.step(Startup.registering)
  )

const stateOf = ({ generation, isAssigned, isStopping }: State): WorkerState =>
  isStopping ? "stopping" : isAssigned ? "running" : generation === undefined ? "pending" : "ready"

/** Wakes the reconciler for every wake-up that other workers cause. */
const listen = Effect.fnUntraced(
  function*({ membership }: Worker, registration: Registration, alarm: Alarm.Alarm) {
    const wakeUps = yield* membership.wakeUps(registration)
    while (true) {
      yield* Queue.take(wakeUps)
      Alarm.ringFromOutside(alarm)
    }
  }
)

/** Ends the registration after its ranges have ended. */
const leave = Effect.fnUntraced(function*(worker: Worker, registration: Registration) {
  const { log, state } = worker
  state.registration = undefined
  state.generation = undefined
  state.isAssigned = false
  const { eviction } = state
  const left = eviction === undefined
    ? Activity.WorkerLeft({ registration, formedGeneration: yield* unregister(worker, registration) })
    : Activity.WorkerEvicted({ registration, error: eviction })
  state.ranges = undefined
  yield* log.record(left)
})

/**
 * Returns whether this has formed a generation. Best effort: the other workers detect a worker that could not
 * unregister.
 */
const unregister = Effect.fnUntraced(
  function*({ coordination, log, settings, state }: Worker, registration: Registration) {
    yield* log.record(Activity.WorkerLeaving({ registration }))
    const activeKeys = new Set(state.ranges?.all.keys() ?? [])
    const answer = yield* Effect.timeoutOption(
      Planning.leave({
        coordination,
        registration,
        projections: CarriedProjections.current(state),
        activeKeys,
        settings
      }),
      leaveTimeout
    )
    if (Option.isNone(answer)) {
      yield* Effect.logWarning(
        "Timed out while unregistering; other workers will notice through missed heartbeats"
      )
    }
    return Option.getOrElse(answer, () => false)
  },
  Effect.catchCause((cause) =>
    Effect.as(
      Effect.logWarning("Could not unregister; other workers will notice through missed heartbeats", cause),
      false
    )
  )
)
