/** The event whose handler fails: how often it has failed, and the projection's own schedule of further attempts. */
import * as Cause from "effect/Cause"
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Pull from "effect/Pull"
import * as Schedule from "effect/Schedule"
import type { Event } from "../../schema/Event.ts"
import * as FailurePolicy from "../../schema/FailurePolicy.ts"
import { errorText, stackText } from "../ErrorText.ts"
import type * as Projection from "../Projection.ts"
import type { HaltReason } from "./HaltReason.ts"

export interface FailingEvent {
  readonly event: Pick<Event, "eventId" | "globalPosition">
  /** How often the handler has failed at the event. */
  attempts: number
  /** When it failed first, in nanoseconds of the monotonic clock. */
  readonly since: bigint
  /** The state of the schedule; undefined until its first use. */
  step: Step | undefined
  /**
   * What happens to the event, if its handler must not be called again: the handler may crash the server, and so end
   * the epoch in which this has to be recorded.
   */
  verdict: Verdict | undefined
}

/** What happens to an event that is given up. */
export interface Verdict {
  readonly decision: FailurePolicy.FailureDecision
  readonly reason: HaltReason
}

type Step = (
  now: number,
  input: never
) => Effect.Effect<[unknown, Duration.Duration], Cause.Done<unknown> | undefined>

/** Whether the record is about the event. In another server epoch, its position may be that of another event. */
export const isOf = (failing: FailingEvent | undefined, { eventId }: Event): failing is FailingEvent =>
  failing?.event.eventId === eventId

/** Returns the record of an event: the present one, or a new one after the first failure. */
export const of = (failing: FailingEvent | undefined, event: Event): Effect.Effect<FailingEvent> =>
  isOf(failing, event)
    ? Effect.succeed(failing)
    : Effect.map(Clock.monotonicTimeNanos, (since) => ({
      event,
      attempts: 1,
      since,
      step: undefined,
      verdict: undefined
    }))

/** Returns the record with one more failure of the event. */
export const failed = (failing: FailingEvent | undefined, event: Event): Effect.Effect<FailingEvent> =>
  Effect.tap(of(failing, event), (record) =>
    Effect.sync(() => {
      if (record === failing) record.attempts++
    }))

/**
 * Returns how long to wait before the handler is called again; none if the schedule of the projection has ended. A
 * schedule that throws is a bug of the application: it counts as ended, so that the event's failure policy applies.
 */
export const delay = Effect.fnUntraced(function*(
  failing: FailingEvent,
  { name, retry }: Pick<Projection.Any, "name" | "retry">,
  { error }: FailurePolicy.Typed
): Effect.fn.Return<Option.Option<Duration.Duration>> {
  if (retry === undefined) return Option.none()
  const step = failing.step ??= yield* Schedule.toStep(retry)
  const now = yield* Clock.currentTimeMillis
  return yield* step(now, error as never).pipe(
    Effect.map(([, delay]) => Option.some(delay)),
    Pull.catchDone(() => Effect.succeedNone),
    Effect.catchCause((cause) =>
      Effect.as(
        Effect.logError(
          `The retry schedule of projection "${name}" failed, so the event is not tried again: ${errorText(cause)}${
            stackText(cause)
          }`
        ),
        Option.none()
      )
    )
  )
})

/** Returns what happens to the event. A function that throws is a bug of the application, and the range is halted. */
export const decide = (
  event: Event,
  { name, onFailure }: Pick<Projection.Any, "name" | "onFailure">,
  typed: FailurePolicy.Typed | undefined
): Effect.Effect<FailurePolicy.FailureDecision> =>
  Effect.sync(() => FailurePolicy.decide(onFailure, event, typed)).pipe(
    Effect.catchDefect((defect) => {
      const cause = Cause.die(defect)
      return Effect.as(
        Effect.logError(
          `onFailure of projection "${name}" failed, so the range is halted: ${errorText(cause)}${stackText(cause)}`
        ),
        "halt" as const
      )
    })
  )

/** How the failures of the event are recorded with it when it is parked. */
export const describe = Effect.fnUntraced(function*(
  failing: FailingEvent | undefined,
  event: Event,
  { error, tag }: HaltReason
) {
  const now = yield* Clock.monotonicTimeNanos
  const { attempts, since } = yield* of(failing, event)
  return {
    attempts,
    since: Duration.nanos(now - since),
    errorTag: tag,
    errorMessage: error
  }
})
