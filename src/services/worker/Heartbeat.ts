/**
 * The heartbeat: renews a worker's registration, records what people read about the worker, and suspends the worker when
 * it could not renew in time.
 */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Latch from "effect/Latch"
import * as Option from "effect/Option"
import { Activity } from "../../schema/Activity.ts"
import type { WorkerEvicted, WorkerReplaced } from "../../schema/Errors.ts"
import type { Settings } from "../../schema/Settings.ts"
import type { Displayed, Registration } from "../../schema/Worker.ts"
import type { Membership } from "../Membership.ts"
import type { ActivityStream } from "../telemetry/ActivityStream.ts"
import type { RetryLog } from "../telemetry/RetryLog.ts"

export interface Heartbeat {
  /**
   * Whether the worker must not process events, because it could not renew in time and other workers may be about to
   * evict it. Suspending only saves work that would be rejected; the fence protects the data.
   */
  readonly suspended: () => boolean
  /** Sends a heartbeat soon, because what it displays has changed. */
  readonly beatSoon: () => void
  /** Sends heartbeats until one of them reports that the registration has ended. */
  readonly run: Effect.Effect<never, WorkerEvicted | WorkerReplaced>
}

interface Options {
  readonly membership: Membership
  readonly registration: Registration
  readonly settings: Pick<Settings, "heartbeatInterval" | "staleWorkerTimeout">
  readonly log: Pick<ActivityStream, "record">
  readonly retryLog: RetryLog
  /** What every heartbeat records for people to read. */
  readonly displayed: () => Displayed
  /** Called when `suspended` has changed. */
  readonly onChange: () => void
}

interface State {
  /** `Clock.monotonicTimeNanos` before the last heartbeat that succeeded was sent. */
  renewedAt: bigint
  isSuspended: boolean
  /** Opened to end the wait for the next heartbeat. */
  readonly due: Latch.Latch
}

/**
 * A worker that could not renew for this fraction of `staleWorkerTimeout` is suspended, before other workers evict it.
 */
const renewalMargin = 0.8

const renewing = "The heartbeat"

/**
 * How long a change of what is displayed waits: a switch of generations changes it several times, and ranges must not
 * wait for heartbeats, which use the same session as the decisions.
 */
const displayDelay = Duration.millis(100)

/** Maximum interval between heartbeats while they fail. */
const longestRetryInterval = Duration.seconds(1)

/** Makes the heartbeat of a new registration. The registration itself counts as the first heartbeat. */
export const make = Effect.fnUntraced(function*(options: Options): Effect.fn.Return<Heartbeat> {
  const state: State = {
    renewedAt: yield* Clock.monotonicTimeNanos,
    isSuspended: false,
    due: Latch.makeUnsafe(false)
  }
  return {
    suspended: () => state.isSuspended,
    beatSoon: () => state.due.openUnsafe(),
    // Concurrently, because a heartbeat without an answer ends too late to suspend the worker.
    run: Effect.raceFirst(renew(options, state), suspendWhenOverdue(options, state)).pipe(
      Effect.ensuring(options.retryLog.ended(renewing))
    )
  }
})

const renew = Effect.fnUntraced(function*(
  options: Options,
  state: State
): Effect.fn.Return<never, WorkerEvicted | WorkerReplaced> {
  const interval = options.settings.heartbeatInterval
  let pause = interval
  while (true) {
    const changed = yield* Effect.timeoutOption(state.due.await, pause)
    if (Option.isSome(changed)) yield* Effect.sleep(displayDelay)
    // Before the heartbeat reads what it displays, so that a later change causes another heartbeat.
    state.due.closeUnsafe()
    const sentAt = yield* Clock.monotonicTimeNanos
    const result = yield* Effect.result(options.membership.heartbeat(options.registration, options.displayed()))
    if (result._tag === "Success") {
      yield* renewed(options, state, sentAt)
      pause = interval
    } else if (result.failure._tag === "WorkerEvicted" || result.failure._tag === "WorkerReplaced") {
      return yield* result.failure
    } else {
      yield* options.retryLog.failed(renewing, result.failure.message)
      pause = Duration.min(interval, longestRetryInterval)
    }
  }
})

const renewed = Effect.fnUntraced(function*({ log, onChange, retryLog }: Options, state: State, sentAt: bigint) {
  state.renewedAt = sentAt
  yield* retryLog.succeeded(renewing)
  const took = Duration.nanos((yield* Clock.monotonicTimeNanos) - sentAt)
  yield* log.record(Activity.HeartbeatRenewed({ took }))
  if (!state.isSuspended) return
  state.isSuspended = false
  yield* log.record(Activity.Resumed())
  onChange()
})

const suspendWhenOverdue = Effect.fnUntraced(function*({ log, onChange, settings }: Options, state: State) {
  const margin = Duration.times(settings.staleWorkerTimeout, renewalMargin)
  while (true) {
    const silent = Duration.nanos((yield* Clock.monotonicTimeNanos) - state.renewedAt)
    const isOverdue = Duration.isGreaterThan(silent, margin)
    if (isOverdue && !state.isSuspended) {
      state.isSuspended = true
      yield* log.record(Activity.Suspended())
      onChange()
    }
    yield* Effect.sleep(isOverdue ? margin : Duration.sum(Duration.subtract(margin, silent), Duration.millis(1)))
  }
})
