/**
 * Counts what runs have reached. An entry that stays at 0 is something that the simulation claims to test and does not.
 */
import * as Measurement from "../../src/testing/Measurement.ts"

/** The claimed entries, by group. */
export interface Claims {
  readonly [group: string]: ReadonlyArray<string>
}

/** Entries that apply wherever a scenario runs. */
const everywhere = {
  faults: [
    "kill: cut, then interrupted",
    "kill: gone at once",
    "kill: session half open",
    "freeze",
    "freeze in a retry",
    "stores slow",
    "stores unreachable for one worker",
    "stores unreachable for all",
    "presence lost",
    "presence lost for a moment",
    "commit by a writer late",
    "commits by writers out of order",
    "writer rolled back",
    "notification lost",
    "notification delayed",
    "handler slow",
    "handler fails",
    "batch handler fails",
    "batch handler fails and names the event",
    "handler does not stop",
    "handler blocks the event loop",
    "worker's clock wrong",
    "workers with different projections",
    "id of a live worker",
    "id of a frozen worker taken over",
    "id of a dead worker reused",
    "worker of another replica set",
    "filter changed",
    "event of a newer version",
    "partition key changed"
  ],
  steps: [
    "join",
    "form a generation",
    "generation active",
    "release",
    "claim",
    "claim from a dead worker",
    "cut",
    "several ranges per share",
    "global order",
    "several events in one call",
    "batch window",
    "merge",
    "leave",
    "evicted: presence gone",
    "evicted: heartbeats missed",
    "suspended by itself",
    "halted",
    "halt retried by a later worker",
    "park an event",
    "queue an event",
    "handle a parked event",
    "skip an event that fails",
    "rows claimed from another replica set",
    "caught up and left"
  ],
  errors: [
    "WorkerIdInUse",
    "WorkerReplaced",
    "FilterChanged",
    "PartitionKeyChanged",
    "ProjectionInOtherReplicaSet",
    "Fenced",
    "HandlerFailure",
    "TransientFailure"
  ],
  numbers: ["events", "batches", "generations", "hand-overs", "fences refused", "joins"]
} as const

/** In memory, with virtual time. */
export const virtual = {
  faults: [
    ...everywhere.faults,
    "parked event fails again",
    "commit: connection lost before",
    "commit: connection lost after the handler",
    "commit: answer lost, looked up",
    "request to skip changed",
    "decision: answer lost",
    "join: answer lost",
    "heartbeat: answer lost",
    "progress: answer lost",
    "halt: answer lost",
    "read: failed",
    "stores failing sometimes"
  ],
  steps: [
    ...everywhere.steps,
    "drop a parked event",
    "request about an event without a halt refused",
    "skip an event on request",
    "halted event retried on request",
    "deliver an event",
    "deliver an event again",
    "page divided among ranges",
    "read ahead of a batch",
    "halted: handler overran",
    "join again after an eviction",
    "batch interrupted"
  ],
  errors: [
    ...everywhere.errors,
    "EpochEnded",
    "WorkerEvicted",
    "CoordinationTimeout",
    "EventVersionTooNew",
    "ProjectionHalted",
    "DatabaseUnavailable"
  ],
  workers: ["1", "2", "3", "4", "5 to 8", "9 to 16"],
  numbers: [...everywhere.numbers, "virtual seconds", "tasks"]
} as const

/** On PostgreSQL, in real time. */
export const postgres = {
  faults: [
    ...everywhere.faults,
    "batch: conflict",
    "pool: connection lost",
    "pool: answer lost",
    "COMMIT of a batch: connection lost",
    "COMMIT of a batch: answer lost",
    "coordination: connection lost",
    "coordination: answer lost",
    "COMMIT of a decision: connection lost",
    "COMMIT of a decision: answer lost",
    "reader: connection lost",
    "reader: answer lost",
    "listener: connection lost",
    "listener: answer lost",
    "presence: connection lost",
    "presence: answer lost",
    "events by plain SQL"
  ],
  steps: everywhere.steps,
  errors: everywhere.errors,
  workers: ["1", "2", "3", "4"],
  numbers: [...everywhere.numbers, "seconds"]
} as const

type Tables = typeof virtual | typeof postgres

export type Group = keyof Tables
export type Entry<G extends Group> = Tables[G][number]

export class Coverage {
  private readonly claims: Claims
  private readonly counts = new Map<string, number>()

  constructor(claims: Claims) {
    this.claims = claims
  }

  count<G extends Group>(group: G, entry: Entry<G>, by = 1): void {
    const key = `${group}: ${entry}`
    this.counts.set(key, (this.counts.get(key) ?? 0) + by)
  }

  workers(count: number): void {
    if (count === 0) return
    this.count("workers", count <= 4 ? (String(count) as "1") : count <= 8 ? "5 to 8" : "9 to 16")
  }

  of<G extends Group>(group: G, entry: Entry<G>): number {
    return this.counts.get(`${group}: ${entry}`) ?? 0
  }

  add(other: Coverage): void {
    for (const [key, value] of other.counts) this.counts.set(key, (this.counts.get(key) ?? 0) + value)
  }

  /** The entries that were never reached. */
  missing(): ReadonlyArray<string> {
    return Object.entries(this.claims).flatMap(([group, names]) =>
      names.map((name) => `${group}: ${name}`).filter((key) => (this.counts.get(key) ?? 0) === 0)
    )
  }

  table(): string {
    const rows = Object.entries(this.claims).flatMap(([group, names]) =>
      names.map((name) => [group, name, (this.counts.get(`${group}: ${name}`) ?? 0).toLocaleString("en-US")])
    )
    return Measurement.table(["group", "reached", "times"], rows)
  }
}
