/** Computes pauses, moves and delays from the activity of a fleet. */
import { HashRange } from "pupsourcing-orchestrator"
import type { Appended, Entry } from "./Messages.ts"

/** A time in which no worker processed a part of the hash space, between two owners or two times of the same one. */
export interface Gap {
  readonly before: string
  readonly after: string
  readonly from: number
  readonly pause: number
}

interface Owner {
  readonly worker: string
  /** The entry with which its runner ended; undefined while it runs. */
  stopped: Entry | undefined
}

/** The borders of all ranges in the entries, so that between two of them all hashes have the same owners. */
const bordersOf = (entries: ReadonlyArray<Entry>): ReadonlyArray<number> =>
  [...new Set(entries.flatMap(({ range }) => range === undefined ? [] : [range.start, range.end]))]
    .sort((a, b) => a - b)

/** The claims and stops of one projection, in the order of their times. */
const ownershipOf = (
  entries: ReadonlyArray<Entry>,
  projection: string
): ReadonlyArray<Entry & { range: HashRange.HashRange }> =>
  entries
    .filter((entry): entry is Entry & { range: HashRange.HashRange } =>
      entry.projection === projection && entry.range !== undefined &&
      (entry.tag === "RangeClaimed" || entry.tag === "RangeStopped")
    )
    .sort((a, b) => a.at - b.at)

/**
 * The pauses of a projection since a time, each once, however many hashes it concerns. A worker that was killed reports no
 * stop; its successor's claim is a pause of zero.
 */
export const gaps = (entries: ReadonlyArray<Entry>, projection: string, since: number): ReadonlyArray<Gap> => {
  const ownership = ownershipOf(entries, projection)
  const borders = bordersOf(ownership)
  const found = new Map<string, Gap>()
  for (const hash of borders.slice(0, -1)) {
    let owner: Owner | undefined
    for (const entry of ownership) {
      if (!HashRange.includes(entry.range, hash)) continue
      if (entry.tag === "RangeStopped") {
        if (owner?.worker === entry.worker) owner.stopped = entry
        continue
      }
      if (owner !== undefined && entry.at >= since) {
        const from = owner.stopped?.at ?? entry.at
        const gap = { before: owner.worker, after: entry.worker, from, pause: entry.at - from }
        found.set(`${gap.before} ${from} ${gap.after} ${entry.at}`, gap)
      }
      owner = { worker: entry.worker, stopped: undefined }
    }
  }
  return [...found.values()]
}

/** The largest number of times that a hash has changed its owner in the interval. */
export const mostMoves = (entries: ReadonlyArray<Entry>, projection: string, from: number, until: number): number => {
  const ownership = ownershipOf(entries, projection).filter(({ at, tag }) => at < until && tag === "RangeClaimed")
  return Math.max(
    0,
    ...bordersOf(ownership).slice(0, -1).map((hash) => {
      let owner: string | undefined
      let moves = 0
      for (const { at, range, worker } of ownership) {
        if (!HashRange.includes(range, hash)) continue
        if (at >= from && owner !== undefined && owner !== worker) moves++
        owner = worker
      }
      return moves
    })
  )
}

/** The delay of one event: from the time at which its append was due to the confirmation of the commit that handled it. */
export interface Delay {
  readonly due: number
  readonly millis: number
}

/**
 * The delays of appended events: each is handled by the first reported commit of a range that contains its hash and
 * reaches its position. Events without such a commit are missing from the result. `hashes` maps positions to hashes.
 */
export const delays = (
  due: ReadonlyArray<number>,
  { positions }: Pick<Appended, "positions">,
  hashes: ReadonlyMap<number, number>,
  entries: ReadonlyArray<Entry>,
  projection: string
): ReadonlyArray<Delay> => {
  const commits = entries
    .filter((entry) => entry.tag === "BatchCommitted" && entry.projection === projection)
    .sort((a, b) => a.at - b.at)
  let pending = positions.map((position, index) => ({ position, due: due[index]!, hash: hashes.get(position)! }))
    .sort((a, b) => a.position - b.position)
  const found: Array<Delay> = []
  for (const { at, position: upTo, range } of commits) {
    let index = 0
    const rest: typeof pending = []
    for (; index < pending.length && pending[index]!.position <= upTo!; index++) {
      const event = pending[index]!
      if (HashRange.includes(range!, event.hash)) found.push({ due: event.due, millis: at - event.due })
      else rest.push(event)
    }
    if (index > 0) pending = [...rest, ...pending.slice(index)]
  }
  return found
}
