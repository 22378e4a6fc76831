/**
 * The orchestrator: one worker of a replica set. It registers, renews its registration, and works on the ranges that
 * the newest generation assigns to it, until it is interrupted; then it drains, releases its ranges and unregisters.
 *
 * **Example**
 *
 * ```ts
 * import { PgClient } from "@effect/sql-pg"
 * import { Config, Effect, Layer } from "effect"
 * import { Orchestrator, PostgresStores, Program, Projection } from "pupsourcing-orchestrator"
 *
 * const users = Projection.make("users", { handle: (event) => Effect.logInfo(event.eventType) })
 *
 * const Live = Orchestrator.layer({ replicaSet: "main-projections", projections: [users] }).pipe(
 *   Layer.provide(PostgresStores.layer),
 *   Layer.provideMerge(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))
 * )
 *
 * Program.runMain(Orchestrator.run.pipe(Effect.provide(Live)))
 * ```
 *
 * @since 0.1.0
 */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import type * as Config from "effect/Config"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Exit from "effect/Exit"
import * as Layer from "effect/Layer"
import * as Random from "effect/Random"
import * as Runtime from "effect/Runtime"
import type * as Stream from "effect/Stream"
import { Activity } from "../schema/Activity.ts"
import {
  AlreadyRunning,
  type DuplicateProjection,
  type ForeignSqlClient,
  type InvalidSettings,
  type OrchestratorError
} from "../schema/Errors.ts"
import * as Health from "../schema/Health.ts"
import * as Uuid from "../schema/Uuid.ts"
import { CheckpointStore } from "./CheckpointStore.ts"
import * as ConfigOr from "./ConfigOr.ts"
import { CoordinationStore } from "./CoordinationStore.ts"
import { EventStore } from "./EventStore.ts"
import { layerPer } from "./LayerPer.ts"
import { Membership } from "./Membership.ts"
import type * as Projection from "./Projection.ts"
import { Projections } from "./Projections.ts"
import * as Settings from "./Settings.ts"
import type { Stores } from "./Stores.ts"
import * as ActivityStream from "./telemetry/ActivityStream.ts"
import * as LogAnnotations from "./telemetry/LogAnnotations.ts"
import * as RetryLog from "./telemetry/RetryLog.ts"
import * as Spans from "./telemetry/Spans.ts"
import * as CatchUp from "./worker/CatchUp.ts"
import * as ProjectionChecks from "./worker/ProjectionChecks.ts"
import * as RangeRunner from "./worker/RangeRunner.ts"
import * as Registration from "./worker/Registration.ts"
import * as Startup from "./worker/Startup.ts"

/**
 * One worker of a replica set.
 *
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
   * `ProjectionHalted` if one of these events halts a range.
   *
   * **Gotchas**
   *
   * - Events that are appended later may be handled too, but are not waited for. An open transaction that appends holds
   *   back all events after it, and so `catchUp`, until it ends.
   * - Parked events count as handled: it does not wait for them.
   * - Other workers of the replica set take part: `catchUp` waits for the progress of their ranges, too.
   * - There is no time limit while the database is unreachable; add `Effect.timeout` where you need one.
   * - Under `TestClock`, fork it and advance the clock.
   */
  readonly catchUp: Effect.Effect<void, OrchestratorError>
  /**
   * The worker's activity, starting with entries for the present state. A slow subscriber receives the number of
   * entries that were dropped (`Missed`).
   */
  readonly activity: Stream.Stream<Activity>
  /** The worker's health, from memory: available even while the database is unreachable. */
  readonly health: Effect.Effect<Health.Health>
}>()("pupsourcing-orchestrator/services/Orchestrator") {}

/**
 * The settings of an orchestrator, and its projections.
 *
 * @category options
 * @since 0.1.0
 */
export interface Options<P extends ReadonlyArray<Projection.Any>> extends Settings.Input {
  readonly projections: P
}

/**
 * The errors with which building an orchestrator can fail. A retry does not help: the caller changes its code, or the
 * configuration has to change.
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

/**
 * Makes an orchestrator as a value. Requires the stores and the services of the projections' handlers.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*<const P extends ReadonlyArray<Projection.Any>>(
  options: Options<P>
): Effect.fn.Return<
  Orchestrator["Service"],
  SetupError,
  EventStore | Projections | Stores | Projection.Services<P[number]>
> {
  yield* Effect.fromResult(ProjectionChecks.check(options.projections))
  const settings = yield* Effect.fromResult(Settings.make(options))
  const events = yield* EventStore
  const checkpoints = yield* CheckpointStore
  const captured = (yield* Effect.context<Projection.Services<P[number]>>()) as Context.Context<unknown>
  yield* checkpoints.checkClient(captured as Context.Context<never>, settings.replicaSet)
  const retryLog = RetryLog.make()
  const startup = Startup.make(retryLog)
  const state = Registration.makeState()
  const log = ActivityStream.make(settings.replicaSet, () => Registration.present(state))
  const worker: Registration.Worker = {
    settings,
    projections: new Map(options.projections.map((projection) => [projection.name, projection])),
    captured,
    events,
    checkpoints,
    membership: yield* Membership,
    coordination: yield* CoordinationStore,
    status: (yield* Projections).status,
    runner: yield* RangeRunner.make(startup, retryLog),
    startup,
    retryLog,
    log,
    state
  }
  const exclusively = makeExclusive(worker)
  return Orchestrator.of({
    run: exclusively((workerId, annotations) => Registration.runRegistrations(worker, workerId, annotations)),
    catchUp: exclusively((workerId, annotations) =>
      Effect.raceFirst(
        Registration.runRegistrations(
          { ...worker, projections: CatchUp.withoutWindows(worker.projections) },
          workerId,
          annotations
        ),
        CatchUp.awaitCaughtUp(worker)
      )
    ),
    activity: log.stream,
    health: Effect.zipWith(
      log.health,
      Clock.monotonicTimeNanos,
      (observed, now) => Health.make(observed, { ...settings, now })
    )
  })
})

/** The work of a run. */
type Work<A, E> = (workerId: string, annotations: LogAnnotations.LogAnnotations) => Effect.Effect<A, E>

/** Returns a wrapper for the runs of one orchestrator: one at a time, whose end is logged once. */
const makeExclusive = ({ captured, log, settings: { replicaSet, workerId } }: Registration.Worker) => {
  let isRunning = false
  const acquire = Effect.suspend(() => {
    if (isRunning) return Effect.fail(new AlreadyRunning({ replicaSet }))
    isRunning = true
    return Effect.void
  })
  const release = Effect.sync(() => {
    isRunning = false
  })
  const reported = <A, E extends OrchestratorError>(self: Effect.Effect<A, E>): Effect.Effect<A, E> =>
    self.pipe(
      Effect.onError((cause) => logFailure(cause)),
      Effect.onExit((exit) => recordEnd(log, exit))
    )
  return <A, E extends OrchestratorError>(work: Work<A, E>): Effect.Effect<A, E | AlreadyRunning> =>
    Effect.flatMap(
      workerId === undefined ? drawWorkerId : Effect.succeed(workerId),
      (workerId) =>
        LogAnnotations.annotate({ replicaSet, workerId }, (annotations) =>
          reported(Effect.acquireUseRelease(acquire, () => work(workerId, annotations), () => release)))
    ).pipe(Spans.withTracerOf(captured))
}

const drawWorkerId = Effect.map(
  Effect.all([Clock.currentTimeMillis, Random.next, Random.next, Random.next]),
  ([millis, ...random]) => `worker-${Uuid.v7(millis, random)}`
)

/** Records the end of a run. A run that was refused because another one works has not begun. */
const recordEnd = ({ record }: Registration.Worker["log"], exit: Exit.Exit<unknown, OrchestratorError>) => {
  if (Exit.isSuccess(exit) || Cause.hasInterruptsOnly(exit.cause)) return record(Activity.WorkerStopped({}))
  const failure = exit.cause.reasons.find(Cause.isFailReason)?.error
  if (failure instanceof AlreadyRunning) return Effect.void
  return record(
    Activity.WorkerStopped({ failure: failure?.message ?? "An unexpected error; the log contains it." })
  )
}

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
): Layer.Layer<Orchestrator, SetupError, EventStore | Projections | Stores | Projection.Services<P[number]>> =>
  layerPer(EventStore, () => Layer.effect(Orchestrator)(make(options)))

/**
 * Like `layer`, with any setting given as a `Config`: `layerConfig({ replicaSet: Config.String("REPLICA_SET"),
 * projections: [users] })`. `layerFromEnv` reads them all from `ORCHESTRATOR_…`.
 *
 * @category layers
 * @since 0.1.0
 */
export const layerConfig = <const P extends ReadonlyArray<Projection.Any>>(
  options: { readonly projections: P } & { readonly [K in keyof Settings.Input]: ConfigOr.ConfigOr<Settings.Input[K]> }
): Layer.Layer<
  Orchestrator,
  SetupError | Config.ConfigError,
  EventStore | Projections | Stores | Projection.Services<P[number]>
> => {
  const { projections, ...settings } = options
  return layerWithInput(ConfigOr.all<Settings.Input>(settings), projections)
}

/**
 * Like `layer`, with all settings from the environment: `ORCHESTRATOR_REPLICA_SET` (required), `ORCHESTRATOR_BATCH_SIZE`
 * and so on. See `Settings.config`.
 *
 * **Example**
 *
 * ```ts
 * import { PgClient } from "@effect/sql-pg"
 * import { Config, Effect, Layer } from "effect"
 * import { Orchestrator, PostgresStores, Projection } from "pupsourcing-orchestrator"
 *
 * const users = Projection.make("users", { handle: (event) => Effect.logInfo(event.eventType) })
 *
 * export const Live = Orchestrator.layerFromEnv({ projections: [users] }).pipe(
 *   Layer.provide(PostgresStores.layer),
 *   Layer.provideMerge(PgClient.layerConfig({ url: Config.Redacted("DATABASE_URL") }))
 * )
 * ```
 *
 * @category layers
 * @since 0.1.0
 */
export const layerFromEnv = <const P extends ReadonlyArray<Projection.Any>>(
  options: { readonly projections: P }
): Layer.Layer<
  Orchestrator,
  SetupError | Config.ConfigError,
  EventStore | Projections | Stores | Projection.Services<P[number]>
> => layerWithInput(Settings.config, options.projections)

/** A failing config fails the layer, before anything else is checked. */
const layerWithInput = <const P extends ReadonlyArray<Projection.Any>>(
  input: Config.Config<Settings.Input>,
  projections: P
) =>
  layerPer(
    EventStore,
    () => Layer.effect(Orchestrator)(Effect.flatMap(input, (input) => make({ ...input, projections })))
  )

/**
 * A value, or a `Config` of it.
 *
 * @category utility types
 * @since 0.1.0
 */
export type { ConfigOr } from "./ConfigOr.ts"
