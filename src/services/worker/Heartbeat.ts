/**
 * The heartbeat: renews a worker's registration, and suspends the worker when it could not renew in time.
 *
 * @since 0.1.0
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { Activity } from "../../schema/Activity.ts"
import type { WorkerEvicted, WorkerReplaced } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import type { Registration } from "../../schema/Worker.ts"
import type { Membership } from "../Membership.ts"
import type { ActivityStream } from "../telemetry/ActivityStream.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface Heartbeat {
  /**
   * Whether the worker must not process events, because it could not renew in time and other workers may be about to
   * evict it. Suspending is a courtesy; the fence protects the data.
   */
  readonly suspended: () => boolean
  /** Sends heartbeats until one of them reports that the registration has ended. */
  readonly run: Effect.Effect<never, WorkerEvicted | WorkerReplaced>
}

/**
 * A worker that could not renew for this fraction of `staleWorkerTimeout` is suspended, before other workers evict it.
 */
const renewalMargin = 0.8

const renewing = "The heartbeat"

/** Maximum interval between heartbeats while they fail. */
const longestRetryInterval = Duration.seconds(1)

/**
 * Makes the heartbeat of a new registration. The registration itself counts as the first heartbeat.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = Effect.fnUntraced(function*(options: {
  readonly membership: Membership["Service"]
  readonly registration: Registration
  readonly settings: Pick<Settings, "heartbeatInterval" | "staleWorkerTimeout">
  readonly log: ActivityStream
  readonly retryLog: RetryLog
  /** Called when `suspended` has changed. */
  readonly onChange: () => void
}): Effect.fn.Return<Heartbeat> {
  const { log, membership, onChange, registration, retryLog, settings } = options
  let suspended = false
  let renewedAt = yield* Clock.monotonicTimeNanos

  const renew = Effect.gen(function*() {
    const interval = settings.heartbeatInterval
    let failures = 0
    yield* Effect.sleep(interval)
    while (true) {
      const attemptedAt = yield* Clock.monotonicTimeNanos
      const result = yield* Effect.result(membership.heartbeat(registration))
      if (result._tag === "Success") {
        failures = 0
        renewedAt = attemptedAt
        yield* retryLog.succeeded(renewing)
        const took = Duration.nanos((yield* Clock.monotonicTimeNanos) - attemptedAt)
        yield* log.record(Activity.HeartbeatRenewed({ took }))
        if (suspended) {
          suspended = false
          yield* log.record(Activity.Resumed())
          onChange()
        }
      } else if (result.failure._tag === "WorkerEvicted" || result.failure._tag === "WorkerReplaced") {
        return yield* result.failure
      } else {
        failures++
        yield* retryLog.failed(renewing, result.failure.message)
      }
      yield* Effect.sleep(failures === 0 ? interval : Duration.min(interval, longestRetryInterval))
    }
  })

  /** Runs concurrently with the renewal, because a heartbeat without an answer ends too late. */
  const suspendWhenOverdue = Effect.gen(function*() {
    const margin = Duration.times(settings.staleWorkerTimeout, renewalMargin)
    while (true) {
      const silent = Duration.nanos((yield* Clock.monotonicTimeNanos) - renewedAt)
      const overdue = Duration.isGreaterThan(silent, margin)
      if (overdue && !suspended) {
        suspended = true
        yield* log.record(Activity.Suspended())
        onChange()
      }
      yield* Effect.sleep(overdue ? margin : Duration.sum(Duration.subtract(margin, silent), Duration.millis(1)))
    }
  })

  return {
    suspended: () => suspended,
    run: Effect.ensuring(Effect.raceFirst(renew, suspendWhenOverdue), retryLog.ended(renewing))
  }
})
