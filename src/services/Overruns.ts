/**
 * Handlers that took so long at one event that their batch was lost: because they kept the process from everything else
 * it has to do, or because what they waited for outlived the connection.
 *
 * It outlives the ranges in which that happens. A process that is kept from its heartbeats loses its ranges to another,
 * which is kept from them next: only who remembers across its own evictions can tell that it is the handler.
 *
 * @since 0.1.0
 */

/**
 * @category models
 * @since 0.1.0
 */
export interface Overruns {
  /** How often that happened at the event of this position, which has not been handled here since. */
  readonly count: (projection: string, position: bigint) => number
  readonly note: (projection: string, position: bigint) => void
  /** The event was handled. */
  readonly forget: (projection: string, position: bigint) => void
}

/** What others have handled since stays; the oldest makes room. */
const mostKept = 1000

/**
 * @category constructors
 * @since 0.1.0
 */
export const make = (): Overruns => {
  const counts = new Map<string, number>()
  const key = (projection: string, position: bigint) => `${position} ${projection}`
  const count: Overruns["count"] = (projection, position) =>
    counts.size === 0 ? 0 : counts.get(key(projection, position)) ?? 0
  return {
    count,
    note: (projection, position) => {
      const times = count(projection, position) + 1
      // The newest is the last.
      counts.delete(key(projection, position))
      counts.set(key(projection, position), times)
      for (const oldest of counts.keys()) {
        if (counts.size <= mostKept) break
        counts.delete(oldest)
      }
    },
    forget: (projection, position) => {
      if (counts.size > 0) counts.delete(key(projection, position))
    }
  }
}
