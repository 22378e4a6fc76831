/** The sample of a replica set, computed from its status. */
import * as Duration from "effect/Duration"
import type { ReplicaSetSample } from "./Activity.ts"
import type * as Status from "./Status.ts"

/** A writer that this worker's reader waits for. */
interface ObservedWriter {
  readonly pid: number | undefined
  readonly openFor: Duration.Duration
}

/** Makes the sample of a replica set. `observed` serves where the status does not show when a writer's transaction began. */
export const make = (
  { at, openWriters = [], replicaSets }: Pick<Status.Status, "at" | "openWriters" | "replicaSets">,
  replicaSet: string,
  observed: ReadonlyArray<ObservedWriter>
): ReplicaSetSample => ({
  settledLag: longest(
    openWriters.map(({ pid, since }) =>
      since === undefined ? observed.find((one) => one.pid === pid)?.openFor ?? Duration.zero : between(since, at)
    )
  ),
  projections: (replicaSets.find((one) => one.replicaSet === replicaSet)?.projections ?? []).map((
    { parked, projection, ranges }
  ) => {
    const waiting = ranges.flatMap(({ changedAt, lag: { oldest } }) =>
      oldest === undefined ? [] : [{ lag: between(oldest, at), unchanged: between(changedAt, at) }]
    )
    return {
      projection,
      lagEvents: ranges.reduce((sum, { lag }) => sum + lag.events, 0n),
      lag: longest(waiting.map(({ lag }) => lag)),
      // An idle range has not changed for long, and is not stalled when its first event arrives.
      stalled: longest(waiting.map(({ lag, unchanged }) => Duration.min(lag, unchanged))),
      rangesWithoutOwner: ranges.filter(({ owner }) => owner === undefined).length,
      parkedEvents: parked?.events ?? 0,
      parkedKeys: parked?.keys ?? 0,
      parkedFor: parked === undefined ? Duration.zero : between(parked.oldest, at)
    }
  })
})

/** Times come from several clocks: of the database, of its clients, and of writers that set `createdAt`. */
const between = (earlier: Date, later: Date): Duration.Duration =>
  Duration.millis(Math.max(0, later.getTime() - earlier.getTime()))

const longest = (durations: ReadonlyArray<Duration.Duration>): Duration.Duration =>
  durations.reduce(Duration.max, Duration.zero)
