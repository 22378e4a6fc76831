/**
 * What a seed determines: settings, projections, workers, writers, and faults with their times. A scenario does not
 * depend on where it runs: on the memory layers with virtual time, or on PostgreSQL in real time.
 *
 * The victim of a fault is drawn as an index into the workers that it may affect when its time comes.
 */
import type { EventFilter } from "../../src/schema/EventFilter.ts"
import type { FailureDecision } from "../../src/schema/FailurePolicy.ts"
import type { Ordering } from "../../src/schema/Ordering.ts"
import { Chance } from "./Chance.ts"
import { type Aggregate, type Keys, keys } from "./Keys.ts"
import type { Pace } from "./Pace.ts"

const faultNames = [
  "join",
  "leave",
  "kill",
  "vanish",
  "restart",
  "freeze",
  "freeze in a retry",
  "freeze in a retry",
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
  "retry parked",
  "drop parked",
  "drop parked",
  "retry halted",
  "retry halted",
  "skip halted",
  "skip halted",
  "catch up"
] as const

/** A transaction that appends to one aggregate. */
export interface Write {
  /** Selects one of the aggregates without an open writer; from 0 (inclusive) to 1 (exclusive). */
  readonly aggregate: number
  readonly eventTypes: ReadonlyArray<string>
  /** Milliseconds from drawing the positions to the end of the transaction; 0 for immediately. */
  readonly lasts: number
  readonly isLate: boolean
  readonly rollsBack: boolean
  /** Written by an application that does not use the library, so no notification is sent. */
  readonly isPlain: boolean
}

/** `blocking handler` takes long to have an effect, so it happens early, once, or not at all. */
export type FaultName = typeof faultNames[number] | "blocking handler"

export interface Fault {
  readonly name: FaultName
  /** Selects one of the workers that it may affect; from 0 (inclusive) to 1 (exclusive). */
  readonly victim: number
  readonly lasts: number
  /** When the consequence of the fault happens: the restart of a killed worker, the leaving of a guest. */
  readonly follows: number
  /**
   * Kills the worker without a chance to clean up, or freezes it in the middle of a batch, `strikes` milliseconds after
   * that batch's events.
   */
  readonly harsh: boolean
  readonly strikes: number
  /** The server still considers the session open. */
  readonly isHalfOpen: boolean
  /** The delay that slow stores add. */
  readonly slow: number
  /** Events that keep a worker busy in the meantime. */
  readonly writes: ReadonlyArray<Write>
  /** The projections that a joining worker carries. */
  readonly carries: ReadonlyArray<string>
  /** The single projection that a guest carries. */
  readonly projection: string
}

export interface Step {
  readonly writes: ReadonlyArray<Write>
  readonly fault: Fault | undefined
  /** Milliseconds until the next step. */
  readonly lasts: number
}

export interface Scenario {
  readonly seed: number
  readonly pace: Pace
  readonly projections: ReadonlyArray<{
    readonly name: string
    readonly filter: EventFilter
    readonly keys: Keys
    readonly ordering: Ordering
    /** What happens to events that it cannot handle; it is halted instead of parking events if its order is global. */
    readonly onFailure: FailureDecision
    readonly delivery: "exactly-once" | "at-least-once"
    /** Whether it handles the events of a batch with one call. */
    readonly isWhole: boolean
    /** How long its events wait for more, and what ends the wait. */
    readonly window: { readonly time: number; readonly events: number } | undefined
  }>
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
  /** The values of `concurrency` that the workers have; each worker one of them, as during a deploy. */
  readonly concurrencies: ReadonlyArray<number>
  /** The step at which a newer version of the application is deployed, if any; see `Fleet.newVersion`. */
  readonly newVersionAt: number | undefined
  /** All aggregates of a projection also write to one shared row. */
  readonly sharesRows: boolean
  /** The maximum latency of every call. */
  readonly latency: number
  /** The steps in their order, without an end. */
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
      case "freeze in a retry":
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

/** `faults` lists the kinds of faults that may happen; without it, the seed chooses them. */
export const draw = (seed: number, pace: Pace, faults?: ReadonlyArray<FaultName>): Scenario => {
  const chance = new Chance(seed, 2)
  const keysChance = new Chance(seed, 8)
  const count = chance.pick([1, 1, 2, 2, 3])
  const heartbeat = chance.pick(pace.heartbeats)
  const stale = heartbeat * chance.pick(pace.patience)
  const drain = chance.pick([20, 100, 500])
  const workersAtMost = chance.pick(pace.workers)
  const order = new Chance(seed, 9)
  const deploys = new Chance(seed, 11)
  const failures = new Chance(seed, 10)
  const scenario = {
    seed,
    pace,
    projections: filters.slice(0, count).map((filter, index) => ({
      name: `p${index}`,
      filter,
      keys: keysChance.pick([keys[0]!, ...keys]),
      ordering: order.bool(0.2) ? "global" as const : "aggregate" as const,
      onFailure: failures.pick(pace.policies),
      delivery: failures.bool(pace.deliveries) ? "at-least-once" as const : "exactly-once" as const,
      isWhole: chance.bool(0.4),
      window: chance.bool(0.5) ? { time: chance.pick([20, 200, 1000]), events: chance.pick([2, 5, 1000]) } : undefined
    })),
    aggregates: Array.from({ length: chance.pick([3, 12, 24]) }, (_, index) => ({
      id: `a${index}`,
      type: index % 3 === 0 ? "C" : index % 3 === 1 ? "A" : "B",
      correlationId: index % 4 === 3 ? null : `c${index % 5}`,
      key: index % 5 === 4 ? null : { Odd: index % 7, Even: String(index % 2 === 0 ? index % 7 : index % 3) }
    })),
    settings: {
      heartbeatInterval: heartbeat,
      staleWorkerTimeout: stale,
      // Long enough for a worker that has just started to evict a silent one: two heartbeats until missing heartbeats
      // count, and the stale timeout. With less, newcomers would fail one after the other and none would evict it.
      coordinationTimeout: Math.max(drain + chance.pick([400, 1500, 4000]), stale / 2 + heartbeat + 500),
      drainTimeout: drain,
      pollInterval: chance.pick([200, 500, 1000]),
      registrationWindow: chance.pick([0, 25, 100]),
      batchSize: chance.pick(pace.batchSizes)
    },
    startFrom: chance.bool(0.15) ? "now" : "beginning",
    workersAtMost,
    workersAtFirst: chance.int(1, Math.min(3, workersAtMost)),
    concurrencies: new Chance(seed, 8).pick([[1], [1], [1, 2], [2, 3]]),
    newVersionAt: deploys.bool(0.3) ? deploys.int(3, pace.steps - 1) : undefined,
    sharesRows: chance.bool(0.3),
    latency: chance.pick(pace.latencies)
  } as const
  // Each seed enables some kinds of faults.
  const drawn = faultNames.filter((name) => name === "join" || name === "leave" || chance.bool(0.5))
  const enabled = faults ?? drawn
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
