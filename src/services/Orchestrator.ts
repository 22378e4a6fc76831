/**
 * The orchestrator: one worker of a replica set. It registers, keeps its registration alive, and works on the ranges
 * that the newest generation gives it, until it is interrupted; then it drains, gives everything up and unregisters.
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Deferred from "effect/Deferred"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Latch from "effect/Latch"
import * as Layer from "effect/Layer"
import * as Metric from "effect/Metric"
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import * as Record from "effect/Record"
import * as Runtime from "effect/Runtime"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import { Activity } from "../schema/Activity.ts"
import * as Checkpoint from "../schema/Checkpoint.ts"
import type * as Decision from "../schema/Decision.ts"
import {
  AlreadyRunning,
  CoordinationTimeout,
  DuplicateProjection,
  type ForeignSqlClient,
  InvalidSettings,
  type OrchestratorError,
  ProjectionHalted,
  type StoreError,
  type WorkerEvicted
} from "../schema/Errors.ts"
import * as Generation from "../schema/Generation.ts"
import * as HashRange from "../schema/HashRange.ts"
import * as Settings from "../schema/Settings.ts"
import * as Uuid from "../schema/Uuid.ts"
import type { Registration } from "../schema/Worker.ts"
import * as ActivityLog from "./ActivityLog.ts"
import { within } from "./Bounded.ts"
import { CheckpointStore } from "./CheckpointStore.ts"
import * as Coordinator from "./Coordinator.ts"
import type { Decisions } from "./Decisions.ts"
import { EventStore } from "./EventStore.ts"
import { Membership } from "./Membership.ts"
import * as Metrics from "./Metrics.ts"
import * as Projection from "./Projection.ts"
import * as ProjectionRunner from "./ProjectionRunner.ts"
import * as Ranges from "./Ranges.ts"

/**
 * @category services
 * @since 0.1.0
 */
export class Orchestrator extends Context.Service<Orchestrator, {
  /** Works until it is interrupted, then leaves gracefully. Fails with what another attempt will not mend. */
  readonly run: Effect.Effect<never, OrchestratorError>
  /**
   * Works until every projection has handled all events that were visible when it began, then leaves. A halted range
   * fails it with `ProjectionHalted`.
   */
  readonly catchUp: Effect.Effect<void, OrchestratorError>
  /** What this worker did and saw, beginning with the present state. A slow subscriber is told how much it missed. */
  readonly activity: Stream.Stream<Activity>
}>()("pupsourcing-orchestrator/services/Orchestrator") {}

/**
 * The stores that an orchestrator works on: `PostgresStores.layer` or `MemoryStores.layer`.
 *
 * @category models
 * @since 0.1.0
 */
export type Stores = EventStore | CheckpointStore | Membership | Decisions

/**
 * @category options
 * @since 0.1.0
 */
export interface Options<P extends ReadonlyArray<Projection.Any>> extends Settings.Input {
  readonly projections: P
}

/**
 * What building an orchestrator can fail with.
 *
 * @category errors
 * @since 0.1.0
 */
export type SetupError = DuplicateProjection | ForeignSqlClient | InvalidSettings

/**
 * Runs the orchestrator in the context: `NodeRuntime.runMain(Orchestrator.run.pipe(Effect.provide(Live)))`.
 *
 * @category running
 * @since 0.1.0
 */
export const run: Effect.Effect<never, OrchestratorError, Orchestrator> = Effect.flatMap(
  Orchestrator,
  (orchestrator) => orchestrator.run
)

/**
 * Catches up with what is there and leaves; see the service's `catchUp`.
 *
 * @category running
 * @since 0.1.0
 */
export const catchUp: Effect.Effect<void, OrchestratorError, Orchestrator> = Effect.flatMap(
  Orchestrator,
  (orchestrator) => orchestrator.catchUp
)

const checkProjections = (
  projections: ReadonlyArray<Projection.Any>
): Effect.Effect<void, DuplicateProjection | InvalidSettings> => {
  const invalid = (problem: string) => Effect.fail(new InvalidSettings({ setting: "projections", problem }))
  if (projections.length === 0) return invalid("There is none. Give at least one Projection.make(…).")
  const names = new Set<string>()
  for (const { filter, name, startFrom } of projections) {
    if (name.trim() === "") return invalid("A projection's name must not be empty: progress is kept by name.")
    if (name.length > 200 || name.includes("\u0000")) {
      return invalid(`The name "${name.slice(0, 40)}…" must have at most 200 characters and no NUL.`)
    }
    if (typeof startFrom === "bigint" && startFrom < 0n) {
      return invalid(`startFrom of "${name}" is ${startFrom}. Give "beginning", "now" or a position of 0n or more.`)
    }
    for (const [list, values] of Object.entries(filter)) {
      if (Array.isArray(values) && values.length === 0) {
        return invalid(`${list} of "${name}" is empty, so that no event would match. Leave it out to let all through.`)
      }
    }
    if (names.has(name)) return Effect.fail(new DuplicateProjection({ projection: name }))
    names.add(name)
  }
  return Effect.void
}

/** Wake-ups from outside that come in a burst are answered by one look. */
const wakeUpWindow = Duration.millis(20)
/** Neighbouring ranges are joined at most this often: it interrupts both for a moment. */
const joinInterval = Duration.seconds(5)
/** The first of them to end stands still for the others at most this long. */
const joinPatience = Duration.millis(250)
/** Pause before the stores are asked again after they failed. */
const storeBackoff = Duration.millis(250)
/** While the database is away every so many failures are logged: five seconds' worth. */
const failuresPerLogLine = 20
/** A decision that only waits for time to pass is tried again no less often than this. */
const longestRecheckMillis = 250
/** A worker that could not renew for this part of `staleWorkerTimeout` stops working before others take over. */
const renewalMargin = 0.8
/** Unregistering is a courtesy; a database that does not answer must not hold up the end of the process. */
const leaveTimeout = Duration.seconds(5)

/**
 * Makes an orchestrator as a value. Needs the services of the projections' handlers and, while it exists, a scope.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*<const P extends ReadonlyArray<Projection.Any>>(
  options: Options<P>
): Effect.fn.Return<Orchestrator["Service"], SetupError, Stores | Projection.Services<P[number]>> {
  yield* checkProjections(options.projections)
  const settings = yield* Effect.fromResult(Settings.make(options))
  const events = yield* EventStore
  const checkpoints = yield* CheckpointStore
  const membership = yield* Membership
  const coordinator = yield* Coordinator.make
  const runner = yield* ProjectionRunner.make
  const captured = yield* Effect.context<Projection.Services<P[number]>>()
  yield* checkpoints.checkClient(captured as Context.Context<never>, settings.replicaSet)

  const { replicaSet } = settings
  const projections = new Map(options.projections.map((projection) => [projection.name, projection]))

  /** What a new subscriber of the activity is told first. */
  let registration: Registration | undefined
  let generation: Generation.Generation | undefined
  let ranges: Ranges.Ranges | undefined
  const log = ActivityLog.make(replicaSet, () => [
    ...(registration === undefined ? [] : [Activity.WorkerRegistered({ registration })]),
    ...(registration === undefined || generation === undefined ? [] : [Activity.GenerationFormed({
      generation,
      partition: Generation.partitionKey(generation, registration),
      byThisWorker: false
    })]),
    ...[...(ranges?.all.values() ?? [])].flatMap(({ halt, held: { projection, range }, seen }) => [
      Activity.RangeTaken({ projection, range, position: seen }),
      ...(halt === undefined ? [] : [Activity.RangeHalted({ projection, range, halt })])
    ])
  ])

  const startPositions = Effect.fnUntraced(function*() {
    const now = options.projections.some(({ startFrom }) => startFrom === "now")
      ? yield* events.settledPosition
      : 0n
    return options.projections.map((projection): Decision.Carried => ({
      name: projection.name,
      filter: Projection.filterText(projection),
      startPosition: projection.startFrom === "now"
        ? now
        : projection.startFrom === "beginning"
        ? 0n
        : projection.startFrom,
      acceptFilterChange: projection.acceptFilterChange
    }))
  })

  let joinedBefore = false
  let coordinatedBefore = false
  /** The present registration works on all of its assignment. */
  let assigned = false

  /** One registration's life. Ends by failing, `WorkerEvicted` included, or by interruption. */
  const life = Effect.fnUntraced(function*(
    workerId: string,
    carried: ReadonlyArray<Decision.Carried>,
    onSeen: () => void
  ): Effect.fn.Return<never, OrchestratorError | WorkerEvicted, Scope.Scope> {
    const failed = yield* Deferred.make<never, OrchestratorError | WorkerEvicted>()
    const wake = Latch.makeUnsafe(false)
    let wokenFromOutside = false
    let suspended = false
    let evicted = false

    const busy = () => new Set(ranges?.all.keys() ?? [])
    const leave = (self: Registration) =>
      Effect.gen(function*() {
        registration = undefined
        generation = undefined
        assigned = false
        if (!evicted) {
          yield* Effect.logInfo("Unregistering worker...")
          yield* within(
            coordinator.leave({ registration: self, projections: carried, busy: busy() }, settings),
            leaveTimeout
          ).pipe(
            Effect.flatMap(Option.match({
              onNone: () => Effect.logWarning("The database did not answer in time: the others notice by themselves"),
              onSome: () => Effect.void
            })),
            // The others find out by themselves; there is nothing more that a leaving worker can do.
            Effect.catchCause((cause) => Effect.logWarning("The worker could not unregister; the others notice", cause))
          )
        }
        ranges = undefined
        yield* log.record(
          evicted ? Activity.WorkerEvicted({ registration: self }) : Activity.WorkerLeft({ registration: self })
        )
      })
    const self = yield* Effect.acquireRelease(
      membership.join({
        replicaSet,
        workerId,
        projections: [...projections.keys()],
        rules: Coordinator.livenessRules(settings)
      }).pipe(
        // At the first start a database that cannot be used is reported; later it is waited for.
        Effect.tapError((error) =>
          joinedBefore && isStoreError(error)
            ? Effect.logWarning(`Registering failed, it is tried again: ${error.message}`)
            : Effect.void
        ),
        Effect.retry({ while: (error) => joinedBefore && isStoreError(error), schedule: Schedule.spaced(storeBackoff) })
      ),
      leave,
      // A worker that is told to stop while the database is away must not wait for it. Should it be interrupted when the
      // registration has just been made, the end of its presence tells the others.
      { interruptible: true }
    )
    joinedBefore = true
    registration = self
    yield* Effect.logInfo(`Worker registered: ${workerId}`)
    yield* log.record(Activity.WorkerRegistered({ registration: self }))

    let renewedAt = yield* Clock.monotonicTimeNanos
    const renew = Effect.gen(function*() {
      const interval = settings.heartbeatInterval
      let failures = 0
      yield* Effect.sleep(interval)
      while (true) {
        const attemptedAt = yield* Clock.monotonicTimeNanos
        const result = yield* Effect.result(membership.heartbeat(self))
        if (result._tag === "Success") {
          failures = 0
          renewedAt = attemptedAt
          yield* Metric.update(
            Metric.withAttributes(Metrics.heartbeatLatencySeconds, { replica_set: replicaSet }),
            Number((yield* Clock.monotonicTimeNanos) - attemptedAt) / 1_000_000_000
          )
          if (suspended) {
            suspended = false
            yield* Effect.logInfo("Heartbeats are renewed again: the worker resumes")
            yield* log.record(Activity.Resumed())
            wake.openUnsafe()
          }
        } else if (result.failure._tag === "WorkerEvicted" || result.failure._tag === "WorkerReplaced") {
          return yield* result.failure
        } else {
          failures++
          if (failures === 1) yield* Effect.logWarning(`Heartbeat failed, it is tried again: ${result.failure.message}`)
        }
        yield* Effect.sleep(failures === 0 ? interval : Duration.min(interval, Duration.seconds(1)))
      }
    })

    /** Beside the attempts, because one that gets no answer ends late. */
    const suspendWhenOverdue = Effect.gen(function*() {
      const margin = Duration.times(settings.staleWorkerTimeout, renewalMargin)
      while (true) {
        const silent = Duration.nanos((yield* Clock.monotonicTimeNanos) - renewedAt)
        const overdue = Duration.isGreaterThan(silent, margin)
        if (overdue && !suspended) {
          suspended = true
          yield* Effect.logWarning(
            "The worker could not renew its heartbeat in time: it stops its projections until it can, since others may take over"
          )
          yield* log.record(Activity.Suspended())
          wake.openUnsafe()
        }
        yield* Effect.sleep(overdue ? margin : Duration.sum(Duration.subtract(margin, silent), Duration.millis(1)))
      }
    })
    // In the scope before the ranges, so that a worker that drains is still heard of.
    yield* Effect.raceFirst(renew, suspendWhenOverdue).pipe(
      Effect.onError((cause) => Deferred.failCause(failed, cause)),
      Effect.forkScoped
    )

    const open = yield* Ranges.make({
      runner,
      drainTimeout: settings.drainTimeout,
      onChange: () => wake.openUnsafe(),
      onSeen,
      onFailure: (error) => Effect.asVoid(Deferred.fail(failed, error))
    })
    ranges = open

    const listen = Effect.gen(function*() {
      const wakeUps = yield* membership.wakeUps(self)
      while (true) {
        yield* Queue.take(wakeUps)
        wokenFromOutside = true
        wake.openUnsafe()
      }
    })

    const reconcile = Effect.gen(function*() {
      let seenAt = yield* Clock.monotonicTimeNanos
      /** Since when the assignment could have been reached: time without the database does not count. */
      let waitingSince: bigint | undefined = seenAt
      let failures = 0
      let rechecks = 0
      let reached = false
      let leftAlone = false
      let joinedAt = seenAt
      let joining: ReadonlySet<string> = new Set()
      let lookedAt = 0n
      while (true) {
        const now = yield* Clock.monotonicTimeNanos
        const sinceLook = Duration.nanos(now - lookedAt)
        if (wokenFromOutside && lookedAt > 0n && Duration.isLessThan(sinceLook, wakeUpWindow)) {
          yield* Effect.sleep(Duration.subtract(wakeUpWindow, sinceLook))
        }
        wokenFromOutside = false
        wake.closeUnsafe()
        lookedAt = yield* Clock.monotonicTimeNanos

        if (suspended) {
          waitingSince = undefined
          yield* Effect.forEach([...open.all.keys()], (key) => open.close(key, "now"), { discard: true })
          yield* wake.await
          continue
        }

        const working = busy()
        // Until the last of the ranges that are to become one has ended, none is opened again; and it must have ended
        // before the decision that makes them one. A slow handler is not waited for.
        joining = Duration.isGreaterThan(Duration.nanos(lookedAt - joinedAt), joinPatience)
          ? new Set()
          : new Set([...joining].filter((key) => working.has(key)))
        const paused = new Set([...joining].map((key) => open.all.get(key)?.held.projection))
        const result = yield* Effect.result(
          coordinator.reconcile({ registration: self, projections: carried, busy: working }, settings)
        )
        if (result._tag === "Failure") {
          if (result.failure._tag === "WorkerEvicted") {
            // A decision sees only that the registration is gone; whether a successor has the id, the heartbeat says.
            yield* Effect.catchIf(membership.heartbeat(self), isStoreError, () => Effect.void)
          }
          if (!isStoreError(result.failure)) return yield* result.failure
          // What has never worked will not mend itself: a missing right or table.
          if (!coordinatedBefore && result.failure._tag === "StoreFailure") return yield* result.failure
          waitingSince = undefined
          if (failures++ % failuresPerLogLine === 0) {
            yield* Effect.logWarning(`Coordination failed, it is tried again: ${result.failure.message}`)
          }
          yield* Effect.sleep(storeBackoff)
          continue
        }
        failures = 0
        coordinatedBefore = true
        waitingSince ??= lookedAt
        const { decision, formed } = result.success
        const current = decision.generation
        const switched = current !== undefined && current.generationId !== generation?.generationId
        if (switched) {
          seenAt = waitingSince = lookedAt
          reached = assigned = false
          yield* switchTo(self, generation, current, formed)
          leftAlone = generation !== undefined
          generation = current
        }

        const shareOf = (projection: string) =>
          current === undefined ? undefined : Generation.share(current, projection, self)
        const rows = new Map(decision.held.map((row) => [Checkpoint.key(row), row]))

        for (const [key, range] of open.all) {
          const row = rows.get(key)
          if (row === undefined || !sameHold(row, range.held)) {
            // Somebody else's by now: what is in flight cannot commit any more.
            yield* open.close(key, "now")
            continue
          }
          const share = shareOf(row.projection)
          if (share === undefined || !HashRange.contains(share, row.range)) yield* open.close(key, "drain")
        }
        for (const held of decision.held) {
          const share = shareOf(held.projection)
          if (share === undefined || !HashRange.contains(share, held.range)) continue
          const projection = projections.get(held.projection)
          if (projection === undefined || paused.has(held.projection) || open.all.has(Checkpoint.key(held))) continue
          yield* open.open({
            held,
            settings,
            projection,
            captured: captured as Context.Context<unknown>,
            record: log.record
          })
        }

        const settled = decision.settled && current !== undefined && paused.size === 0 &&
          [...open.all.values()].every((range) => !range.closing)
        // After the ranges: nobody's work waits for what people read.
        if (switched && !settled) yield* report(self, "ready", current)
        if (settled && !reached) {
          reached = assigned = true
          const afterMillis = Number((yield* Clock.monotonicTimeNanos) - seenAt) / 1_000_000
          const partition = Generation.partitionKey(current, self)
          yield* Effect.logInfo(
            current.members.length === 1 && leftAlone
              ? "Processing all events now..."
              : "Processing events..."
          )
          yield* log.record(Activity.AssignmentReached({ generation: current, partition, afterMillis }))
          // Who waits for progress may have nothing to wait for: there need not be a single event.
          onSeen()
          yield* report(self, "running", current)
        }
        if (!reached && current !== undefined) {
          const waited = Duration.nanos((yield* Clock.monotonicTimeNanos) - waitingSince)
          const closing = [...open.all.values()].filter((range) => range.closing).map(({ held }) => held.projection)
          // Whoever holds the others up fails first, so that those who only wait for it need not.
          const patience = closing.length > 0
            ? settings.coordinationTimeout
            : Duration.times(settings.coordinationTimeout, 2)
          if (Duration.isGreaterThan(waited, patience)) {
            return yield* new CoordinationTimeout({
              replicaSet,
              workerId,
              generationId: current.generationId,
              timeout: Duration.format(patience),
              waitingFor: closing.length > 0
                ? `the handler of ${[...new Set(closing)].join(", ")} does not stop`
                : "ranges assigned to it are still held by another worker, or missing from the table"
            })
          }
        }

        if (reached && Duration.isGreaterThan(Duration.nanos(lookedAt - joinedAt), joinInterval)) {
          joinedAt = lookedAt
          joining = yield* joinNeighbours(open)
        }

        const recheck = decision.recheckAfterMillis
        // A row that stays locked (a slow handler, a frozen worker) is asked for less and less often.
        rechecks = recheck === undefined || recheck > longestRecheckMillis ? 0 : rechecks + 1
        const patience = Math.min(
          Duration.toMillis(settings.pollInterval),
          recheck === undefined
            ? Infinity
            : rechecks === 0
            ? recheck
            : Math.min(recheck * 2 ** (rechecks - 1), longestRecheckMillis),
          joining.size === 0 ? Infinity : Duration.toMillis(joinPatience) + 1
        )
        yield* Effect.timeoutOption(wake.await, patience)
      }
    })

    return yield* Effect.raceAllFirst([
      listen,
      reconcile,
      Deferred.await(failed)
    ]).pipe(
      Effect.tapError((error) =>
        Effect.suspend(() => {
          evicted = error._tag === "WorkerEvicted" || error._tag === "WorkerReplaced"
          // Others have taken what it held: nothing in flight can commit, so there is nothing to drain.
          return evicted ? open.closeAll("now") : Effect.void
        })
      ),
      Effect.scoped
    )
  })

  /**
   * Closes neighbouring ranges of a projection that stand at the same place, so that the next decision makes one range
   * of them: what many switches have cut up grows together again. Returns their keys.
   */
  const joinNeighbours = (open: Ranges.Ranges) => {
    const idle = [...open.all.values()]
      .filter((range) => !range.closing && range.halt === undefined)
      .sort((a, b) => a.held.range.start - b.held.range.start)
    const keys = new Set<string>()
    for (const left of idle) {
      const right = idle.find(({ held, seen }) =>
        held.projection === left.held.projection && held.range.start === left.held.range.end && seen === left.seen
      )
      if (right === undefined) continue
      keys.add(Checkpoint.key(left.held)).add(Checkpoint.key(right.held))
    }
    return Effect.as(Effect.forEach(keys, (key) => open.close(key, "drain"), { discard: true }), keys)
  }

  const report = (self: Registration, state: "ready" | "running", current: Generation.Generation) =>
    membership.report(self, { state, generation: current }).pipe(
      // For people to read only; the next report mends it.
      Effect.catchCause((cause) => Effect.logDebug("The worker's state could not be recorded", cause))
    )

  const switchTo = Effect.fnUntraced(function*(
    self: Registration,
    previous: Generation.Generation | undefined,
    current: Generation.Generation,
    formed: boolean
  ) {
    const partition = Generation.partitionKey(current, self)
    yield* membership.watch(self, current)
    if (previous !== undefined) {
      const joined = current.members.some((member) => Generation.partitionKey(previous, member) < 0)
      yield* Effect.logInfo(joined ? "New worker detected, reconfiguring..." : "Worker left, reconfiguring...")
      yield* Effect.logInfo("Stopping current generation")
      yield* Effect.logInfo("Restarting with new configuration...")
    }
    if (partition >= 0) yield* Effect.logInfo(`Assigned partition: ${partition} of ${current.members.length}`)
    yield* log.record(Activity.GenerationFormed({ generation: current, partition, byThisWorker: formed }))
  })

  /** Registers again after every eviction. */
  const lives = Effect.fnUntraced(function*(onSeen: () => void): Effect.fn.Return<never, OrchestratorError> {
    yield* Effect.logInfo("Starting orchestrator...")
    const workerId = settings.workerId ?? `worker-${yield* drawId}`
    const carried = yield* startPositions()
    return yield* Effect.scoped(life(workerId, carried, onSeen)).pipe(
      Effect.tapErrorTag("WorkerEvicted", (error) => Effect.logWarning(error.message)),
      Effect.retry({ while: (error) => error._tag === "WorkerEvicted", schedule: Schedule.spaced(storeBackoff) }),
      Effect.catchTag("WorkerEvicted", Effect.die),
      Effect.annotateLogs({ worker: workerId })
    )
  })

  let running = false
  const alone = <A, E extends OrchestratorError>(self: Effect.Effect<A, E>): Effect.Effect<A, E | AlreadyRunning> =>
    Effect.acquireUseRelease(
      Effect.suspend(() => {
        if (running) return Effect.fail(new AlreadyRunning({ replicaSet }))
        running = true
        return Effect.void
      }),
      () => self,
      () =>
        Effect.sync(() => {
          running = false
        })
    ).pipe(
      Effect.tapCause(logFailure),
      Effect.onExit((exit) =>
        Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause) ? Effect.logInfo("Shutdown complete") : Effect.void
      ),
      Effect.annotateLogs({ replicaSet })
    )

  const caughtUp = Effect.fnUntraced(function*(progressed: Latch.Latch) {
    const target = yield* events.headPosition
    let remaining = [...projections.keys()]
    let askedAt: bigint | undefined
    while (remaining.length > 0) {
      progressed.closeUnsafe()
      const mine = [...(ranges?.all.values() ?? [])]
      const behind: Array<string> = []
      // What this worker does not see itself, the table says; to ask it after each batch would cost more than it tells.
      const now = yield* Clock.monotonicTimeNanos
      const ask = askedAt === undefined ||
        Duration.isGreaterThanOrEqualTo(Duration.nanos(now - askedAt), settings.pollInterval)
      if (ask) askedAt = now
      for (const name of remaining) {
        const local = mine.filter(({ held }) => held.projection === name)
        if (HashRange.tiles(local.map(({ held }) => held.range)) && local.every(({ seen }) => seen >= target)) continue
        // Before that, a halt may be one of an earlier run, which this worker tries again when it takes the range.
        const counts = assigned
        const rows = ask
          ? yield* checkpoints.rows(name).pipe(
            Effect.catch((error) => Effect.as(Effect.logWarning(`Progress is asked for again: ${error.message}`), []))
          )
          : []
        const halted = counts ? rows.find((row) => row.halt !== undefined) : undefined
        if (halted?.halt !== undefined) {
          return yield* new ProjectionHalted({
            projection: name,
            range: HashRange.format(halted.range),
            position: halted.halt.position,
            eventId: halted.halt.eventId,
            error: halted.halt.error
          })
        }
        if (rows.length === 0 || rows.some((row) => row.position < target)) behind.push(name)
      }
      remaining = behind
      if (remaining.length > 0) yield* Effect.timeoutOption(progressed.await, settings.pollInterval)
    }
  })

  return Orchestrator.of({
    run: alone(lives(() => {})),
    catchUp: alone(Effect.suspend(() => {
      const progressed = Latch.makeUnsafe(false)
      return Effect.raceFirst(
        lives(() => progressed.openUnsafe()),
        caughtUp(progressed)
      )
    })),
    activity: log.stream
  })
})

/**
 * An orchestrator of the given projections. Errors of the handlers stay with the handlers (they halt a range); their
 * services are required here, so that a missing one is a compile error.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = <const P extends ReadonlyArray<Projection.Any>>(
  options: Options<P>
): Layer.Layer<Orchestrator, SetupError, Stores | Projection.Services<P[number]>> =>
  Layer.effect(Orchestrator)(make(options))

/**
 * Like `layer`, with any setting given as a `Config`: `layerConfig({ replicaSet: Config.String("REPLICA_SET"),
 * projections: [users] })`. `Settings.config` reads them all from `ORCHESTRATOR_…`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = <const P extends ReadonlyArray<Projection.Any>>(
  options: { readonly projections: P } & { readonly [K in keyof Settings.Input]: ConfigOr<Settings.Input[K]> }
): Layer.Layer<Orchestrator, SetupError | Config.ConfigError, Stores | Projection.Services<P[number]>> => {
  const { projections, ...settings } = options
  return Layer.unwrap(
    Effect.map(
      // Each value is made a Config first: `unwrap` looks into everything that is none.
      Config.all(Record.map(
        settings as { readonly [setting: string]: unknown },
        (value): Config.Config<unknown> => Config.isConfig(value) ? value : Config.succeed(value)
      )),
      (input) => layer({ ...input as unknown as Settings.Input, projections })
    )
  )
}

/**
 * A value, or a `Config` of it.
 *
 * @category utility types
 * @since 0.1.0
 */
export type ConfigOr<A> = A | Config.Config<A>

const drawId = Effect.map(
  Effect.all([Clock.currentTimeMillis, Random.next, Random.next, Random.next]),
  ([millis, ...random]) => Uuid.v7(millis, random)
)

/** Says once what went wrong, and tells a runtime that prints failures that this one has been printed. */
const logFailure = (cause: Cause.Cause<OrchestratorError>): Effect.Effect<void> => {
  const failure = cause.reasons.find(Cause.isFailReason)
  if (failure === undefined) {
    return Cause.hasInterruptsOnly(cause) ? Effect.void : Effect.logError("The orchestrator died", cause)
  }
  return Effect.andThen(
    Effect.logError(failure.error.message),
    Effect.sync(() => {
      Object.defineProperty(failure.error, Runtime.errorReported, { value: false, configurable: true })
    })
  )
}

const isStoreError = (error: { readonly _tag: string }): error is StoreError =>
  error._tag === "DatabaseUnavailable" || error._tag === "StoreFailure" || error._tag === "ReadOnlyReplica" ||
  error._tag === "UnsupportedDatabase"

const sameHold = (row: Checkpoint.Held, held: Checkpoint.Held): boolean =>
  HashRange.equals(row.range, held.range) && row.fence.incarnation === held.fence.incarnation &&
  row.fence.generationId === held.fence.generationId
