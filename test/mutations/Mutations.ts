/**
 * The mechanisms behind the guarantees on PostgreSQL, and how each is removed: mostly by rewriting a statement on its
 * way to the server, at the seam. Parameters stay in place, because PostgreSQL refuses a statement that does not use
 * them.
 */
import type { Database } from "../../src/layers/postgres/Database.ts"
import * as Scenarios from "./Scenarios.ts"
import type { Mutation } from "./World.ts"

export interface Entry {
  readonly mechanism: string
  readonly scenario: Scenarios.Scenario
  readonly mutate: () => Mutation
}

const rewrite = (...changes: ReadonlyArray<readonly [RegExp, string]>) => (): Mutation => ({
  met: { count: 0 },
  rewrite: (text) => changes.reduce((text, [pattern, by]) => text.replace(pattern, by), text)
})

/** Replaces `what = $1` with a condition that is always true. */
const unchecked = (what: string, type: string): readonly [RegExp, string] => [
  new RegExp(`AND (?:c\\.)?${what} = (\\$\\d+)${type === "text" ? "" : `::${type}`}`),
  `AND $1::${type} IS NOT NULL`
]

const worker = unchecked("worker_id", "text")
const incarnation = unchecked("incarnation", "bigint")
const generation = unchecked("generation_id", "bigint")
const rangeEnd = unchecked("range_end", "bigint")
const position = unchecked("position", "bigint")

/** Shares one state among all connections of the session. */
const lasting = (name: string): Mutation => {
  const met = { count: 0 }
  return {
    met,
    database: (real): Database["Service"] => ({
      ...real,
      openSession: (options) => {
        if (options.name !== name) return real.openSession(options)
        const state = options.state()
        return real.openSession({
          ...options,
          state: () => {
            met.count++
            return state
          }
        })
      }
    })
  }
}

/** Treats every absent worker as previously observed present. */
const seenByAnybody = (): Mutation => {
  const met = { count: 0 }
  class Seen extends Map<string, { readonly wasPresent: boolean; readonly missingSince: bigint | undefined }> {
    override get(key: string) {
      met.count++
      return super.get(key) ?? { beat: "", beatAt: 0n, readAt: 0n, wasPresent: true, missingSince: undefined }
    }
  }
  return {
    met,
    database: (real): Database["Service"] => ({
      ...real,
      openSession: (options) =>
        real.openSession({
          ...options,
          state: () => {
            const state = options.state()
            return typeof state === "object" && state !== null && "workers" in state
              ? { ...state, workers: new Seen() }
              : state
          }
        })
    })
  }
}

export const entries: ReadonlyArray<Entry> = [
  {
    mechanism: "fence",
    scenario: Scenarios.replaced,
    mutate: rewrite(worker, incarnation, generation)
  },
  {
    // A new incarnation always forms a new generation, so the generation alone would keep the guarantee.
    mechanism: "incarnation in the fence, with the generation",
    scenario: Scenarios.reincarnated,
    mutate: rewrite(incarnation, generation)
  },
  {
    // A decision renews the generation of every row that it cuts.
    mechanism: "range_end in the fenced advance, with drain and generation",
    scenario: Scenarios.handedOver,
    mutate: () => ({ ...rewrite(rangeEnd, generation)(), without: "activeKeys" })
  },
  {
    mechanism: "drain and roll back: batches are refused whose rows were given up",
    scenario: Scenarios.handedOver,
    mutate: () => ({ ...rewrite(rangeEnd, generation, worker, incarnation)(), without: "activeKeys" })
  },
  {
    mechanism: "decision lock",
    scenario: Scenarios.atOnce,
    mutate: rewrite([/pg_advisory_xact_lock\(/, "num_nonnulls("])
  },
  {
    mechanism: "rows locked before they are computed from",
    scenario: Scenarios.outdated,
    mutate: rewrite([/FOR UPDATE OF c SKIP LOCKED/, ""])
  },
  {
    mechanism: "settled position",
    scenario: Scenarios.late,
    // Finds no holders of positions that are not visible yet.
    mutate: rewrite([/l\.mode = 'RowExclusiveLock'/, "l.mode IS NULL"])
  },
  {
    mechanism: "reading only after the proof",
    scenario: Scenarios.late,
    mutate: () => ({ without: "order", met: { count: 1 } })
  },
  {
    mechanism: "a checkpoint proves nothing to other readers",
    scenario: Scenarios.raised,
    // Treats the furthest row as the end of the gapless run after the mark.
    mutate: rewrite([
      /unnest\(\$1::int8\[\]\)/,
      "unnest($1::int8[] || (SELECT max(c.position) FROM orchestrator_checkpoints AS c))"
    ], [/ORDER BY start\.place\b/, "ORDER BY start.position = 0, start.place"])
  },
  {
    mechanism: "tracker dropped with its connection",
    scenario: Scenarios.less,
    mutate: () => lasting("pupsourcing-orchestrator reader")
  },
  {
    mechanism: "progress is written only in the server epoch in which it was read",
    scenario: Scenarios.outlived,
    mutate: rewrite([/EXISTS \((?=\s*SELECT FROM pg_stat_get_activity\()/, "EXISTS (SELECT UNION ALL"])
  },
  {
    mechanism: "absence observed by the same session",
    scenario: Scenarios.outage,
    mutate: seenByAnybody
  },
  {
    mechanism: "idle-in-transaction timeout",
    scenario: Scenarios.frozen,
    mutate: rewrite([/set_config\('idle_in_transaction_session_timeout'/, "set_config('mutated.timeout'"])
  },
  {
    // Without the lock the old transaction is considered failed, and only the position refuses the second attempt.
    mechanism: "unknown commit read again with a lock, with the position",
    scenario: Scenarios.unknown,
    mutate: rewrite([/FOR UPDATE$/, ""], position)
  }
]
