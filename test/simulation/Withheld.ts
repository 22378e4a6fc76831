/**
 * The events that have no effects in the read models although the rows have passed them: parked, dropped and skipped
 * events.
 */
import type { ParkedEvent } from "../../src/schema/ParkedEvent.ts"

/** What the checkers use of a parked event. */
export type Parked = Pick<ParkedEvent, "attempts" | "eventId" | "key" | "keyHash" | "position" | "request">

const none: ReadonlySet<bigint> = new Set()

export class Withheld {
  private readonly parkedNow = new Map<string, ReadonlyArray<Parked>>()
  /** The positions of all events that were ever parked, by projection. */
  private readonly everParked = new Map<string, Set<bigint>>()
  /** The positions of dropped and skipped events, by projection and key. */
  private readonly left = new Map<string, Set<bigint>>()

  /** The parked events of a projection as committed, in position order. */
  parked(projection: string): ReadonlyArray<Parked> {
    return this.parkedNow.get(projection) ?? []
  }

  isParked(projection: string, position: bigint): boolean {
    return this.parked(projection).some((event) => event.position === position)
  }

  setParked(projection: string, parked: ReadonlyArray<Parked>): void {
    this.parkedNow.set(projection, parked)
    const ever = this.everParked.get(projection) ?? new Set()
    this.everParked.set(projection, ever)
    for (const { position } of parked) ever.add(position)
  }

  wasParked(projection: string, position: bigint): boolean {
    return this.everParked.get(projection)?.has(position) === true
  }

  /** Records that an event was dropped or skipped. */
  leaveOut(projection: string, key: string, position: bigint): void {
    const name = `${projection}/${key}`
    this.left.set(name, (this.left.get(name) ?? new Set()).add(position))
  }

  /** The events of a key that are withheld. */
  of(projection: string, key: string) {
    return {
      parked: this.parked(projection).filter((event) => event.key === key),
      left: this.left.get(`${projection}/${key}`) ?? none
    }
  }
}
