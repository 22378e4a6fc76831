/**
 * The coordinator: compares the actual state with the desired state, requests the decision that corrects the
 * difference, and returns the ranges that this worker should hold. It is level-triggered: a notification, a poll and
 * the worker's own start all trigger the same comparison, so a lost notification costs one poll interval and nothing
 * else.
 *
 * @since 0.1.0
 */
import * as Context from "effect/Context"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { FilterChanged, ProjectionInOtherReplicaSet, type StoreError, WorkerEvicted } from "../../schema/Errors.ts"
import * as Plan from "../../schema/Plan.ts"
import type { Settings } from "../../schema/Settings.ts"
import type { LivenessRules, Registration } from "../../schema/Worker.ts"
import { CoordinationStore } from "../CoordinationStore.ts"

/**
 * The state of the worker that the coordinator needs.
 *
 * @category models
 * @since 0.1.0
 */
export interface Standing {
  readonly registration: Registration
  readonly projections: ReadonlyArray<Plan.Carried>
  /** Keys of the rows on which one of the worker's runners is working. */
  readonly busy: ReadonlySet<string>
}

/**
 * @category services
 * @since 0.1.0
 */
export class Coordinator extends Context.Service<Coordinator, {
  /**
   * Makes every change that this worker may make now, and returns the decision with the resulting state. `formed` is
   * true if the decision formed a new generation.
   */
  readonly reconcile: (
    standing: Standing,
    settings: Settings
  ) => Effect.Effect<
    { readonly decision: Plan.Plan; readonly formed: boolean },
    FilterChanged | ProjectionInOtherReplicaSet | StoreError | WorkerEvicted
  >

  /** Releases every range that is not busy, and unregisters the worker. */
  readonly leave: (standing: Standing, settings: Settings) => Effect.Effect<void, StoreError>
}>()("pupsourcing-orchestrator/services/Coordinator") {}

/**
 * How long a worker may be without presence and heartbeat before it counts as dead. A presence lock that is lost with
 * its connection is acquired again within this time.
 */
const presenceGrace = Duration.millis(100)

/**
 * @category utils
 * @since 0.1.0
 */
export const livenessRules = (settings: Settings): LivenessRules => ({
  staleWorkerTimeoutMillis: Duration.toMillis(settings.staleWorkerTimeout),
  heartbeatIntervalMillis: Duration.toMillis(settings.heartbeatInterval),
  presenceGraceMillis: Duration.toMillis(presenceGrace)
})

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.gen(function*() {
  const decisions = yield* CoordinationStore

  const request = (standing: Standing, settings: Settings, leaving: boolean): Plan.Request => ({
    ...standing,
    leaving,
    rules: livenessRules(settings)
  })

  const reconcile = Effect.fnUntraced(function*(standing: Standing, settings: Settings) {
    const wanted = request(standing, settings, false)
    const seen = yield* decisions.preview(wanted)
    if (seen.obstacle !== undefined) return yield* refuse(standing.registration, seen.obstacle)
    if (Plan.isEmpty(seen)) return { decision: seen, formed: false }
    // Workers that join or leave within this window are covered by the same generation.
    if (seen.form !== undefined) yield* Effect.sleep(settings.registrationWindow)
    const decision = yield* decisions.apply(wanted)
    if (decision.obstacle !== undefined) return yield* refuse(standing.registration, decision.obstacle)
    return { decision, formed: decision.form !== undefined }
  })

  const leave = Effect.fnUntraced(function*(standing: Standing, settings: Settings) {
    yield* decisions.apply(request(standing, settings, true))
  })

  return Coordinator.of({ reconcile, leave })
})

const refuse = (
  registration: Registration,
  obstacle: Plan.Obstacle
): FilterChanged | ProjectionInOtherReplicaSet | WorkerEvicted => {
  const { replicaSet, workerId } = registration
  switch (obstacle._tag) {
    case "Evicted":
      // The heartbeat distinguishes an eviction from a missing row.
      return new WorkerEvicted({ replicaSet, workerId, reason: "evicted" })
    case "FilterChanged":
      return new FilterChanged({
        projection: obstacle.projection,
        recorded: obstacle.recorded,
        given: obstacle.given
      })
    case "ProjectionInOtherReplicaSet":
      return new ProjectionInOtherReplicaSet({
        projection: obstacle.projection,
        replicaSet,
        otherReplicaSet: obstacle.otherReplicaSet,
        workerId: obstacle.workerId
      })
  }
}
