/**
 * The calls of the handlers of projections that are delivered at least once, and another store to which they write as
 * docs/ordering-and-delivery.md describes it: it applies a write only if its position is newer.
 *
 * For each claim of a range and each key, a call continues after the last one, or begins after a position at which the
 * worker has held the range, or repeats a batch whose progress could not be written, or handles an event that was parked. What the store has applied must be the fold of the
 * events: `ModelChecker` checks that whenever a row passes them.
 */
import type { Fence } from "../../src/schema/Checkpoint.ts"
import type { Event } from "../../src/schema/Event.ts"
import * as HashRange from "../../src/schema/HashRange.ts"
import type { Delivery } from "../../src/services/Projection.ts"
import type { Run, Worker } from "./Run.ts"
import { type Effects, effectsAfter, noEffects, type Subject } from "./Subject.ts"

/** A position at which a worker has held a range. */
interface Held {
  readonly range: HashRange.HashRange
  readonly position: bigint
  readonly incarnation: bigint
}

/** A row of the other store. */
interface Row {
  readonly effects: Effects
  readonly applied: ReadonlySet<bigint>
}

const noRow: Row = { effects: noEffects, applied: new Set() }

export class Deliveries {
  private readonly run: Run
  private readonly rows = new Map<string, Row>()
  /** The positions of the events whose handler has ended, by projection. */
  private readonly ended = new Map<string, Set<bigint>>()
  /** The positions of the events of a key whose handler has ended, in this order, by claim and key. */
  private readonly endedInClaim = new Map<string, Array<bigint>>()
  private readonly held = new Map<string, Array<Held>>()

  constructor(run: Run) {
    this.run = run
  }

  /** Records that a worker holds a range at a position. */
  holds(projection: string, held: Held): void {
    const positions = this.held.get(projection) ?? []
    this.held.set(projection, positions)
    positions.push(held)
  }

  /** Begins a call of the handler. */
  begin(subject: Subject, worker: Worker, delivery: Delivery["Service"]): Call {
    return new Call(this, subject, worker, delivery)
  }

  row(projection: string, key: string): Row {
    return this.rows.get(`${projection}/${key}`) ?? noRow
  }

  /** Whether the handler has handled an event, and the other store has its effects. */
  isHandled(projection: string, key: string, position: bigint): boolean {
    return this.ended.get(projection)?.has(position) === true && this.row(projection, key).applied.has(position)
  }

  upsert({ keys, name }: Subject, event: Event): void {
    const key = keys.of(event)
    const { applied, effects } = this.row(name, key)
    const { coverage } = this.run
    if (applied.has(event.globalPosition)) coverage.count("steps", "deliver an event again")
    if (effects.position >= event.globalPosition) return
    this.rows.set(`${name}/${key}`, {
      effects: effectsAfter(effects, event.globalPosition),
      applied: new Set(applied).add(event.globalPosition)
    })
    coverage.count("steps", "deliver an event")
  }

  /** Checks the place of an event among those of its key; `before` is the event of the key before it in the same call. */
  checkOrder(subject: Subject, worker: Worker, fence: Fence, event: Event, before: bigint | undefined): void {
    const { globalPosition } = event
    const key = subject.keys.of(event)
    const inClaim = this.endedInClaim.get(claimOf(subject, fence, key)) ?? []
    const last = before ?? inClaim.at(-1)
    const isRepeated = before === undefined && inClaim.includes(globalPosition)
    if (isRepeated || this.isInOrder(subject, fence, key, globalPosition, last)) return
    this.run.violation(
      `P2: ${worker.name} handled ${subject.name}/${key} at ${globalPosition} after ${last ?? "a claim"}`
    )
  }

  private isInOrder(subject: Subject, fence: Fence, key: string, position: bigint, last: bigint | undefined): boolean {
    const { events, withheld } = this.run
    const index = subject.foldedUpTo(key, Number(position)) - 1
    const previous = BigInt(subject.expected.get(key)?.[index - 1]?.position ?? 0)
    if (last === previous || withheld.wasParked(subject.name, position)) return true
    const hash = events.hashOf(key)
    return this.held.get(subject.name)?.some((held) =>
      held.incarnation === fence.incarnation && HashRange.includes(held.range, hash) &&
      previous <= held.position && held.position < position
    ) === true
  }

  end(subject: Subject, fence: Fence, events: ReadonlyArray<Event>): void {
    const ended = this.ended.get(subject.name) ?? new Set()
    this.ended.set(subject.name, ended)
    for (const event of events) {
      ended.add(event.globalPosition)
      const claim = claimOf(subject, fence, subject.keys.of(event))
      const inClaim = this.endedInClaim.get(claim) ?? []
      this.endedInClaim.set(claim, inClaim)
      inClaim.push(event.globalPosition)
    }
  }
}

const claimOf = ({ name }: Subject, { generationId, incarnation }: Fence, key: string): string =>
  `${name}/${key}/${incarnation}/${generationId}`

/** One call of a handler. */
export class Call {
  private readonly deliveries: Deliveries
  private readonly subject: Subject
  private readonly worker: Worker
  private readonly fence: Fence
  private readonly events: Array<Event> = []

  constructor(deliveries: Deliveries, subject: Subject, worker: Worker, { fence }: Delivery["Service"]) {
    this.deliveries = deliveries
    this.subject = subject
    this.worker = worker
    this.fence = fence
  }

  /** Writes the effects of one of its events. */
  handle(event: Event): void {
    const { deliveries, events, fence, subject, worker } = this
    const key = subject.keys.of(event)
    const before = events.findLast((earlier) => subject.keys.of(earlier) === key)?.globalPosition
    deliveries.checkOrder(subject, worker, fence, event, before)
    events.push(event)
    deliveries.upsert(subject, event)
  }

  /** The handler has ended without a failure. */
  end(): void {
    this.deliveries.end(this.subject, this.fence, this.events)
  }
}
