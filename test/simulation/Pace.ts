/** The speed of an environment, and what is simulated in it. */
import type { FailureDecision } from "../../src/schema/FailurePolicy.ts"

/** The speed in milliseconds, to which the drawn values are adapted. */
export interface Pace {
  readonly heartbeats: ReadonlyArray<number>
  /** How many heartbeat intervals make up the stale timeout. */
  readonly patience: ReadonlyArray<number>
  readonly workers: ReadonlyArray<number>
  /** How many stale timeouts a freeze lasts at most. */
  readonly freeze: number
  /** The minimum number of steps, the probability of a fault in each, and the maximum time between them. */
  readonly steps: number
  readonly faults: number
  readonly spans: ReadonlyArray<number>
  /** The maximum latency of every call, and the size of a batch. */
  readonly latencies: ReadonlyArray<number>
  readonly batchSizes: ReadonlyArray<number>
  /** What a slow worker adds to a call, before and after it. */
  readonly slow: ReadonlyArray<number>
  readonly late: readonly [low: number, high: number]
  readonly stuck: readonly [low: number, high: number]
  /** The time limit for handling every event and becoming stable once the faults have stopped. */
  readonly bound: number
  /** Whether the limit begins again while positions advance: in real time, the machine may be slow. */
  readonly isExtended: boolean
  /** How long nothing may change after that. */
  readonly quiet: number
  /** How often the run checks for halted ranges, to deploy fixed handlers. */
  readonly deploys: number
  /** What projections do with events at which their handlers fail. */
  readonly policies: ReadonlyArray<FailureDecision>
  /** The probability that a projection is delivered at least once. */
  readonly deliveries: number
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
  isExtended: false,
  quiet: 2000,
  deploys: 5000,
  policies: ["halt", "halt", "park", "park", "skip"],
  deliveries: 0.25
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
  isExtended: true,
  quiet: 400,
  deploys: 1000,
  policies: ["halt", "park", "park", "skip"],
  deliveries: 0
}
