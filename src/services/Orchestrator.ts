/**
 * The orchestrator: one worker of a replica set. It registers, renews its registration, and works on the ranges that
 * the newest generation assigns to it, until it is interrupted; then it drains, releases its ranges and unregisters.
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
import * as Option from "effect/Option"
import * as Queue from "effect/Queue"
import * as Random from "effect/Random"
import * as Record from "effect/Record"
import * as Runtime from "effect/Runtime"
import * as Schedule from "effect/Schedule"
import type * as Scope from "effect/Scope"
import type * as Stream from "effect/Stream"
import { Activity } from "../schema/Activity.ts"
import {
  AlreadyRunning,
  DuplicateProjection,
  FilterChanged,
  type ForeignSqlClient,
  InvalidSettings,
  type OrchestratorError,
  ProjectionHalted,
  type WorkerEvicted
} from "../schema/Errors.ts"
import * as Generation from "../schema/Generation.ts"
import * as HashRange from "../schema/HashRange.ts"
import type * as Plan from "../schema/Plan.ts"
import * as Settings from "../schema/Settings.ts"
import { textProblem } from "../schema/Text.ts"
import * as Uuid from "../schema/Uuid.ts"
import type { Registration } from "../schema/Worker.ts"
import { within } from "./Bounded.ts"
import { CheckpointStore } from "./CheckpointStore.ts"
import type { CoordinationStore } from "./CoordinationStore.ts"
import { EventStore } from "./EventStore.ts"
import { layerPer } from "./LayerPer.ts"
import { Membership } from "./Membership.ts"
import * as Projection from "./Projection.ts"
import * as ActivityStream from "./telemetry/ActivityStream.ts"
import * as RetryLog from "./telemetry/RetryLog.ts"
import * as Coordinator from "./worker/Coordinator.ts"
import * as Heartbeat from "./worker/Heartbeat.ts"
import * as RangeRunner from "./worker/RangeRunner.ts"
import * as Ranges from "./worker/Ranges.ts"
import * as Reconciler from "./worker/Reconciler.ts"
import * as Startup from "./worker/Startup.ts"

/**
 * @category services
 * @since 0.1.0
 */
export class Orchestrator extends Context.Service<Orchestrator, {
  /**
   * Works until it is interrupted, then leaves gracefully. Transient failures are retried, at the start for a bounded
   * time; permanent failures fail it.
   */
  readonly run: Effect.Effect<never, OrchestratorError>
  /**
   * Works until every projection has handled all events that were visible at its start, then leaves. Fails with
   * `ProjectionHalted` if a range is halted.
   */
  readonly catchUp: Effect.Effect<void, OrchestratorError>
  /**
   * The worker's activity, starting with entries for the present state. A slow subscriber receives the number of
   * entries that were dropped (`Missed`).
   */
  readonly activity: Stream.Stream<Activity>
}>()("pupsourcing-orchestrator/services/Orchestrator") {}

/**
 * The stores that an orchestrator uses: `PostgresStores.layer` or `MemoryStores.layer`.
 *
 * @category models
 * @since 0.1.0
 */
export type Stores = EventStore | CheckpointStore | Membership | CoordinationStore

/**
 * @category options
 * @since 0.1.0
 */
export interface Options<P extends ReadonlyArray<Projection.Any>> extends Settings.Input {
  readonly projections: P
}

/**
 * The errors with which building an orchestrator can fail.
 *
 * @category errors
 * @since 0.1.0
 */
export type SetupError = DuplicateProjection | ForeignSqlClient | InvalidSettings

/**
 * Runs the orchestrator in the context: `Program.runMain(Orchestrator.run.pipe(Effect.provide(Live)))`. An error while
 * the layer is built fails the program, instead of only being logged in an unobserved fiber.
 *
 * @category running
 * @since 0.1.0
 */
export const run: Effect.Effect<never, OrchestratorError, Orchestrator> = Effect.flatMap(
  Orchestrator,
  (orchestrator) => orchestrator.run
)

/**
 * Catches up with the events that are visible now, then leaves; see the service's `catchUp`.
 *
 * @category running
 * @since 0.1.0
 */
export const catchUp: Effect.Effect<void, OrchestratorError, Orchestrator> = Effect.flatMap(
  Orchestrator,
  (orchestrator) => orchestrator.catchUp
)

const invalid = (problem: string) => Effect.fail(new InvalidSettings({ setting: "projections", problem }))

const checkProjections = (
  projections: ReadonlyArray<Projection.Any>
): Effect.Effect<void, DuplicateProjection | InvalidSettings> => {
  if (projections.length === 0) return invalid("There is none. Give at least one Projection.make(…).")
  const names = new Set<string>()
  for (const { filter, name, startFrom } of projections) {
    if (name.trim() === "") return invalid("A projection's name must not be empty: progress is kept by name.")
    if (name.length > 200) return invalid(`The name "${name.slice(0, 40)}…" must have at most 200 characters.`)
    const problem = textProblem(name)
    if (problem !== undefined) return invalid(`The name "${name}" ${problem}.`)
    if (typeof startFrom === "bigint" && startFrom < 0n) {
      return invalid(`startFrom of "${name}" is ${startFrom}. Give "beginning", "now" or a position of 0n or more.`)
    }
    for (const [list, values] of Object.entries(filter)) {
      if (Array.isArray(values) && values.length === 0) {
        return invalid(`${list} of "${name}" is empty, so that no event would match. Leave it out to let all through.`)
      }
      const problem = Array.isArray(values)
        ? values.map(textProblem).find((problem) => problem !== undefined)
        : undefined
      if (problem !== undefined) return invalid(`A value of ${list} of "${name}" ${problem}.`)
    }
    if (names.has(name)) return Effect.fail(new DuplicateProjection({ projection: name }))
    names.add(name)
  }
  return Effect.void
}

/** Number of reads of the settled position before a warning that it has not reached `startFrom`. */
const looksBeforeWarning = 3
const readingProgress = "Reading the progress of projections"
/** Pause before an evicted worker registers again. */
const registrationBackoff = Duration.millis(250)
/**
 * Time limit of unregistering, which is a courtesy: a database that does not answer must not delay the process's end.
 */
const leaveTimeout = Duration.seconds(5)

/**
 * Makes an orchestrator as a value. Requires the stores and the services of the projections' handlers.
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
  const retryLog = RetryLog.make()
  const startup = Startup.make(retryLog)
  const runner = yield* RangeRunner.make(startup, retryLog)
  const captured = yield* Effect.context<Projection.Services<P[number]>>()
  yield* checkpoints.checkClient(captured as Context.Context<never>, settings.replicaSet)

  const { replicaSet } = settings
  const projections = new Map(options.projections.map((projection) => [projection.name, projection]))

  /** The present state, from which the first entries for a new subscriber of the activity are made. */
  let registration: Registration | undefined
  let generation: Generation.Generation | undefined
  let ranges: Ranges.Ranges | undefined
  /** Projections that this run has given up, because another worker has changed their filters. */
  const givenUp = new Map<string, FilterChanged>()
  const log = ActivityStream.make(replicaSet, () => [
    ...(registration === undefined ? [] : [Activity.WorkerRegistered({ registration })]),
    ...(registration === undefined || generation === undefined ? [] : [Activity.GenerationChanged({
      generation,
      partition: Generation.partitionKey(generation, registration),
      formedByThisWorker: false
    })]),
    ...(registration === undefined ? [] : [...givenUp.values()]).map(({ given, projection, recorded }) =>
      Activity.ProjectionGivenUp({ projection, recorded, given })
    ),
    ...[...(ranges?.all.values() ?? [])].flatMap(({ halt, held: { projection, range }, seen }) => [
      Activity.RangeClaimed({ projection, range, position: seen }),
      ...(halt === undefined ? [] : [Activity.RangeHalted({ projection, range, halt })])
    ])
  ])

  /**
   * Returns where a projection without progress starts. Returns 0 for one with progress, where the value is not used.
   */
  const startPosition = Effect.fnUntraced(function*({ name, startFrom }: Projection.Any) {
    const settledPosition = startup.step("Reading the settled position")(events.settledPosition)
    if (startFrom === "beginning" || (yield* startup.step("Reading checkpoints")(checkpoints.rows(name))).length > 0) {
      return 0n
    }
    if (startFrom === "now") return yield* settledPosition
    // Rejects a position that was never issued. The loop below waits until the position is settled, because readers
    // rely on everything up to a checkpoint being final.
    yield* events.read({ after: startFrom, limit: 1 }).pipe(
      startup.step(`Reading at position ${startFrom}`),
      Effect.catchTags({
        EventTooLarge: () => Effect.void,
        EventUnreadable: () => Effect.void,
        CheckpointAheadOfEvents: ({ lastPosition }) =>
          invalid(
            `startFrom of "${name}" is ${startFrom}, but the events table has only given out positions up to ${lastPosition}. Give "beginning", "now" or a position that exists.`
          )
      })
    )
    let looks = 0
    while ((yield* settledPosition) < startFrom) {
      if (++looks === looksBeforeWarning) {
        yield* Effect.logWarning(
          `"${name}" begins at position ${startFrom}, which no event has reached that is certain to be the last below it. The worker waits for one.`
        )
      }
      yield* Effect.sleep(settings.pollInterval)
    }
    return startFrom
  })

  /**
   * Fails if the database cannot store a name or a filter. Names identify progress and filters select events, so unlike
   * diagnostic texts they must be stored unchanged.
   */
  const checkNames = Effect.fnUntraced(function*(workerId: string) {
    const named = [
      { setting: "replicaSet", text: replicaSet },
      { setting: "workerId", text: workerId },
      ...options.projections.flatMap(({ filter, name }) =>
        [name, ...Object.values(filter).flatMap((values: ReadonlyArray<string> | undefined) => values ?? [])]
          .map((text) => ({ setting: "projections", text }))
      )
    ]
    // If the database is unavailable, a later step of the start retries or reports it.
    const unstorable = yield* Effect.orElseSucceed(
      checkpoints.unstorable(named.map(({ text }) => text)),
      (): ReadonlyArray<string> => []
    )
    const first = named.find(({ text }) => unstorable.includes(text))
    if (first === undefined) return
    return yield* new InvalidSettings({
      setting: first.setting,
      problem:
        `The database cannot store "${first.text}": its encoding cannot represent a character of this text. Use other characters, or a database with ENCODING 'UTF8'.`
    })
  })

  const carry = (workerId: string) =>
    Effect.andThen(
      checkNames(workerId),
      Effect.forEach(
        options.projections,
        (projection) =>
          Effect.map(startPosition(projection), (startPosition): Plan.Carried => ({
            name: projection.name,
            filter: Projection.filterText(projection),
            startPosition,
            acceptFilterChange: projection.acceptFilterChange
          }))
      )
    )

  /** Whether the current registration works on its whole assignment. */
  let assigned = false
  /** Whether this run has been part of a generation. */
  let hasStarted = false

  const giveUp = Effect.fnUntraced(function*({ given, projection, recorded }: FilterChanged) {
    const failure = new FilterChanged({ projection, recorded, given, ...(hasStarted ? { whileRunning: true } : {}) })
    if (!hasStarted) return yield* failure
    givenUp.set(projection, failure)
    const others = [...projections.keys()].filter((name) => !givenUp.has(name))
    yield* Effect.logWarning(
      `${failure.message} Until then ${
        others.length === 0
          ? "it stays registered without a projection"
          : `this worker continues with its other projections: ${others.join(", ")}`
      }.`
    )
    yield* log.record(Activity.ProjectionGivenUp({ projection, recorded, given }))
  })

  /** Runs one registration. Ends with a failure, which can be `WorkerEvicted`, or by interruption. */
  const runRegistration = Effect.fnUntraced(function*(
    workerId: string,
    carried: () => ReadonlyArray<Plan.Carried>,
    onSeen: () => void
  ): Effect.fn.Return<never, OrchestratorError | WorkerEvicted, Scope.Scope> {
    const failed = yield* Deferred.make<never, OrchestratorError | WorkerEvicted>()
    const alarm = Reconciler.makeAlarm()
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
            coordinator.leave({ registration: self, projections: carried(), busy: busy() }, settings),
            leaveTimeout
          ).pipe(
            Effect.flatMap(Option.match({
              onNone: () => Effect.logWarning("The database did not answer in time: the others notice by themselves"),
              onSome: () => Effect.void
            })),
            // Best effort: the other workers detect a worker that could not unregister.
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
        projections: [...projections.keys()].filter((name) => !givenUp.has(name)),
        rules: Coordinator.livenessRules(settings)
      }).pipe(
        startup.step(Startup.registering)
      ),
      leave,
      // A worker that is interrupted while the database is unreachable must not wait for it. If the registration was
      // just created, the other workers detect the end of its presence.
      { interruptible: true }
    )
    registration = self
    yield* Effect.logInfo(`Worker registered: ${workerId}`)
    yield* log.record(Activity.WorkerRegistered({ registration: self }))

    const heartbeat = yield* Heartbeat.make({
      membership,
      registration: self,
      settings,
      log,
      retryLog,
      onChange: () => alarm.latch.openUnsafe()
    })
    // Added to the scope before the ranges, so that heartbeats continue while the ranges drain.
    yield* heartbeat.run.pipe(
      Effect.onError((cause) => Deferred.failCause(failed, cause)),
      Effect.forkScoped
    )

    const open = yield* Ranges.make({
      runner,
      drainTimeout: settings.drainTimeout,
      onChange: () => alarm.latch.openUnsafe(),
      onSeen,
      onFailure: (error) => Effect.asVoid(Deferred.fail(failed, error))
    })
    ranges = open

    const listen = Effect.gen(function*() {
      const wakeUps = yield* membership.wakeUps(self)
      while (true) {
        yield* Queue.take(wakeUps)
        alarm.fromOutside = true
        alarm.latch.openUnsafe()
      }
    })

    const reconcile = Reconciler.run({
      registration: self,
      settings,
      projections,
      carried,
      giveUp: (failure) => Effect.tap(giveUp(failure), () => Effect.sync(onSeen)),
      captured: captured as Context.Context<unknown>,
      coordinator,
      membership,
      ranges: open,
      log,
      retryLog,
      alarm,
      suspended: heartbeat.suspended,
      startup,
      onGeneration: (current) => {
        hasStarted = true
        generation = current
      },
      onAssigned: (value) => {
        assigned = value
        // Wakes `catchUp`, which would otherwise wait for progress even if there is not a single event.
        if (assigned) onSeen()
      }
    })

    return yield* Effect.raceAllFirst([listen, reconcile, Deferred.await(failed)]).pipe(
      Effect.tapError((error) =>
        Effect.suspend(() => {
          evicted = error._tag === "WorkerEvicted" || error._tag === "WorkerReplaced"
          // Other workers claim the ranges of an evicted worker. Batches in flight are then fenced, so nothing is
          // drained.
          return evicted ? open.closeAll("now") : Effect.void
        })
      ),
      Effect.scoped
    )
  })

  /** Runs one registration after another: registers again after every eviction. */
  const runUntilEvicted = Effect.fnUntraced(function*(onSeen: () => void): Effect.fn.Return<never, OrchestratorError> {
    yield* Effect.logInfo("Starting orchestrator...")
    const workerId = settings.workerId ?? `worker-${yield* drawId}`
    hasStarted = false
    givenUp.clear()
    const all = yield* carry(workerId)
    const carried = () => all.map((projection) => ({ ...projection, givenUp: givenUp.has(projection.name) }))
    return yield* Effect.scoped(runRegistration(workerId, carried, onSeen)).pipe(
      Effect.tapErrorTag("WorkerEvicted", (error) => Effect.logWarning(error.message)),
      Effect.retry({
        while: (error) => error._tag === "WorkerEvicted",
        schedule: Schedule.spaced(registrationBackoff)
      }),
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
      Effect.onError((cause) => logFailure(cause)),
      Effect.onExit((exit) =>
        Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause) ? Effect.logInfo("Shutdown complete") : Effect.void
      ),
      Effect.annotateLogs({ replicaSet })
    )

  const caughtUp = Effect.fnUntraced(function*(progressed: Latch.Latch) {
    let target = yield* startup.step("Reading the head")(events.headPosition)
    let remaining = [...projections.keys()]
    let askedAt: bigint | undefined
    while (remaining.length > 0) {
      progressed.closeUnsafe()
      const changed = remaining.flatMap((name) => givenUp.get(name) ?? [])[0]
      if (changed !== undefined) return yield* changed
      // Before the assignment is reached, a halt may be from an earlier run; claiming the range retries its event.
      if (!assigned) {
        yield* progressed.await
        continue
      }
      const mine = [...(ranges?.all.values() ?? [])]
      const behind: Array<string> = []
      // The progress of other workers' ranges is read from the table, but not after each batch, which would be
      // expensive.
      const now = yield* Clock.monotonicTimeNanos
      const ask = askedAt === undefined ||
        Duration.isGreaterThanOrEqualTo(Duration.nanos(now - askedAt), settings.pollInterval)
      if (ask) {
        askedAt = now
        // A server that has lost its last commits may never reach the target again.
        const head = yield* Effect.orElseSucceed(events.headPosition, () => target)
        if (head < target) target = head
      }
      for (const name of remaining) {
        const local = mine.filter(({ held }) => held.projection === name)
        if (HashRange.tiles(local.map(({ held }) => held.range)) && local.every(({ seen }) => seen >= target)) continue
        const rows = ask
          ? yield* checkpoints.rows(name).pipe(
            Effect.tap(retryLog.succeeded(readingProgress)),
            Effect.catch((error) => Effect.as(retryLog.failed(readingProgress, error.message), []))
          )
          : []
        const halted = rows.find((row) => row.halt !== undefined)
        if (halted?.halt !== undefined) {
          return yield* new ProjectionHalted({
            projection: name,
            range: HashRange.format(halted.range),
            position: halted.halt.position,
            eventId: halted.halt.eventId,
            error: halted.halt.error,
            since: halted.halt.since
          })
        }
        if (rows.length === 0 || rows.some((row) => row.position < target)) behind.push(name)
      }
      remaining = behind
      if (remaining.length > 0) yield* Effect.timeoutOption(progressed.await, settings.pollInterval)
    }
  })

  return Orchestrator.of({
    run: alone(runUntilEvicted(() => {})),
    catchUp: alone(Effect.suspend(() => {
      const progressed = Latch.makeUnsafe(false)
      return Effect.raceFirst(
        runUntilEvicted(() => progressed.openUnsafe()),
        caughtUp(progressed)
      )
    })),
    activity: log.stream
  })
})

/**
 * A layer with an orchestrator of the given projections. A handler's error halts a range and does not fail the
 * orchestrator. The handlers' services are required here, so that a missing one is a compile error. The layer is
 * memoized per `EventStore`: for the stores of another database it builds another orchestrator.
 *
 * @category layers
 * @since 0.1.0
 */
export const layer = <const P extends ReadonlyArray<Projection.Any>>(
  options: Options<P>
): Layer.Layer<Orchestrator, SetupError, Stores | Projection.Services<P[number]>> =>
  layerPer(EventStore, () => Layer.effect(Orchestrator)(make(options)))

/**
 * Like `layer`, with any setting given as a `Config`: `layerConfig({ replicaSet: Config.String("REPLICA_SET"),
 * projections: [users] })`. To read them all from `ORCHESTRATOR_…`, see `Settings.config`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = <const P extends ReadonlyArray<Projection.Any>>(
  options: { readonly projections: P } & { readonly [K in keyof Settings.Input]: ConfigOr<Settings.Input[K]> }
): Layer.Layer<Orchestrator, SetupError | Config.ConfigError, Stores | Projection.Services<P[number]>> => {
  const { projections, ...settings } = options
  // Each value is wrapped in a Config first, because `Config.unwrap` would search plain values for Configs.
  const config = Config.all(Record.map(
    settings as { readonly [setting: string]: unknown },
    (value): Config.Config<unknown> => Config.isConfig(value) ? value : Config.succeed(value)
  ))
  return layerPer(EventStore, () =>
    Layer.effect(Orchestrator)(
      Effect.flatMap(config, (input) => make({ ...input as unknown as Settings.Input, projections }))
    ))
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

/** Logs a failure once, and marks it as reported, so that a runtime that prints failures does not print it again. */
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
