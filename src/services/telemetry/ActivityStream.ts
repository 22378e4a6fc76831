/**
 * The log of a worker's activity: each entry updates the metrics and is published to the bounded stream, synchronously,
 * so that both cover the same activity.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import { Activity } from "../../schema/Activity.ts"
import * as Metrics from "./Metrics.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface ActivityStream {
  readonly record: (activity: Activity) => Effect.Effect<void>
  /** Emits entries that describe the present state first, then each new entry. */
  readonly stream: Stream.Stream<Activity>
}

/** Number of entries buffered for each subscriber. Further entries are dropped and counted in `Missed`. */
const capacity = 1024

interface Subscriber {
  readonly queue: Queue.Queue<Activity>
  missed: number
}

/**
 * Makes an activity log. Each new subscriber first receives the entries that `present()` returns.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (replicaSet: string, present: () => ReadonlyArray<Activity>): ActivityStream => {
  const subscribers = new Set<Subscriber>()

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
        Metrics.record(replicaSet, activity),
        Effect.sync(() => publish(activity))
      ),
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
