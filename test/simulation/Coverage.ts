/**
 * What runs have reached, counted. An entry that stays at 0 is something that the simulation claims and does not do.
 */

const entries = {
  faults: [
    "kill: cut, then interrupted",
    "kill: gone at once",
    "kill: session half open",
    "freeze",
    "commit: connection lost before",
    "commit: connection lost after the handler",
    "commit: answer lost, looked up",
    "decision: answer lost",
    "join: answer lost",
    "heartbeat: answer lost",
    "progress: answer lost",
    "halt: answer lost",
    "read: failed",
    "stores slow",
    "stores failing now and then",
    "stores away for one worker",
    "stores away for all",
    "presence lost",
    "presence lost for a moment",
    "commit by a writer late",
    "commits by writers out of order",
    "writer rolled back",
    "notification lost",
    "notification delayed",
    "handler slow",
    "handler fails",
    "handler does not stop",
    "worker's clock wrong",
    "workers with different projections",
    "id of a living worker",
    "id of a frozen worker taken over",
    "id of a dead worker used again",
    "worker of another replica set",
    "filter changed"
  ],
  steps: [
    "join",
    "join again after an eviction",
    "form",
    "give up",
    "take",
    "take from the dead",
    "cut",
    "merge",
    "leave",
    "die: presence gone",
    "freeze, cut off: silent",
    "suspended by itself",
    "batch interrupted",
    "halted",
    "halt taken up by a later worker",
    "rows claimed from another replica set",
    "caught up and left"
  ],
  errors: [
    "WorkerIdInUse",
    "WorkerReplaced",
    "WorkerEvicted",
    "CoordinationTimeout",
    "FilterChanged",
    "ProjectionInOtherReplicaSet",
    "ProjectionHalted",
    "DatabaseUnavailable",
    "Fenced",
    "HandlerFailure",
    "TransientFailure"
  ],
  workers: ["1", "2", "3", "4", "5 to 8", "9 to 16"],
  numbers: ["events", "batches", "generations", "hand-overs", "fences refused", "joins", "virtual seconds", "tasks"]
} as const

export type Group = keyof typeof entries
export type Entry<G extends Group> = typeof entries[G][number]

export class Coverage {
  private readonly counts = new Map<string, number>()

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

  /** As it travels between processes. */
  toJSON(): ReadonlyArray<readonly [string, number]> {
    return [...this.counts]
  }

  static fromJSON(counts: ReadonlyArray<readonly [string, number]>): Coverage {
    const coverage = new Coverage()
    for (const [key, value] of counts) coverage.counts.set(key, value)
    return coverage
  }

  /** What was never reached. */
  missing(): ReadonlyArray<string> {
    return Object.entries(entries).flatMap(([group, names]) =>
      names.map((name) => `${group}: ${name}`).filter((key) => (this.counts.get(key) ?? 0) === 0)
    )
  }

  table(): string {
    const lines: Array<string> = []
    for (const [group, names] of Object.entries(entries)) {
      lines.push(group)
      for (const name of names) {
        lines.push(`  ${name.padEnd(44)} ${String(this.counts.get(`${group}: ${name}`) ?? 0).padStart(12)}`)
      }
    }
    return lines.join("\n")
  }
}
