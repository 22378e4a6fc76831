/**
 * The one place where what a worker does becomes visible: metrics and the bounded stream of activity are made here,
 * synchronously, so that neither can miss what the other shows.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import * as Queue from "effect/Queue"
import * as Stream from "effect/Stream"
import { Activity } from "../schema/Activity.ts"
import * as Metrics from "./Metrics.ts"

/**
 * @category models
 * @since 0.1.0
 */
export interface ActivityLog {
  readonly record: (activity: Activity) => Effect.Effect<void>
  /** Begins with the present state, then what happens. */
  readonly stream: Stream.Stream<Activity>
}

/** What a subscriber may lag behind before entries are dropped for it. */
const capacity = 1024

interface Subscriber {
  readonly queue: Queue.Queue<Activity>
  missed: number
}

/**
 * Makes a log whose subscribers are first told `present()`.
 *
 * @category constructors
 * @since 0.1.0
 */
export const make = (replicaSet: string, present: () => ReadonlyArray<Activity>): ActivityLog => {
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
