/** Reports handler calls that run for long: at which event, and since when. */
import * as Clock from "effect/Clock"
import * as Duration from "effect/Duration"
import * as Effect from "effect/Effect"
import { Activity } from "../../schema/Activity.ts"
import type { ActivityStream } from "../telemetry/ActivityStream.ts"
import * as Attempt from "./Attempt.ts"
import type { Ranges } from "./Ranges.ts"
import type { RangeState } from "./RangeState.ts"

/** The last reported call of each range, and after which time it is reported again. */
export type LongHandlers = WeakMap<Readonly<RangeState>, { readonly since: bigint; readonly nextNanos: bigint }>

/** A call is reported after this time, and whenever its time has doubled since. */
const firstReportNanos = 30_000_000_000n

/** Reports the calls that have become due since the last check. `now` is the time of the monotonic clock. */
export const report = Effect.fnUntraced(function*(
  reported: LongHandlers,
  ranges: Ranges,
  { record }: Pick<ActivityStream, "record">,
  now: bigint
) {
  for (const range of ranges.all.values()) {
    const call = range.attempt === undefined ? undefined : Attempt.currentCall(range.attempt)
    if (call === undefined) continue
    const last = reported.get(range)
    const due = last?.since === call.since ? last.nextNanos : firstReportNanos
    const elapsed = now - call.since
    if (elapsed < due) continue
    reported.set(range, { since: call.since, nextNanos: 2n * elapsed })
    const runsFor = Duration.nanos(elapsed)
    const startedAt = new Date((yield* Clock.currentTimeMillis) - Duration.toMillis(runsFor))
    const { held: { projection, range: hashes } } = range
    const { event: { eventId, eventType, globalPosition: position }, events } = call
    yield* record(
      Activity.HandlerRunsLong({ projection, range: hashes, position, eventId, eventType, events, startedAt, runsFor })
    )
  }
})
