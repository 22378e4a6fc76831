/**
 * Records a worker's activity: each entry produces its outputs of `Telemetry`, changes the health, and is published to the
 * bounded stream, synchronously, so that logs, metrics, health and stream cover the same activity.
 */
import * as Clock from "effect/Clock"
import type * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import { Activity } from "../../schema/Activity.ts"
import * as Health from "../../schema/Health.ts"
import * as Gauges from "./Gauges.ts"
import * as Spans from "./Spans.ts"
import * as Telemetry from "./Telemetry.ts"

export interface ActivityStream {
  readonly record: (activity: Activity) => Effect.Effect<void>
  /** What has been recorded of the worker's health. */
  readonly health: Effect.Effect<Health.Observed>
  /** Emits entries that describe the present state first, then each new entry. */
  readonly stream: Stream.Stream<Activity>
}

/** Number of entries buffered for each subscriber. Further entries are dropped and counted in `Missed`. */
const capacity = 1024

interface Subscriber {
  readonly queue: Queue.Queue<Activity>
  missed: number
}

/** Each new subscriber first receives the entries that `present()` returns. */
export const make = (replicaSet: string, present: () => ReadonlyArray<Activity>): ActivityStream => {
  const subscribers = new Set<Subscriber>()
  const observeHandOvers = Spans.makeHandOvers(replicaSet)
  let health = Health.nothing

  const publish = (activity: Activity) => {
    for (const subscriber of subscribers) {
      if (subscriber.missed > 0 && Queue.offerUnsafe(subscriber.queue, Activity.Missed({ count: subscriber.missed }))) {
        subscriber.missed = 0
      }
      if (subscriber.missed > 0 || !Queue.offerUnsafe(subscriber.queue, activity)) subscriber.missed++
    }
  }

  return {
    record: (activity) =>
      Effect.andThen(
        Effect.andThen(Telemetry.emit(replicaSet, activity), observeHandOvers(activity)),
        Effect.contextWith((context: Context.Context<never>) =>
          Effect.map(Clock.monotonicTimeNanos, (now) => {
            const before = health
            health = Health.observe(before, activity, now)
            Gauges.updateUnsafe(replicaSet, activity, before, health, context)
            publish(activity)
          })
        )
      ),
    health: Effect.sync(() => health),
    stream: Stream.unwrap(Effect.gen(function*() {
      const queue = yield* Queue.dropping<Activity>(capacity)
      const subscriber: Subscriber = { queue, missed: 0 }
      yield* Effect.acquireRelease(
        Effect.sync(() => {
          subscribers.add(subscriber)
        }),
        () => Effect.sync(() => subscribers.delete(subscriber))
      )
      return Stream.concat(Stream.fromIterable(present()), Stream.fromQueue(queue))
    }))
  }
}
