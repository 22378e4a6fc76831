/** Orderings of projections, and which worker owns a projection that is ordered globally. */

/**
 * In which order a projection receives events.
 *
 * - `"aggregate"`: the events of one aggregate (with `partitionBy`, of one key) in order; the projection is divided
 *   among the workers.
 * - `"global"`: all events in the order of their positions, one at a time. One worker owns the whole projection.
 *
 * @category models
 * @since 0.1.0
 */
export type Ordering = "aggregate" | "global"

/**
 * Returns which of the workers owns a projection that is ordered globally; undefined if there is none. Projections are
 * spread over the workers by their names. A worker that joins takes over only projections that it will own, and only
 * the projections of a worker that leaves move to others (rendezvous hashing: Thaler and Ravishankar, "Using
 * Name-Based Mappings to Increase Hit Rates", 1998).
 */
export const owner = (projection: string, workerIds: ReadonlyArray<string>): string | undefined => {
  let best: { readonly workerId: string; readonly score: number } | undefined
  for (const workerId of workerIds) {
    const score = hash(`${projection}\0${workerId}`)
    if (best === undefined || score > best.score || (score === best.score && workerId > best.workerId)) {
      best = { workerId, score }
    }
  }
  return best?.workerId
}

/** FNV-1a over the UTF-16 units, with the finalizer of MurmurHash3, without which similar ids have similar scores. */
const hash = (text: string): number => {
  let hash = 0x811c9dc5
  for (let index = 0; index < text.length; index++) hash = Math.imul(hash ^ text.charCodeAt(index), 0x01000193)
  hash = Math.imul(hash ^ (hash >>> 16), 0x85ebca6b)
  hash = Math.imul(hash ^ (hash >>> 13), 0xc2b2ae35)
  return (hash ^ (hash >>> 16)) >>> 0
}
