/** The shared state of one run: its scenario, its workers, the read models, the trace. */
import type * as Exit from "effect/Exit"
import type { Registration } from "../../src/schema/Worker.ts"
import { Chance } from "./Chance.ts"
import type { Coverage } from "./Coverage.ts"
import { Deliveries } from "./Deliveries.ts"
import type { Scenario } from "./Scenario.ts"
import { type Committed, type Effects, positionsOf, Subject } from "./Subject.ts"
import { Withheld } from "./Withheld.ts"

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
  readonly withheld = new Withheld()
  readonly deliveries: Deliveries
  /** Positions of events that operators asked to skip, by projection. */
  readonly skipRequests = new Map<string, Set<bigint>>()
  /** Positions of events that were skipped because of such a request, by projection. */
  readonly skippedOnRequest = new Map<string, Set<bigint>>()
  /** The database is unreachable for all workers until then. */
  awayUntil = 0
  /** The handlers of all workers fail at many events until then. */
  handlersFailUntil = 0
  /** Notifications may be lost or late until then. */
  deafUntil = 0

  constructor(options: Pick<Run, "scenario" | "coverage" | "now" | "events" | "model">) {
    this.scenario = options.scenario
    this.coverage = options.coverage
    this.now = options.now
    this.events = options.events
    this.model = options.model
    this.chance = new Chance(options.scenario.seed, 4)
    this.deliveries = new Deliveries(this)
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

  readonly takesLong = (subject: Subject, position: bigint): void => note(this.slow, subject.name, position)

  readonly fails = (subject: Subject, position: bigint): void => note(this.failed, subject.name, position)

  /** Whether the handler may have failed at the event: it did, or it took long. */
  readonly mayHaveFailed = (projection: string, position: bigint): boolean =>
    has(this.failed, projection, position) || has(this.slow, projection, position)

  readonly askToSkip = (projection: string, position: bigint): void => note(this.skipRequests, projection, position)

  /** A commit has skipped the event at which a range was halted, because of a request. */
  readonly skipOnRequest = (projection: string, position: bigint): void => {
    if (!has(this.skipRequests, projection, position)) return
    note(this.skippedOnRequest, projection, position)
  }

  /** The effects of a key's events in the read model, or in the other store. */
  readonly effects = ({ isAtLeastOnce, name }: Subject, key: string): Effects =>
    isAtLeastOnce ? this.deliveries.row(name, key).effects : this.model.effects(name, key)

  private maySkip({ name, onFailure }: Subject, position: bigint): boolean {
    return has(this.skippedOnRequest, name, position) || (onFailure === "skip" && this.mayHaveFailed(name, position))
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

  /**
   * Returns the events of a key up to a position that were neither handled nor withheld. Records those that may have been
   * skipped.
   */
  readonly unhandled = (subject: Subject, key: string, position: number): ReadonlyArray<Committed> => {
    const { name } = subject
    const { left, parked } = this.withheld.of(name, key)
    const events = subject.events(key, position)
    const effects = this.effects(subject, key)
    if (!subject.isAtLeastOnce && effects.count >= events.length - left.size - parked.length) return []
    const handled = subject.isAtLeastOnce ? undefined : positionsOf(effects)
    const withheld = new Set([...left, ...parked.map(({ position }) => position)])
    return events.filter((event) => {
      const at = BigInt(event.position)
      if (handled === undefined ? this.deliveries.isHandled(name, key, at) : handled.has(at)) return false
      if (withheld.has(at)) return false
      if (!this.maySkip(subject, at)) return true
      this.withheld.leaveOut(name, key, at)
      this.coverage.count(
        "steps",
        has(this.skippedOnRequest, name, at) ? "skip an event on request" : "skip an event that fails"
      )
      return false
    })
  }

  /** Returns a key with an unhandled event of the projection at or below a position. */
  readonly missing = (subject: Subject, position: number): string | undefined =>
    [...subject.expected.keys()].find((key) => this.unhandled(subject, key, position).length > 0)
}

type Positions = Map<string, Set<bigint>>

const has = (positions: Positions, projection: string, position: bigint): boolean =>
  positions.get(projection)?.has(position) === true

const note = (positions: Positions, projection: string, position: bigint): void => {
  positions.set(projection, (positions.get(projection) ?? new Set()).add(position))
}
