/** A projection, and the read model that it should produce. */
import * as EventFilter from "../../src/schema/EventFilter.ts"
import type { Keyed, Keys } from "./Keys.ts"
import type { Scenario } from "./Scenario.ts"

/** What a projection has recorded of the events of one key. */
export interface Effects {
  readonly count: number
  /** The position of the last event. */
  readonly position: bigint
  readonly ordered: boolean
  /** All of its events, the last one first. */
  readonly handled: Handled | undefined
}

interface Handled {
  readonly position: bigint
  readonly before: Handled | undefined
}

export const noEffects: Effects = { count: 0, position: 0n, ordered: true, handled: undefined }

/** The effects after one more event. */
export const effectsAfter = (effects: Effects, position: bigint): Effects => ({
  count: effects.count + 1,
  position,
  ordered: effects.ordered && position > effects.position,
  handled: { position, before: effects.handled }
})

/** The positions of all handled events. */
export const positionsOf = ({ handled }: Effects): ReadonlySet<bigint> => {
  const positions = new Set<bigint>()
  for (let each = handled; each !== undefined; each = each.before) positions.add(each.position)
  return positions
}

/** A committed event, as the checkers receive it. */
export interface Committed extends Keyed {
  readonly aggregateType: string
  readonly eventType: string
  readonly version: bigint
  readonly position: number
}

type Drawn = Scenario["projections"][number]

export class Subject implements Drawn {
  readonly name: string
  readonly filter: EventFilter.EventFilter
  readonly ordering: Drawn["ordering"]
  readonly keys: Keys
  readonly isWhole: boolean
  readonly onFailure: Drawn["onFailure"]
  readonly delivery: Drawn["delivery"]
  readonly window: Drawn["window"]
  /** The matching events by key, in the order of their positions. */
  readonly expected = new Map<string, Array<Committed>>()
  /** The position at which its progress began. */
  startedAt: bigint | undefined

  constructor({ delivery, filter, isWhole, keys, name, onFailure, ordering, window }: Drawn) {
    this.name = name
    this.filter = filter
    this.keys = keys
    this.ordering = ordering
    this.isWhole = isWhole
    // Parking with global order is refused.
    this.onFailure = onFailure === "park" && ordering === "global" ? "halt" : onFailure
    this.delivery = delivery
    this.window = window
  }

  get isAtLeastOnce(): boolean {
    return this.delivery === "at-least-once"
  }

  committed(event: Committed): void {
    if (!EventFilter.matches(this.filter, { ...event, boundedContext: "app" })) return
    const key = this.keys.of(event)
    const events = this.expected.get(key) ?? []
    this.expected.set(key, events)
    // Aggregates that share a key may commit out of order.
    const later = events.findLastIndex(({ position }) => position < event.position) + 1
    events.splice(later, 0, event)
  }

  /** The number of the key's events at or below a position. */
  foldedUpTo(key: string, position: number): number {
    const events = this.expected.get(key) ?? []
    let low = 0
    let high = events.length
    while (low < high) {
      const middle = (low + high) >> 1
      if (events[middle]!.position <= position) low = middle + 1
      else high = middle
    }
    return low
  }

  /** The key's events up to a position, from the one at which its progress began. */
  events(key: string, position: number): ReadonlyArray<Committed> {
    const from = this.foldedUpTo(key, Number(this.startedAt ?? 0n))
    return this.expected.get(key)!.slice(from, this.foldedUpTo(key, position))
  }
}
