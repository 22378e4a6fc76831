/**
 * What a seed draws: settings, projections, workers, writers, and faults with their times. It is the same whatever it is
 * then played on: the memory layers under virtual time, or PostgreSQL in real time.
 *
 * Whom a fault hits is drawn as a place among those that it may hit when its time comes.
 */
import type { EventFilter } from "../../src/schema/EventFilter.ts"
import { Chance } from "./Chance.ts"

const faultNames = [
  "join",
  "leave",
  "kill",
  "vanish",
  "restart",
  "freeze",
  "take over",
  "take over",
  "twin",
  "away",
  "away for all",
  "failing",
  "lossy",
  "slow",
  "presence",
  "presence for a moment",
  "deaf",
  "slow handler",
  "failing handler",
  "stuck handler",
  "other replica set",
  "changed filter",
  "catch up"
] as const

/** How fast a world is, in milliseconds: what is drawn has to fit it. */
export interface Pace {
  readonly heartbeats: ReadonlyArray<number>
  /** How many of them a worker may be silent for. */
  readonly patience: ReadonlyArray<number>
  readonly workers: ReadonlyArray<number>
  /** How many of these silences a freeze lasts at most. */
  readonly freeze: number
  /** Steps at least, how likely each of them is a fault, and how far they are apart at most. */
  readonly steps: number
  readonly faults: number
  readonly spans: ReadonlyArray<number>
  /** What every call takes at most, and what a batch holds. */
  readonly latencies: ReadonlyArray<number>
  readonly batchSizes: ReadonlyArray<number>
  /** What a worker that is slow adds to a call, before and after it is done. */
  readonly slow: ReadonlyArray<number>
  readonly late: readonly [low: number, high: number]
  readonly stuck: readonly [low: number, high: number]
  /** Until when all has to be handled and settled once the faults have stopped. */
  readonly bound: number
  /** How long then nothing may change. */
  readonly quiet: number
  /** How often what stands still is looked for, as a deploy of mended handlers would. */
  readonly deploys: number
}

export const virtual: Pace = {
  heartbeats: [200, 400, 1000],
  patience: [3, 4, 6],
  freeze: 3,
  workers: [1, 2, 3, 3, 4, 4, 5, 6, 8, 12, 16],
  steps: 30,
  faults: 0.6,
  spans: [50, 200, 600],
  latencies: [0, 0, 2, 10],
  batchSizes: [2, 5, 20, 50],
  slow: [20, 200, 1000],
  late: [500, 5000],
  stuck: [500, 12_000],
  bound: 60_000,
  quiet: 2000,
  deploys: 5000
}

export const real: Pace = {
  heartbeats: [150, 200, 250],
  patience: [3, 4],
  freeze: 2,
  workers: [1, 2, 2, 3, 3, 4],
  steps: 32,
  faults: 0.3,
  spans: [100, 150, 200],
  latencies: [0],
  batchSizes: [3, 10, 50],
  slow: [10, 50, 100],
  late: [200, 800],
  stuck: [200, 1200],
  bound: 60_000,
  quiet: 400,
  deploys: 1000
}

/** A transaction that appends to one aggregate. */
export interface Write {
  /** Which of the aggregates that nobody else is writing to, from 0 up to but not including 1. */
  readonly aggregate: number
  readonly eventTypes: ReadonlyArray<string>
  /** From the drawing of positions to the end of the transaction; 0 for at once. */
  readonly lasts: number
  readonly isLate: boolean
  readonly rollsBack: boolean
  /** By an application that does not know the library: nobody is told. */
  readonly isPlain: boolean
}

/** `blocking handler` takes its time until it comes to anything: it happens early, once, or not at all. */
export type FaultName = typeof faultNames[number] | "blocking handler"

export interface Fault {
  readonly name: FaultName
  /** Which of those that it may hit, from 0 up to but not including 1. */
  readonly victim: number
  readonly lasts: number
  /** When what follows it happens: the restart of what was killed, the leaving of a guest. */
  readonly follows: number
  /** A kill that gives no time for anything; a freeze in the middle of a batch, so long after that batch's events. */
  readonly harsh: boolean
  readonly strikes: number
  /** A session that the server goes on believing in. */
  readonly isHalfOpen: boolean
  /** What slowness adds. */
  readonly slow: number
  /** What keeps a worker busy meanwhile. */
  readonly writes: ReadonlyArray<Write>
  /** What a worker that joins by it carries. */
  readonly carries: ReadonlyArray<string>
  /** The one projection that a guest carries. */
  readonly projection: string
}

export interface Step {
  readonly writes: ReadonlyArray<Write>
  readonly fault: Fault | undefined
  /** Until the next one. */
  readonly lasts: number
}

export interface Aggregate {
  readonly id: string
  readonly type: string
}

export interface Scenario {
  readonly seed: number
  readonly pace: Pace
  readonly projections: ReadonlyArray<{ readonly name: string; readonly filter: EventFilter }>
  readonly aggregates: ReadonlyArray<Aggregate>
  readonly settings: {
    readonly heartbeatInterval: number
    readonly staleWorkerTimeout: number
    readonly coordinationTimeout: number
    readonly drainTimeout: number
    readonly pollInterval: number
    readonly registrationWindow: number
    readonly batchSize: number
  }
  readonly startFrom: "beginning" | "now"
  readonly workersAtMost: number
  readonly workersAtFirst: number
  /** All aggregates of a projection write one row too. */
  readonly sharesRows: boolean
  /** Every call takes up to so long. */
  readonly latency: number
  /** What happens one after the other, without end. */
  readonly steps: () => Generator<Step, never>
}

const filters: ReadonlyArray<EventFilter> = [
  {},
  { aggregateTypes: ["A"] },
  { aggregateTypes: ["A", "B"], eventTypes: ["Odd"] }
]

const some = (chance: Chance, names: ReadonlyArray<string>): ReadonlyArray<string> => {
  const some = names.filter(() => chance.bool(0.7))
  return some.length === 0 || chance.bool(0.5) ? names : some
}

const write = (chance: Chance, pace: Pace): Write => {
  const isLate = chance.bool(0.025)
  return {
    aggregate: chance.next(),
    eventTypes: Array.from({ length: chance.int(1, 4) }, () => chance.bool(0.5) ? "Odd" : "Even"),
    lasts: isLate ? chance.int(...pace.late) : chance.bool(0.5) ? 0 : chance.int(1, 60),
    isLate,
    rollsBack: chance.bool(0.1),
    isPlain: chance.bool(0.5)
  }
}

const fault = (
  chance: Chance,
  name: FaultName,
  { pace, projections, settings }: Pick<Scenario, "pace" | "projections" | "settings">
): Fault => {
  const stale = settings.staleWorkerTimeout
  const names = projections.map((projection) => projection.name)
  const lasts = (): number => {
    switch (name) {
      case "freeze":
        return chance.bool(0.7) ? chance.int(stale, stale * pace.freeze) : chance.int(10, stale)
      case "take over":
        return stale * pace.freeze + chance.int(0, 500)
      case "presence for a moment":
        return chance.int(1, 80)
      case "stuck handler":
        return chance.int(...pace.stuck)
      default:
        return chance.int(50, chance.bool(0.5) ? stale * 2 : 500)
    }
  }
  const follows = (): number => {
    switch (name) {
      case "take over":
        return stale + chance.int(10, stale * (pace.freeze - 1) / 2)
      case "other replica set":
        return chance.int(500, pace.deploys)
      default:
        return chance.int(0, 500)
    }
  }
  return {
    name,
    victim: chance.next(),
    lasts: lasts(),
    follows: follows(),
    harsh: chance.bool(0.5),
    strikes: chance.int(3, 40),
    isHalfOpen: chance.bool(0.2),
    slow: chance.pick(pace.slow),
    writes: Array.from({ length: 3 }, () => write(chance, pace)),
    carries: some(chance, names),
    projection: chance.pick(names)
  }
}

export const draw = (seed: number, pace: Pace): Scenario => {
  const chance = new Chance(seed, 2)
  const count = chance.pick([1, 1, 2, 2, 3])
  const heartbeat = chance.pick(pace.heartbeats)
  const stale = heartbeat * chance.pick(pace.patience)
  const drain = chance.pick([20, 100, 500])
  const workersAtMost = chance.pick(pace.workers)
  const scenario = {
    seed,
    pace,
    projections: filters.slice(0, count).map((filter, index) => ({ name: `p${index}`, filter })),
    aggregates: Array.from({ length: chance.pick([3, 12, 24]) }, (_, index) => ({
      id: `a${index}`,
      type: index % 3 === 0 ? "C" : index % 3 === 1 ? "A" : "B"
    })),
    settings: {
      heartbeatInterval: heartbeat,
      staleWorkerTimeout: stale,
      // Long enough for a silent worker to be given up for dead by one that has just started: two heartbeats until it may
      // judge, and the timeout. With less, newcomers fail one after the other and none of them evicts it.
      coordinationTimeout: Math.max(drain + chance.pick([400, 1500, 4000]), stale / 2 + heartbeat + 500),
      drainTimeout: drain,
      pollInterval: chance.pick([200, 500, 1000]),
      registrationWindow: chance.pick([0, 25, 100]),
      batchSize: chance.pick(pace.batchSizes)
    },
    startFrom: chance.bool(0.15) ? "now" : "beginning",
    workersAtMost,
    workersAtFirst: chance.int(1, Math.min(3, workersAtMost)),
    sharesRows: chance.bool(0.3),
    latency: chance.pick(pace.latencies)
  } as const
  // Each seed is about some kinds of faults.
  const enabled = faultNames.filter((name) => name === "join" || name === "leave" || chance.bool(0.5))
  const span = chance.pick(pace.spans)
  const stepsChance = chance.int(0, 2 ** 31)
  return {
    ...scenario,
    steps: function*() {
      const chance = new Chance(stepsChance, 5)
      const early = new Chance(stepsChance, 7)
      const blocks = early.bool(0.3) ? early.int(0, 4) : undefined
      for (let index = 0;; index++) {
        const writes = Array.from({ length: chance.int(0, 8) }, () => write(chance, pace))
        const usual = chance.bool(pace.faults) || index >= pace.steps
          ? fault(chance, chance.pick(enabled), scenario)
          : undefined
        yield {
          writes,
          fault: index === blocks ? fault(early, "blocking handler", scenario) : usual,
          lasts: chance.int(1, span)
        }
      }
    }
  }
}
