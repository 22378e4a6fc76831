/** The shared state of one run: its scenario, its workers, the read models, the trace. */
import type * as Exit from "effect/Exit"
import * as EventFilter from "../../src/schema/EventFilter.ts"
import type { Ordering } from "../../src/schema/Ordering.ts"
import type { ParkedEvent } from "../../src/schema/ParkedEvent.ts"
import type { Registration } from "../../src/schema/Worker.ts"
import { Chance } from "./Chance.ts"
import type { Coverage } from "./Coverage.ts"
import type { Keyed, Keys, Scenario } from "./Scenario.ts"

/** What a projection has recorded of the events of one key. */
export interface Effects {
  readonly count: number
  /** The position of the last event. */
  readonly position: bigint
  readonly ordered: boolean
}

export const noEffects: Effects = { count: 0, position: 0n, ordered: true }

/** The effects after one more event. */
export const effectsAfter = (effects: Effects, position: bigint): Effects => ({
  count: effects.count + 1,
  position,
  ordered: effects.ordered && position > effects.position
})

/** A committed event, as the checkers receive it. */
export interface Committed extends Keyed {
  readonly aggregateType: string
  readonly eventType: string
  readonly version: bigint
  readonly position: number
}

/** A projection and the read model that it should produce. */
export class Subject {
  readonly name: string
  readonly filter: EventFilter.EventFilter
  readonly ordering: Ordering
  readonly keys: Keys
  readonly isWhole: boolean
  /** Whether it parks events at which its handler fails. */
  readonly parks: boolean
  readonly window: Scenario["projections"][number]["window"]
  /** The matching events by key, in the order of their positions. */
  readonly expected = new Map<string, Array<Committed>>()
  /** The position at which its progress began. */
  startedAt: bigint | undefined

  constructor({ filter, isWhole, keys, mayPark, name, ordering, window }: Scenario["projections"][number]) {
    this.name = name
    this.filter = filter
    this.keys = keys
    this.ordering = ordering
    this.isWhole = isWhole
    this.parks = mayPark && ordering === "aggregate"
    this.window = window
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
}

/** The read models as committed. */
export interface ReadModel {
  readonly effects: (projection: string, key: string) => Effects
  /** Whether the projection has received all of its events in position order. Absent where that is not recorded. */
  readonly isInPositionOrder?: (projection: string) => boolean
  /** The count in the row that all keys of a projection share. */
  readonly total: (projection: string) => number
}

/** What is known about the events. */
export interface Events {
  /** The number of committed events. */
  readonly committed: number
  /** The position up to which everything has to be handled once no writer is open. */
  readonly end: number
  readonly hashOf: (key: string) => number
}

/** The times, in milliseconds of the run, at which the ailments of one worker end. */
export interface Ailments {
  awayUntil: number
  failingUntil: number
  lossyUntil: number
  slowUntil: number
  slowMillis: number
  /** Until then it may be unable to renew its heartbeat, for reasons of its own. */
  cutOffUntil: number
  handlerSlowUntil: number
  handlerFailsUntil: number
  handlerStuckUntil: number
}

/** How a worker is started. */
export interface Start {
  readonly workerId: string
  readonly carries: ReadonlyArray<string>
  readonly replicaSet?: string
  readonly otherFilter?: boolean
  readonly otherKey?: boolean
  /** The `concurrency` of its projections. */
  readonly concurrency?: number
  /** The newest version of events that its event sets declare. Default: that of the newest version of the application. */
  readonly version?: number
  /** It runs `catchUp`, and leaves when it has handled all events. */
  readonly catchesUp?: boolean
}

export class Worker {
  readonly name: string
  readonly workerId: string
  readonly replicaSet: string
  readonly start: Start
  readonly ailments: Ailments = {
    awayUntil: 0,
    failingUntil: 0,
    lossyUntil: 0,
    slowUntil: 0,
    slowMillis: 1,
    cutOffUntil: 0,
    handlerSlowUntil: 0,
    handlerFailsUntil: 0,
    handlerStuckUntil: 0
  }
  /** Keys of rows whose last write was applied while the answer to the worker was lost. */
  readonly unanswered = new Set<string>()
  /** Keys of rows whose halt was recorded while the answer to the worker was lost. */
  readonly unansweredHalts = new Set<string>()
  isFrozen = false
  /** It was killed: nothing that it does has any effect. */
  isCut = false
  /** It has been asked to stop. */
  leaving = false
  registration: Registration | undefined
  /** The number of registrations that were acknowledged to it. */
  registrations = 0
  exit: Exit.Exit<unknown, unknown> | undefined

  constructor(name: string, start: Start) {
    this.name = name
    this.workerId = start.workerId
    this.replicaSet = start.replicaSet ?? "main"
    this.start = start
  }

  get catchesUp(): boolean {
    return this.start.catchesUp === true
  }

  get isRunning(): boolean {
    return !this.isCut && this.exit === undefined && !this.leaving
  }
}

export class Run {
  readonly scenario: Scenario
  readonly coverage: Coverage
  /** Milliseconds since the start of the run. */
  readonly now: () => number
  readonly events: Events
  readonly model: ReadModel
  /** Random choices during the run: latencies, and which calls fail. */
  readonly chance: Chance
  readonly subjects: ReadonlyMap<string, Subject>
  /** The newest committed event of each aggregate. */
  private readonly newest = new Map<string, Committed>()
  /** All workers that were ever started. */
  readonly workers: Array<Worker> = []
  readonly owners = new Map<bigint, Worker>()
  readonly trace: Array<string> = []
  readonly violations: Array<string> = []
  /** Positions of events whose handlers took long, by projection. */
  readonly slow = new Map<string, Set<bigint>>()
  /** Positions of events that failed alone, or that the handler of a batch named, by projection. */
  readonly failed = new Map<string, Set<bigint>>()
  /** The parked events of a projection as committed; none where parking is not simulated. */
  parked: (projection: string) => ReadonlyArray<ParkedEvent> = () => []
  /** The parked events as observed last, by projection, and the numbers of events that were dropped, by key. */
  private readonly observed = new Map<string, ReadonlyArray<ParkedEvent>>()
  private readonly dropped = new Map<string, Map<string, number>>()
  /** The database is unreachable for all workers until then. */
  awayUntil = 0
  /** Notifications may be lost or late until then. */
  deafUntil = 0

  constructor(options: Pick<Run, "scenario" | "coverage" | "now" | "events" | "model">) {
    this.scenario = options.scenario
    this.coverage = options.coverage
    this.now = options.now
    this.events = options.events
    this.model = options.model
    this.chance = new Chance(options.scenario.seed, 4)
    this.subjects = new Map(
      options.scenario.projections.map((projection) => [projection.name, new Subject(projection)])
    )
  }

  readonly say = (who: string, what: string, at = this.now()): void => {
    this.trace.push(`${String(at).padStart(7)} ${who.padEnd(9)} ${what}`)
  }

  readonly violation = (text: string, at = this.now()): void => {
    this.say("!", text, at)
    this.violations.push(`${text} (at ${at} ms)`)
  }

  readonly takesLong = (subject: Subject, position: bigint): void => {
    this.slow.set(subject.name, (this.slow.get(subject.name) ?? new Set()).add(position))
  }

  readonly fails = (subject: Subject, position: bigint): void => {
    this.failed.set(subject.name, (this.failed.get(subject.name) ?? new Set()).add(position))
  }

  committed(event: Committed): void {
    const before = this.newest.get(event.aggregateId)
    if (before !== undefined && !(before.version < event.version && before.position < event.position)) {
      this.violation(`P2: version ${event.version} of ${event.aggregateId} is at position ${event.position}`)
    }
    this.newest.set(event.aggregateId, event)
    for (const subject of this.subjects.values()) subject.committed(event)
  }

  /** Returns after how many milliseconds a notification arrives; undefined if it is lost. */
  delivery(): number | undefined {
    const { latency } = this.scenario
    if (this.now() >= this.deafUntil) return latency === 0 ? 0 : this.chance.int(0, latency)
    if (this.chance.bool(0.5)) {
      this.coverage.count("faults", "notification lost")
      return undefined
    }
    this.coverage.count("faults", "notification delayed")
    return this.chance.int(1, 1500)
  }

  /** Notices which events were parked, retried or dropped since the last call, or before their requests change. */
  readonly observeParked = (projection: string): void => {
    const [before, after] = [this.observed.get(projection) ?? [], this.parked(projection)]
    if (before === after) return
    this.observed.set(projection, after)
    const positions = new Set(after.map(({ position }) => position))
    const known = new Set(before.map(({ position }) => position))
    for (const { attempts, position } of after) {
      if (!known.has(position)) this.coverage.count("steps", attempts > 0 ? "park an event" : "queue an event")
    }
    const dropped = this.dropped.get(projection) ?? new Map<string, number>()
    this.dropped.set(projection, dropped)
    for (const { key, position, request } of before) {
      if (positions.has(position)) continue
      this.coverage.count("steps", request === "drop" ? "drop a parked event" : "handle a parked event")
      if (request === undefined) {
        this.violation(`P3: position ${position} of ${projection} was unparked without a request`)
      }
      if (request === "drop") dropped.set(key, (dropped.get(key) ?? 0) + 1)
    }
  }

  /** The parked events of a key, and how many of its events were dropped. */
  readonly withheld = (projection: string, key: string) => ({
    parked: this.parked(projection).filter((event) => event.key === key),
    dropped: this.dropped.get(projection)?.get(key) ?? 0
  })

  /** Returns a key with an unhandled event of the projection at or below a position. */
  readonly missing = (subject: Subject, position: number): string | undefined => {
    for (const key of subject.expected.keys()) {
      const before = subject.foldedUpTo(key, Number(subject.startedAt ?? 0n))
      const { dropped, parked } = this.withheld(subject.name, key)
      const expected = subject.foldedUpTo(key, position) - before - dropped - parked.length
      if (this.model.effects(subject.name, key).count < expected) return key
    }
    return undefined
  }
}
