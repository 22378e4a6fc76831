/**
 * The requests of a worker to the coordination store: to make the changes of its plan, and to leave the replica set.
 */
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { Activity } from "../../schema/Activity.ts"
import type { StoreError } from "../../schema/Errors.ts"
import * as Plan from "../../schema/Plan.ts"
import type { Settings } from "../../schema/Settings.ts"
import * as Worker from "../../schema/Worker.ts"
import type { CoordinationStore } from "../CoordinationStore.ts"
import type { ActivityStream } from "../telemetry/ActivityStream.ts"

/** What a request is made of, and where it is sent. */
interface Parts extends Pick<Plan.Request, "activeKeys" | "ownedKeys" | "projections" | "registration"> {
  readonly settings: Settings
  readonly coordination: CoordinationStore
}

const requestOf = (
  { activeKeys, ownedKeys, projections, registration, settings }: Parts,
  leaving: boolean
): Plan.Request => ({
  registration,
  projections,
  activeKeys,
  ...(ownedKeys === undefined ? {} : { ownedKeys }),
  leaving,
  rules: Worker.livenessRules(settings)
})

/** Makes every change that this worker may make now, and returns the plan with the resulting state. */
export const makeAndApply = Effect.fnUntraced(function*(
  parts: Parts & { readonly log: Pick<ActivityStream, "record"> }
) {
  const plan = yield* apply(parts.coordination, requestOf(parts, false), parts.settings)
  yield* record(parts.log, plan)
  return plan
})

const apply = Effect.fnUntraced(function*(
  coordination: CoordinationStore,
  request: Plan.Request,
  { registrationWindow }: Settings
) {
  let plan = yield* coordination.preview(request)
  if (plan.form !== undefined) {
    // Workers that join or leave within this window are covered by the same generation.
    yield* Effect.sleep(registrationWindow)
    plan = yield* coordination.preview(request)
  }
  return Plan.isEmpty(plan) ? plan : yield* coordination.apply(request, plan)
})

const record = Effect.fnUntraced(function*(log: Pick<ActivityStream, "record">, plan: Plan.Plan) {
  if (plan.evict.length > 0) {
    const workers = plan.evict.map(({ incarnation, workerId }) => ({ workerId, incarnation }))
    yield* log.record(Activity.DeadWorkersEvicted({ workers }))
  }
  for (const { afterMillis, kind, projection, range } of plan.successions) {
    const succession = { projection, range, after: Duration.millis(afterMillis) }
    yield* log.record(
      kind === "handOver" ? Activity.RangeHandedOver(succession) : Activity.RangeTakenOver(succession)
    )
  }
})

/**
 * Hands over every range that no runner is processing, and unregisters the worker. Returns whether this has formed a
 * generation without the worker.
 */
export const leave = (parts: Parts): Effect.Effect<boolean, Plan.PlanError | StoreError> =>
  parts.coordination.apply(requestOf(parts, true)).pipe(
    Effect.map(({ form }) => form !== undefined),
    // Another worker has evicted this one, so its ranges can be claimed already.
    Effect.catchTag("WorkerEvicted", () => Effect.succeed(false))
  )
